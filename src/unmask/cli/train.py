"""`unmask train`: train a model from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unmask.errors import UnmaskError


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see the recipes folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
) -> None:
    """Train a model; started again, it goes on from its newest checkpoint.

    Example: `unmask train recipes/austen.yaml training.steps=200 --output runs/try`
    """
    from unmask.training.recipe import TrainRecipe, read_recipe

    read = read_recipe(recipe, overrides or [])
    if not isinstance(read, TrainRecipe):
        raise UnmaskError(f"recipe {recipe} starts from a base; run `unmask {read.command} {recipe}`")
    from unmask.training.trainer import Trainer  # after the recipe is known to be good: it imports for seconds

    folder = Trainer(read, output or Path("runs") / read.name).run()
    print(f"model written to {folder}")
