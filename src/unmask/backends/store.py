"""The folder in the user's cache that keeps what a backend compiled of a model's weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.checkpoints import hub
from unmask.files import replacing

if TYPE_CHECKING:
    from unmask.checkpoints.open import Checkpoint

KEY_LENGTH = 12
HASHED = 64 << 20  # bytes of a file that are read for its name in the cache, some 30 ms; larger ones go by their time


def compiled() -> Path:
    """The folder with a folder for each model and backend."""
    return hub.cache() / "compiled"


def compiled_folder(loaded: Checkpoint, backend: str, version: Any, write: Callable[[Path], None]) -> Path:
    """Where a backend keeps a model; `write` fills a folder that is not there yet.

    Its name changes with all that it is made of: version, config, and the name, size and content (or time, where that
    is long to read) of the weights' files. What the same backend made of earlier weights is removed.
    """
    parts: list[Any] = [version, loaded.config.to_dict()]
    parts += [(file.name, file.stat().st_size, _content(file)) for file in loaded.weight_files()]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:KEY_LENGTH]
    prefix = f"{loaded.name}-{backend}-"
    where = compiled() / (prefix + key)
    if not where.is_dir():
        for old in where.parent.glob(prefix + "?" * KEY_LENGTH):
            shutil.rmtree(old, ignore_errors=True)
        with replacing(where) as temporary:
            temporary.mkdir()
            write(temporary)
    return where


def _content(file: Path) -> str | int:
    """What changes with a file's bytes: copies of one checkpoint, as of two environments, share what was compiled."""
    stat = file.stat()
    return hashlib.sha256(file.read_bytes()).hexdigest() if stat.st_size <= HASHED else stat.st_mtime_ns
