"""Every field of a recipe, from the dataclasses that read it; and the recipes that come with the package."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from unmask.checkpoints.lora import LoraConfig
from unmask.objectives.masked import Curriculum
from unmask.training.data import DataConfig
from unmask.training.recipe import (
    OBJECTIVES,
    AdapterShape,
    AdaptRecipe,
    FinetuneRecipe,
    TrainingConfig,
    TrainRecipe,
)
from unmask.training.self_text import TextConfig

RECIPES = Path(__file__).with_name("recipes")
HIDDEN = ("shift_is_given",)


def packaged() -> dict[str, Path]:
    """The recipes that come along, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def reference() -> str:
    """The reference of recipes in Markdown: each section's fields with type, default and meaning."""
    parts = ["# Fields of a recipe", ""]
    for command in (TrainRecipe, FinetuneRecipe, AdaptRecipe):
        parts += _section(f"`unmask {command.command}`", command)
    sections: dict[str, type] = {"data": DataConfig, "training": TrainingConfig, "lora": LoraConfig}
    sections |= {"model (`unmask adapt`)": AdapterShape, "text (`unmask adapt`)": TextConfig}
    for name, kind in sections.items():
        parts += _section(name, kind)
    for name, objective in OBJECTIVES.items():
        parts += _section(f"objective, kind: {name}", objective)
    parts += _section("objective.curriculum (block diffusion)", Curriculum)
    return "\n".join(parts)


def _section(title: str, kind: type) -> list[str]:
    about = " ".join((inspect.getdoc(kind) or "").split())
    rows = [f"## {title}", "", about, "", "| field | type | default | |", "|---|---|---|---|"]
    comments = _comments(kind)
    for field in fields(kind):
        if field.name not in HIDDEN:
            shown = str(field.type).replace("|", "or")
            rows.append(f"| `{field.name}` | {shown} | {_default(field)} | {comments.get(field.name, '')} |")
    return [*rows, ""]


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is MISSING:
        return "required"
    return "its own" if field.default_factory is not dict else "`{}`"


def _comments(kind: type) -> dict[str, str]:
    """What stands behind each field in the source, of the class and of those that it builds on."""
    out: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        for line in inspect.getsource(each).splitlines():
            found = re.match(r"    (\w+): [^#]*#\s*(.*)", line)
            if found:
                out[found[1]] = found[2]
    return out
