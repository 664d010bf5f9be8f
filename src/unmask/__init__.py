"""unmask: diffusion language models that write text all at once."""

from importlib.metadata import version

from unmask.canvas import Frame
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.output import Output

__version__ = version("unmask")

__all__ = ["DiffusionLM", "Frame", "Output", "UnmaskError", "__version__"]
