"""A recipe: everything a training run is made of, read from YAML, any field overridable."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from unmask.errors import UnmaskError
from unmask.models.config import build
from unmask.objectives.drafts import Drafts
from unmask.objectives.masked import OBJECTIVES, Objective
from unmask.objectives.score import TOLD
from unmask.training.data import DataConfig
from unmask.training.self_text import KINDS, TextConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how: counts are of optimiser steps and, for batches, of rows over all ranks."""

    steps: int
    batch_size: int
    micro_batch_size: int = 0  # rows per forward on each rank; 0: all of the rank's rows
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_learning_rate: float = 0.1  # share of the peak that cosine decay ends at
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices by Muon, the rest by AdamW
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    ema: float = 0.99
    precision: Literal["no", "bf16"] = "no"
    threads: int = 0  # CPU threads per process; 0: torch's default
    save_every: int = 200
    validate_every: int = 200
    validation_rows: int = 32


@dataclass(frozen=True)
class Recipe:
    """One training run. `model` holds ModelConfig fields except the vocabulary and special tokens, or the
    fields of an adapter, of which `base` is one; `text` is read for an adapter only."""

    name: str
    seed: int
    objective: Objective
    model: dict[str, Any]
    data: DataConfig
    training: TrainingConfig
    text: TextConfig = field(default_factory=TextConfig)

    def check(self) -> None:
        """Raises UnmaskError naming the first impossible value."""
        t, d, text = self.training, self.data, self.text
        limits = {
            "training.steps": t.steps >= 1,
            "training.batch_size": t.batch_size >= 1,
            "training.micro_batch_size": t.micro_batch_size >= 0,
            "training.learning_rate": 0 < t.learning_rate < 10,
            "training.warmup_steps": t.warmup_steps >= 0,
            "training.final_learning_rate": 0 <= t.final_learning_rate <= 1,
            "training.weight_decay": 0 <= t.weight_decay < 10,
            "training.betas": len(t.betas) == 2 and all(0 <= beta < 1 for beta in t.betas),
            "training.clip_norm": t.clip_norm > 0,
            "training.ema": 0 <= t.ema < 1,
            "training.save_every": t.save_every >= 1,
            "training.validate_every": t.validate_every >= 1,
            "training.validation_rows": t.validation_rows >= 1,
            "training.threads": t.threads >= 0,
            "data.length": d.length >= 2,
            "data.cut": 0 <= d.cut <= 1,
            "data.vocab_size": d.vocab_size >= 258 or d.tokenizer != "bpe",
            "data.files": len(d.files) > 0,
            "text.tokens": text.tokens >= 1,
            "text.held_tokens": text.held_tokens >= 0,
            "text.batch": text.batch >= 1,
            "text.length": text.length >= 0,
            "text.turn": text.turn >= 1,
            "text.turn_temperature": 0 < text.turn_temperature <= 100,  # without any, all turns were one
            "text.turn_top_k": text.turn_top_k >= 0,
            "text.answer_temperature": 0 <= text.answer_temperature <= 100,
            "text.answer_top_k": text.answer_top_k >= 0,
            "text.openings": len(text.openings) > 0,
        }
        if self.seed < 0:
            raise UnmaskError(f"recipe: seed must be at least 0, got {self.seed}")
        for name, fine in limits.items():
            if not fine:
                section, field = name.split(".")
                raise UnmaskError(f"recipe: {name} has the impossible value {getattr(getattr(self, section), field)!r}")


def read_recipe(path: Path, overrides: list[str], output: Path | None = None) -> Recipe:
    """Reads a YAML recipe and applies `section.field=value` overrides; raises UnmaskError on any flaw.

    output: folder of the run, runs/NAME by default; the text that a base writes is looked for there.
    """
    if not path.is_file():
        raise UnmaskError(f"recipe {path} does not exist; see the recipes folder")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        for override in overrides:
            _apply(tree, override)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UnmaskError(f"recipe {path} is not valid YAML ({str(error).splitlines()[0]})") from None
    return parse_recipe(tree, str(path), output)


def parse_recipe(tree: Any, source: str, output: Path | None = None) -> Recipe:
    """Builds the recipe from plain mappings."""
    if not isinstance(tree, dict):
        raise UnmaskError(f"{source}: a recipe is a mapping of {', '.join(f.name for f in fields(Recipe))}")
    sections = {"data": DataConfig, "training": TrainingConfig, "text": TextConfig}
    tree = {**tree, "data": _own_text(tree, output)}
    made = dict(tree)
    training = tree.get("training")
    if isinstance(training, dict) and training.get("precision") is False:  # YAML reads a bare `no` so
        tree["training"] = {**training, "precision": "no"}
    for name, cls in sections.items():
        made[name] = build(cls, tree.get(name, {}), f"{source}: {name}")
    if not isinstance(made.get("model"), dict):
        raise UnmaskError(f"{source}: section 'model' is missing or not a mapping")
    made["objective"] = _objective(tree.get("objective"), source)
    recipe: Recipe = build(Recipe, made, source)
    recipe.check()
    return recipe


def own_text(output: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns of the shards, to train on and held out, that `unmask adapt` writes into a run's folder."""
    held, train = ((f"{glob.escape(str(output))}/text/{kind}-*.safetensors",) for kind in KINDS)
    return train, held


def _own_text(tree: dict[str, Any], output: Path | None) -> Any:
    """The data section; of an adapter, one that names no files reads what the base wrote into the run's folder."""
    model, data, text = (tree.get(name, {}) for name in ("model", "data", "text"))
    if not isinstance(model, dict) or "base" not in model or not isinstance(data, dict) or "files" in data:
        return data
    train, held = own_text(output or Path("runs") / str(tree.get("name")))
    nothing_held = isinstance(text, dict) and text.get("held_tokens") == 0
    return {"files": train, "validation": () if nothing_held else held, "format": "dialogues", **data}


def _objective(section: Any, source: str) -> Objective:
    kind = section.get("kind") if isinstance(section, dict) else None
    known: dict[str, type[Objective]] = {**OBJECTIVES, **TOLD, "drafts": Drafts}
    if not isinstance(kind, str) or kind not in known:
        raise UnmaskError(f"{source}: objective.kind is {kind!r}; use one of {', '.join(known)}")
    options = {k: v for k, v in section.items() if k != "kind"}
    try:
        objective: Objective = build(known[kind], options, f"{source}: objective")
    except ValueError as error:
        raise UnmaskError(f"{source}: objective: {error}") from None
    return objective


def _apply(tree: Any, override: str) -> None:
    key, equals, value = override.partition("=")
    *path, last = key.split(".")
    node = tree
    for part in path:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
    if not equals or not isinstance(node, dict):
        raise UnmaskError(f"override '{override}' must read section.field=value, for example training.steps=100")
    node[last] = yaml.safe_load(value)
