"""`unmask models ...`, `unmask pull` and `unmask export`: which models there are, and what one is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unmask.cli.options import Dtype, Json, load
from unmask.cli.report import print_record
from unmask.errors import UnmaskError

models = typer.Typer(invoke_without_command=True)


@models.callback()
def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List the models that can be used by name, and which of them are on this machine; or inspect one.

    Example: `unmask models`, `unmask models inspect path/to/folder`
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from unmask.checkpoints import hub
    from unmask.cli.terminal import table

    records: list[dict[str, Any]] = []
    for entry in hub.ENTRIES.values():
        size = sum(f.size for f in entry.files) or sum(f.stat().st_size for f in hub.place(entry).glob("*.safetensors"))
        records.append(
            {
                "name": entry.name,
                "kind": entry.kind,
                "bytes": size,
                "source": entry.source,
                "licence": entry.licence,
                "present": hub.is_present(entry),
                "base": entry.base,
                "notes": entry.notes,
            }
        )
    if as_json:
        print_record(records)
        return
    rows = []
    for r in records:
        kind = "AR" if r["kind"] == "autoregressive" else r["kind"]
        here = "yes" if r["present"] else "no"
        rows.append([r["name"], kind, f"{r['bytes'] / 1e6:.1f}", r["source"], r["licence"], here])
    shown = table("models", ["name", "kind", "MB", "source", "licence", "here"], rows)
    shown.columns[0].no_wrap = True  # a name must be readable to be typed
    Console().print(shown)
    print("\n".join(f"{r['name']}: {r['notes']}" for r in records if r["notes"]))


@models.command("inspect")
def inspect_command(
    name: Annotated[
        str, typer.Argument(help="A checkpoint folder, a GGUF file, or a name that `unmask models` lists.")
    ],
    as_json: Json = False,
) -> None:
    """What a checkpoint is and whether it would load: family, config, special tokens, tensors. Reads no weights.

    Exit status 0: it would load (memory aside); 2: it would not, and why is the line on standard error.

    Example: `unmask models inspect path/to/LLaDA-8B-Instruct`
    """
    from unmask.checkpoints import inspect

    result = inspect.inspect(name)
    if as_json:
        print_record(result.record)
    else:
        for heading, said in inspect.lines(result.record):
            print(f"{heading:<11} {said}")
    if result.problem is not None:
        raise UnmaskError(result.problem)


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
        print_record({"name": entry.name, "folders": {k: str(v) for k, v in folders.items()}, "files": files})
        return
    for each, folder in folders.items():
        print(f"{each}: {'as it should be' if check else 'here'}, {folder}")


def export(
    model: Annotated[str, typer.Argument(help="A model's name or checkpoint folder.")],
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    layout: Annotated[Literal["sdar"], typer.Option(help="Of the files: sdar, as SGLang serves it.")] = "sdar",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Write a block-causal model as a folder that other engines serve.

    Example: `unmask export runs/mine/model exported --layout sdar --dtype bfloat16`
    """
    from unmask.checkpoints.save import SGLANG_MASK

    lm = load(model, "cpu", dtype, "torch")
    lm.save_pretrained(folder, layout)
    mask = lm.config.mask_token_id
    block = lm.config.block_length
    served = mask == SGLANG_MASK
    if as_json:
        print_record({"folder": str(folder), "mask_token_id": mask, "block_length": block, "sglang_mask": served})
        return
    print(f"written to {folder}: mask {mask}, blocks of {block}")
    if not served:
        print(f"SGLang 0.5.23 takes {SGLANG_MASK} for the mask of every SDAR and would not decode this one; see docs")
