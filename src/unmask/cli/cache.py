"""`unmask cache`: packed weights that are kept on this machine."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from unmask.cli.options import Json
from unmask.cli.report import print_record
from unmask.errors import UnmaskError

cache = typer.Typer(no_args_is_help=True, help="Packed weights that are kept on this machine: list them, remove them.")


def _kept() -> dict[str, int]:
    """Bytes of each by its folder's name: the model, what computes it, and a digest."""
    from unmask.backends.store import compiled

    folders = sorted(path for path in compiled().glob("*") if path.is_dir())
    return {path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in folders}


@cache.command("list")
def list_kept(as_json: Json = False) -> None:
    """What is kept, and how large it is. Models that were fetched are not among it.

    Example: `unmask cache list`
    """
    from unmask.backends.store import compiled

    kept = _kept()
    if as_json:
        print_record({"folder": str(compiled()), "bytes": kept})
        return
    for name, size in kept.items():
        print(f"{size / 1e6:10.1f} MB  {name}")
    print(f"{sum(kept.values()) / 1e6:10.1f} MB  in {compiled()}")


@cache.command("clear")
def clear(
    model: Annotated[str | None, typer.Argument(help="How the names begin, as a model's does; all by default.")] = None,
    as_json: Json = False,
) -> None:
    """Remove what is kept; it is packed again when a model is next used. Processes that use it now are not disturbed.

    Example: `unmask cache clear`, `unmask cache clear smollm2`
    """
    from unmask.backends.store import compiled

    removed = {name: size for name, size in _kept().items() if name.startswith(model or "")}
    if model is not None and not removed:
        raise UnmaskError(f"nothing is kept of '{model}'; unmask cache list names what is")
    for name in removed:
        shutil.rmtree(compiled() / name, ignore_errors=True)
    if as_json:
        print_record(removed)
        return
    print(f"removed {len(removed)}, {sum(removed.values()) / 1e6:.1f} MB")
