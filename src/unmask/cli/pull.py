"""`unmask pull`: fetch a model into the cache."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from unmask.cli.options import (
    Json,
)


def pull(
    name: Annotated[str, typer.Argument(help="A name that `unmask models` lists, or a hub id, owner/name.")],
    check: Annotated[bool, typer.Option("--check", help="Fetch nothing; compare what is here by SHA-256.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a model into the cache, once; every other command does so at first use.

    Example: `unmask pull smollm2-135m-instruct`
    """
    from unmask.checkpoints import hub

    entry = hub.need(name)
    needed = [entry.name] if entry.base is None else [entry.base, entry.name]
    folders = {}
    for each in needed:  # an adapter is of no use without its base
        folders[each] = hub.find(each) if hub.need(each).shipped or not check else hub.check(each)
    files = [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for each in needed for f in hub.need(each).files]
    if as_json:
        print(json.dumps({"name": entry.name, "folders": {k: str(v) for k, v in folders.items()}, "files": files}))
        return
    for each, folder in folders.items():
        print(f"{each}: {'as it should be' if check else 'here'}, {folder}")
