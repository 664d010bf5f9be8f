"""`unmask train`, `unmask finetune` and `unmask adapt`: what a recipe describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.errors import UnmaskError

Overrides = Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")]
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


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see the recipes folder.")],
    overrides: Overrides = None,
    output: Output = None,
) -> None:
    """Train a model; started again, it goes on from its newest checkpoint.

    Example: `unmask train recipes/austen.yaml training.steps=200 --output runs/try`
    """
    read, folder = _read(recipe, overrides, output, "train", "starts from a base")
    from unmask.training.trainer import Trainer

    print(f"model written to {Trainer(read, folder).run()}")


def finetune(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with a `base`; `unmask recipes show lora` is one.")],
    overrides: Overrides = None,
    output: Output = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what a run would do, with examples.")] = False,
) -> None:
    """Fine-tune a model on messages, prompts with responses, or text; started again, it goes on.

    The base is anything that loads. LoRA or all weights; an autoregressive base stays one or becomes a diffusion model,
    as the objective says.

    Example: `unmask finetune my-lora.yaml training.steps=200 --dry-run`
    """
    read, folder = _read(recipe, overrides, output, "finetune", "names no base to fine-tune")
    from unmask.training.finetune import finetune as run

    written = run(read, folder, dry_run)
    if not dry_run:
        print(f"model written to {written}")


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
