"""`unmask finetune`: train a model that there is on data of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.errors import UnmaskError


def finetune(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with a `base`; `unmask recipes show lora` is one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what a run would do, with examples.")] = False,
) -> None:
    """Fine-tune a model on messages, prompts with responses, or text; started again, it goes on.

    The base is anything that loads. LoRA or all weights; an autoregressive base stays one or becomes a diffusion model,
    as the objective says.

    Example: `unmask finetune my-lora.yaml training.steps=200 --dry-run`
    """
    from unmask.training.recipe import FinetuneRecipe, read_recipe

    read = read_recipe(recipe, overrides or [])
    if not isinstance(read, FinetuneRecipe):
        raise UnmaskError(f"recipe {recipe} names no base to fine-tune; run `unmask {read.command} {recipe}`")
    from unmask.training.finetune import finetune as run  # after the recipe is known to be good: it imports for seconds

    folder = run(read, output or Path("runs") / read.name, dry_run)
    if not dry_run:
        print(f"model written to {folder}")
