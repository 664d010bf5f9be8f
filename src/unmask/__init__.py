"""unmask: diffusion language models that write text all at once."""

from unmask.canvas import Frame
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.output import Output

__all__ = ["DiffusionLM", "Frame", "Output", "UnmaskError"]
