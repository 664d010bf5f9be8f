"""Where models are found by name: those shipped in the package, else a folder."""

from __future__ import annotations

from pathlib import Path

from unmask.errors import UnmaskError

SHIPPED = Path(__file__).parent.parent / "weights"
ALIASES = {"default": "austen"}


def shipped() -> list[str]:
    """Names of the models in the package."""
    return sorted(p.name for p in SHIPPED.iterdir() if (p / "config.json").is_file()) if SHIPPED.is_dir() else []


def find(name: str) -> Path:
    """The folder of a shipped model or of a checkpoint path; anything else raises UnmaskError."""
    known = ALIASES.get(name, name)
    if known in shipped():
        return SHIPPED / known
    folder = Path(name)
    if folder.is_dir():
        return folder
    raise UnmaskError(f"model '{name}' is neither a folder nor one of the shipped models: {', '.join(shipped())}")
