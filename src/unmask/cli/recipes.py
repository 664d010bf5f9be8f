"""`unmask recipes`: recipes to start from, and every field that one may have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

recipes = typer.Typer(no_args_is_help=True, help="Recipes of training: list, show, check, and all their fields.")


@recipes.command("list")
def list_recipes() -> None:
    """Names of the recipes that come along, with what each is for."""
    from unmask.training.reference import packaged

    for name, path in packaged().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:10} {first}")


@recipes.command("show")
def show(name: Annotated[str, typer.Argument(help="A name of `unmask recipes list`, or `fields`.")]) -> None:
    """Print a recipe, to be kept and changed: `unmask recipes show lora > my-lora.yaml`."""
    from unmask.errors import UnmaskError
    from unmask.training.reference import packaged, reference

    found = packaged()
    if name == "fields":
        print(reference())
    elif name in found:
        print(found[name].read_text(encoding="utf-8"), end="")
    else:
        raise UnmaskError(f"recipe '{name}' is unknown; there are {', '.join(found)}, and `fields` lists all fields")


@recipes.command("check")
def check(
    recipe: Annotated[Path, typer.Argument(help="A YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
) -> None:
    """Read a recipe and say which command runs it, or what is wrong with it."""
    from unmask.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or [])
    print(f"{recipe} is fine; run: unmask {read.command} {recipe}")
