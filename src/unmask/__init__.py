"""unmask: diffusion language models that write text all at once."""

from unmask.canvas import Frame
from unmask.errors import UnmaskError
from unmask.generation import Output
from unmask.lm import DiffusionLM

__all__ = ["DiffusionLM", "Frame", "Output", "UnmaskError"]
