"""unmask: diffusion language models that write text all at once."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.canvas import Frame
    from unmask.errors import UnmaskError
    from unmask.lm import DiffusionLM
    from unmask.output import Output

    __version__: str

HOMES = {"DiffusionLM": "lm", "Frame": "canvas", "Output": "output", "UnmaskError": "errors"}
__all__ = ["DiffusionLM", "Frame", "Output", "UnmaskError", "__version__"]


def __getattr__(name: str) -> Any:
    """Loads what is asked for, so that the command line can be stopped while it loads."""
    if name == "__version__":
        from importlib.metadata import version

        return version("unmask")
    if name not in HOMES:
        raise AttributeError(f"module 'unmask' has no attribute '{name}'")
    return getattr(import_module(f"unmask.{HOMES[name]}"), name)
