"""Where models are found by name: shipped in the package, fetched into the cache, or a path."""

from __future__ import annotations

from pathlib import Path

from unmask.checkpoints import entries
from unmask.checkpoints import hub as pull
from unmask.checkpoints.entries import Entry, Shipped
from unmask.errors import UnmaskError

SHIPPED = Path(__file__).parent.parent / "weights"


def shipped() -> list[str]:
    """Names of the models in the package."""
    return sorted(p.name for p in SHIPPED.iterdir() if (p / "config.json").is_file()) if SHIPPED.is_dir() else []


def place(entry: Entry) -> Path:
    """Where a model of the catalogue lies or would lie."""
    return SHIPPED / entry.source.folder if isinstance(entry.source, Shipped) else pull.folder(entry)


def is_present(entry: Entry) -> bool:
    """Whether a model of the catalogue can be used without fetching anything for it (its base aside)."""
    return (place(entry) / "config.json").is_file() if isinstance(entry.source, Shipped) else pull.is_present(entry)


def find(name: str) -> Path:
    """The folder of a named model or of a checkpoint path, or a GGUF file; anything else raises UnmaskError.

    A model that is not in the package is fetched at first use, which it says on standard error.
    """
    path = Path(name)
    entry = entries.get(name)
    if name not in entries.ENTRIES and (path.is_dir() or (path.suffix == ".gguf" and path.is_file())):
        return path
    if entry is None:
        names = ", ".join(entries.ENTRIES)
        raise UnmaskError(f"model '{name}' is neither a folder nor a GGUF file nor one of: {names}")
    if isinstance(entry.source, Shipped):
        return place(entry)
    return pull.pull_shown(name)
