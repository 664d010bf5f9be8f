"""`unmask adapt`: teach an AR model to draft."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.errors import UnmaskError


def adapt(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with a model.base; recipes/default.yaml is one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    stage: Annotated[str, typer.Option(help="text, train or all.")] = "all",
) -> None:
    """Teach an autoregressive model to draft, on text that it writes itself; started again, it goes on.

    The text goes to OUTPUT/text, the training to OUTPUT/adapter, the finished model to OUTPUT/model.

    Example: `unmask adapt recipes/default.yaml text.tokens=100000 training.steps=200 --output runs/try`
    """
    from unmask.training.recipe import AdaptRecipe, read_recipe

    read = read_recipe(recipe, overrides or [], output)
    if not isinstance(read, AdaptRecipe):
        raise UnmaskError(f"recipe {recipe} names no model.base to adapt; run `unmask {read.command} {recipe}`")
    from unmask.training import adapt as adaptation  # after the recipe is known to be good: it imports for seconds

    folder = adaptation.adapt(read, output or Path("runs") / read.name, stage)
    print(f"{'text' if stage == 'text' else 'model'} written to {folder}")
