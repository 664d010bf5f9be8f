"""`unmask train`, `unmask finetune` and `unmask adapt`: what a recipe describes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.errors import UnmaskError

Overrides = Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")]
Push = Annotated[
    str | None, typer.Option(help="Upload the finished model to OWNER/NAME on the hub, made private if it is new.")
]
Output = Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")]


def _read(recipe: Path, overrides: list[str] | None, output: Path | None, command: str, problem: str) -> Any:
    """A recipe of a command, and the folder of its run; raises UnmaskError for one of another command.

    The commands import what runs it only after that: it takes seconds.
    """
    from unmask.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or [], output)
    if read.command != command:
        raise UnmaskError(f"recipe {recipe} {problem}; run `unmask {read.command} {recipe}`")
    return read, output or Path("runs") / read.name


def _pushed(push: str | None, run: Callable[[], Path]) -> None:
    """Runs a training, says where its model is, and uploads it where that is asked for, by the first process."""
    send = None
    if push is not None and os.environ.get("RANK", "0") == "0":
        from unmask.training.push import open_repository

        send = open_repository(push)
    written = run()
    print(f"model written to {written}")
    if send is not None:
        print(f"model pushed to {send(written)}")


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see the recipes folder.")],
    overrides: Overrides = None,
    output: Output = None,
    push: Push = None,
) -> None:
    """Train a model; started again, it goes on from its newest checkpoint.

    Example: `unmask train recipes/austen.yaml training.steps=200 --output runs/try`
    """
    read, folder = _read(recipe, overrides, output, "train", "starts from a base")
    from unmask.training.trainer import Trainer

    _pushed(push, lambda: Trainer(read, folder).run())


def finetune(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with a `base`; `unmask recipes show lora` is one.")],
    overrides: Overrides = None,
    output: Output = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what a run would do, with examples.")] = False,
    push: Push = None,
) -> None:
    """Fine-tune a model on messages, prompts with responses, or text; started again, it goes on.

    The base is anything that loads. LoRA or all weights; an autoregressive base stays one or becomes a diffusion model,
    as the objective says.

    Example: `unmask finetune my-lora.yaml training.steps=200 --dry-run`
    """
    read, folder = _read(recipe, overrides, output, "finetune", "names no base to fine-tune")
    from unmask.training.finetune import finetune as run

    if dry_run:
        run(read, folder, dry_run)
    else:
        _pushed(push, lambda: run(read, folder))


def adapt(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with a model.base; recipes/default.yaml is one.")],
    overrides: Overrides = None,
    output: Output = None,
    stage: Annotated[str, typer.Option(help="text, train or all.")] = "all",
) -> None:
    """Teach an autoregressive model to draft, on text that it writes itself; started again, it goes on.

    The text goes to OUTPUT/text, the training to OUTPUT/adapter, the finished model to OUTPUT/model.

    Example: `unmask adapt recipes/default.yaml text.tokens=100000 training.steps=200 --output runs/try`
    """
    read, folder = _read(recipe, overrides, output, "adapt", "names no model.base to adapt")
    from unmask.training.adapt import adapt as run

    print(f"{'text' if stage == 'text' else 'model'} written to {run(read, folder, stage)}")
