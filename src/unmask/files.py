"""Writing files so that nothing is ever half-written: a temporary name first, then one rename."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unmask.errors import UnmaskError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Gives a temporary sibling of `target` to write (a file or a folder) and moves it there at the end.

    If writing fails, what stood at `target` stays and the temporary is removed; a full disk or a folder
    that can't be written becomes an UnmaskError.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and target.exists():
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
            os.rename(target, old)
            try:
                os.rename(temporary, target)
            except OSError:
                os.rename(old, target)
                raise
            _remove(old)
        else:
            os.replace(temporary, target)
    except UnmaskError as error:  # from a file inside the folder being written: name where it was to be
        raise UnmaskError(str(error).replace(str(temporary), str(target))) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnmaskError(
            f"cannot write {target}: {reason}; free space or choose another folder (what stood there is untouched)"
        ) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # not there, or its folder is a file
            path.unlink()


def write_text(target: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
