"""Reading JSON files, and writing files so that nothing is ever half-written: a temporary name, then one rename."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError

LARGEST_JSON = 2**28  # bytes; the largest tokenizers have a tenth of it


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Gives a temporary sibling of `target` to write (a file or a folder) and moves it there at the end.

    If writing fails, what stood at `target` stays and the temporary is removed; a full disk or a folder
    that can't be written becomes an UnmaskError.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    with _written(temporary, target):
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


@contextmanager
def filling(folder: Path, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Gives an empty folder to write, and moves its files into `folder` at the end, where others stay.

    If writing fails, `folder` is as it was, and the message as that of `replacing`.

    Args:
        owned: Patterns of files that go together with the new ones, whose former set they replace. The first names a
            file that is removed first and comes last: a process that is killed meanwhile leaves no set that looks
            whole.
    """
    temporary = folder / f".{uuid.uuid4().hex[:8]}.tmp"
    is_new = not folder.exists()
    try:
        with _written(temporary, folder):
            temporary.mkdir(parents=True)
            yield temporary
            names = [path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()]
            for path in [path for pattern in owned for path in folder.glob(pattern)]:
                path.unlink(missing_ok=True)
            ranks = {name: [name.match(pattern) for pattern in owned] for name in names}
            for name in sorted(names, key=ranks.__getitem__):
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(temporary / name, folder / name)
    finally:
        if is_new:
            with suppress(OSError):  # it holds something now
                folder.rmdir()


@contextmanager
def _written(temporary: Path, target: Path) -> Iterator[None]:
    """Tells what goes wrong while `temporary` is written and moved to `target`, and leaves nothing of it behind."""
    try:
        yield
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


def _whole(digits: str) -> int:
    """A whole number that a float can hold as well."""
    if len(digits) > sys.float_info.max_10_exp:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else raises UnmaskError."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UnmaskError(f"{path} has {path.stat().st_size} bytes, which no such file has; download it again")
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise UnmaskError(f"{path} is not valid JSON ({error})") from None
    except FileNotFoundError:
        raise UnmaskError(f"{path} does not exist") from None
    except OSError as error:
        raise UnmaskError(f"{path} cannot be read ({error.strerror or error})") from None
    if not isinstance(value, dict):
        raise UnmaskError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value
