"""A recipe: everything a training run is made of, read from YAML, any field overridable."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from unmask.decoding.methods import DecodingDefaults
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig, build
from unmask.objectives.distill import CertaintyForcing, Distilled
from unmask.objectives.drafts import Drafts
from unmask.objectives.masked import AR, BD3LM, MDLM
from unmask.objectives.objective import Objective
from unmask.objectives.score import DUO, SEDD
from unmask.training.data import DataConfig
from unmask.training.lora import LoraConfig
from unmask.training.precision import Precision
from unmask.training.self_text import KINDS, TextConfig

OBJECTIVES: dict[str, type[Objective]] = {
    "ar": AR,
    "mdlm": MDLM,
    "bd3lm": BD3LM,
    "sedd": SEDD,
    "duo": DUO,
    "drafts": Drafts,
    "distill": Distilled,
    "certainty": CertaintyForcing,
}
LARGEST_VOCABULARY = 2**22  # stands in for a tokenizer's until there is one


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
    precision: Precision = "no"  # of the products: f32, bf16, or auto, bf16 where the machine computes in it
    gradient_checkpointing: bool = False  # blocks are computed again in the backward pass, to hold less
    compile: bool = False  # torch.compile, block by block
    samples: int = 0  # held-out prompts that are answered at every check of a fine-tuning, and scored
    threads: int = 0  # CPU threads per process; 0: torch's default
    save_every: int = 200
    validate_every: int = 200
    validation_rows: int = 32


@dataclass(frozen=True)
class AdapterShape:
    """The adapter that a base is given: sizes, a count of tokens, and what it starts from."""

    base: str  # a model's name or path
    adapter_rank: int = 0
    adapter_width: int = 0
    chain_width: int = 0
    block_length: int = 4
    draft_vocabulary: int = 16384  # tokens that drafts may propose
    start: str = ""  # name or path of an adapted model of the same base to go on from; what that lacks starts fresh


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training run is made of."""

    command: ClassVar[str]  # of `unmask` that runs it
    name: str
    objective: Objective
    data: DataConfig
    training: TrainingConfig
    seed: int = 0
    decoding: dict[str, Any] = field(default_factory=dict)  # how the model decodes by default, over the objective's

    def check(self) -> None:
        """Raises UnmaskError naming the first impossible value."""
        training = self.training
        data = self.data
        if self.seed < 0:
            raise UnmaskError(f"recipe: seed must be at least 0, got {self.seed}")
        DecodingDefaults.read(self.decoding, "recipe: decoding")
        self.within(
            {
                "training.steps": training.steps >= 1,
                "training.batch_size": training.batch_size >= 1,
                "training.micro_batch_size": training.micro_batch_size >= 0,
                "training.learning_rate": 0 < training.learning_rate < 10,
                "training.warmup_steps": training.warmup_steps >= 0,
                "training.final_learning_rate": 0 <= training.final_learning_rate <= 1,
                "training.weight_decay": 0 <= training.weight_decay < 10,
                "training.betas": len(training.betas) == 2 and all(0 <= beta < 1 for beta in training.betas),
                "training.clip_norm": training.clip_norm > 0,
                "training.ema": 0 <= training.ema < 1,
                "training.save_every": training.save_every >= 1,
                "training.validate_every": training.validate_every >= 1,
                "training.validation_rows": training.validation_rows >= 1,
                "training.threads": training.threads >= 0,
                "training.samples": training.samples >= 0,
                "data.length": data.length >= 2,
                "data.cut": 0 <= data.cut <= 1,
                "data.vocab_size": data.vocab_size >= 258 or data.tokenizer != "bpe",
                "data.files": len(data.files) > 0,
                "data.answer_block": data.answer_block >= 0,
            }
        )

    def within(self, limits: Mapping[str, bool]) -> None:
        """Refuses the first `section.field` that is not within its limits."""
        for name, fine in limits.items():
            if not fine:
                section, key = name.split(".")
                raise UnmaskError(f"recipe: {name} has the impossible value {getattr(getattr(self, section), key)!r}")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(Recipe):
    """A network trained from nothing. `model` holds fields of ModelConfig but for what the objective and the tokenizer
    settle: layout, head shift, vocabulary, special tokens (whose ids may be given)."""

    command: ClassVar[str] = "train"
    model: dict[str, Any]

    def check(self) -> None:
        super().check()
        if isinstance(self.objective, Drafts):
            raise UnmaskError("recipe: objective drafts adapts a base: name it as model.base and run `unmask adapt`")
        if self.objective.needs_teacher:
            raise UnmaskError("recipe: the objective learns from a base: name it as base and run `unmask finetune`")
        for name in ("adapter_rank", "adapter_width", "chain_width", "attention"):
            if self.model.get(name):
                raise UnmaskError(f"recipe: model.{name} is of adapters and loaded checkpoints; leave it out")
        config = self.network_config({"vocab_size": LARGEST_VOCABULARY})
        if config.max_length < self.data.length:
            raise UnmaskError(
                f"recipe: model.max_length {config.max_length} is less than data.length {self.data.length}"
            )

    def network_config(self, of_tokenizer: Mapping[str, Any]) -> ModelConfig:
        """The network's config, of_tokenizer being its vocabulary and special ids; a contradiction between the
        objective and `model` raises UnmaskError."""
        settled = settle(self.objective, self.model)
        given = {"max_length": self.data.length, **of_tokenizer, **self.model, **settled}
        return ModelConfig.from_dict(given, "recipe: model")


def settle(objective: Objective, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig that follow from the objective; a field of `shape` that says otherwise is refused."""
    try:
        settled = objective.network(shape)
    except ValueError as error:
        raise UnmaskError(f"recipe: objective {error}") from None
    for name, value in settled.items():
        given = shape.get(name, value)
        if (tuple(given) if isinstance(given, list) else given) != value:
            raise UnmaskError(
                f"recipe: model.{name} {given!r} contradicts the objective, which makes it {value!r}; leave it out"
            )
    return settled


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe(Recipe):
    """An autoregressive base taught to draft by an adapter, on text that it writes itself."""

    command: ClassVar[str] = "adapt"
    model: AdapterShape
    text: TextConfig = field(default_factory=TextConfig)

    def check(self) -> None:
        super().check()
        if not isinstance(self.objective, Drafts):
            raise UnmaskError("recipe: an adapter is trained with objective.kind 'drafts'")
        if self.data.format != "dialogues":
            raise UnmaskError("recipe: an adapter is trained on data.format 'dialogues'")
        least = {"adapter_rank": 0, "adapter_width": 0, "chain_width": 0, "block_length": 2, "draft_vocabulary": 1}
        for name, low in least.items():
            if getattr(self.model, name) < low:
                raise UnmaskError(f"recipe: model.{name} must be at least {low}, got {getattr(self.model, name)}")
        text = self.text
        self.within(
            {
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
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """A model that is loaded and trained on, all of it or by LoRA. The objective may be another than it was made with:
    an autoregressive base becomes a diffusion model by `mdlm` or `bd3lm`, and then says `objective.shift`: whether its
    head goes on scoring the next position."""

    command: ClassVar[str] = "finetune"
    base: str  # a model's name, folder, GGUF file, or a PEFT adapter's folder
    lora: LoraConfig = field(default_factory=LoraConfig)
    shift_is_given: bool = False  # set by the reader: whether the recipe says objective.shift

    def check(self) -> None:
        super().check()
        if isinstance(self.objective, Drafts):
            raise UnmaskError("recipe: objective drafts trains an adapter; name the base as model.base, `unmask adapt`")
        if self.data.format == "dialogues":
            raise UnmaskError("recipe: data.format 'dialogues' is for adapters; fine-tune on messages, prompts or text")
        self.within(
            {
                "lora.rank": self.lora.rank >= 0,
                "lora.alpha": 0 < self.lora.alpha < 1e4,
                "lora.targets": len(self.lora.targets) > 0,
            }
        )


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
    """Builds the recipe from plain mappings: a fine-tuning where there is a `base`, an adapter where `model` names one,
    else a new network."""
    if not isinstance(tree, dict):
        raise UnmaskError(f"{source}: a recipe is a mapping of {', '.join(f.name for f in fields(TrainRecipe))}")
    if "base" in tree:
        return _finetune(tree, source)
    model = tree.get("model")
    if not isinstance(model, dict):
        raise UnmaskError(f"{source}: section 'model' is missing or not a mapping")
    adapts = "base" in model
    made = dict(tree)
    made["training"] = build(TrainingConfig, _plain_no(tree.get("training", {})), f"{source}: training")
    made["objective"] = read_objective(tree.get("objective"), source)
    if adapts:
        made["data"] = _own_text(tree, output)
        made["model"] = build(AdapterShape, model, f"{source}: model")
        made["text"] = build(TextConfig, tree.get("text", {}), f"{source}: text")
    made["data"] = build(DataConfig, made.get("data", {}), f"{source}: data")
    recipe: Recipe = build(AdaptRecipe if adapts else TrainRecipe, made, source)
    recipe.check()
    return recipe


def _finetune(tree: dict[str, Any], source: str) -> FinetuneRecipe:
    """Whole documents in rows by default, and answers that begin blocks where there are blocks."""
    objective = read_objective(tree.get("objective"), source)
    data = tree.get("data", {})
    if isinstance(data, dict):
        block = objective.block_length if isinstance(objective, BD3LM) else 0
        whole = data.get("whole", True)
        data = {"whole": whole, "answer_block": block if whole else 0, **data}
    made = {
        **tree,
        "objective": objective,
        "data": build(DataConfig, data, f"{source}: data"),
        "training": build(TrainingConfig, _plain_no(tree.get("training", {})), f"{source}: training"),
        "lora": build(LoraConfig, tree.get("lora", {}), f"{source}: lora"),
        "shift_is_given": "shift" in tree["objective"],
    }
    recipe: FinetuneRecipe = build(FinetuneRecipe, made, source)
    recipe.check()
    return recipe


def _plain_no(training: Any) -> Any:
    """YAML reads a bare `no` as false."""
    if isinstance(training, dict) and training.get("precision") is False:
        return {**training, "precision": "no"}
    return training


def own_text(output: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns of the shards, to train on and held out, that `unmask adapt` writes into a run's folder."""
    held, train = (f"{glob.escape(str(output))}/text/{kind}-*.safetensors" for kind in KINDS)
    return (train,), (held,)


def _own_text(tree: dict[str, Any], output: Path | None) -> Any:
    """The data section; one that names no files reads what the base wrote into the run's folder."""
    data = tree.get("data", {})
    text = tree.get("text", {})
    if not isinstance(data, dict) or "files" in data:
        return data
    train, held = own_text(output or Path("runs") / str(tree.get("name")))
    nothing_held = isinstance(text, dict) and text.get("held_tokens") == 0
    return {"files": train, "validation": () if nothing_held else held, "format": "dialogues", **data}


def read_objective(section: Any, source: str) -> Objective:
    """The objective of a recipe's section; raises UnmaskError naming the flaw."""
    kind = section.get("kind") if isinstance(section, dict) else None
    if not isinstance(kind, str) or kind not in OBJECTIVES:
        raise UnmaskError(f"{source}: objective.kind is {kind!r}; use one of {', '.join(OBJECTIVES)}")
    options = {k: v for k, v in section.items() if k != "kind"}
    try:
        objective: Objective = build(OBJECTIVES[kind], options, f"{source}: objective")
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
