"""A recipe: everything a training run is made of, read from YAML, any field overridable."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from unmask.checkpoints.lora import LoraConfig
from unmask.decoding.methods import DecodingDefaults
from unmask.decoding.options import check_ranges, option
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig, build
from unmask.objectives.consistency import DCD, SDTT, MaskedConsistency
from unmask.objectives.distill import CertaintyForcing, Distilled
from unmask.objectives.drafts import Drafts
from unmask.objectives.hybrid import Hybrid
from unmask.objectives.masked import AR, BD3LM, MDLM
from unmask.objectives.objective import Objective
from unmask.objectives.score import DUO, SEDD
from unmask.training.data import DataConfig
from unmask.training.precision import Precision
from unmask.training.self_text import KINDS, TextConfig

OBJECTIVES: dict[str, type[Objective]] = {
    "ar": AR,
    "mdlm": MDLM,
    "bd3lm": BD3LM,
    "hybrid": Hybrid,
    "sedd": SEDD,
    "duo": DUO,
    "drafts": Drafts,
    "distill": Distilled,
    "certainty": CertaintyForcing,
    "sdtt": SDTT,
    "consistency": MaskedConsistency,
    "dcd": DCD,
}
LARGEST_VOCABULARY = 2**22  # stands in for a tokenizer's until there is one
NAME = re.compile(r"[\w+-][\w+. -]{0,99}")  # of a run, and of its folder


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how: counts are of optimiser steps and, for batches, of rows over all ranks."""

    steps: int = option(MISSING, ge=1)
    batch_size: int = option(MISSING, ge=1)
    micro_batch_size: int = option(0, ge=0)  # rows per forward on each rank; 0: all of the rank's rows
    learning_rate: float = option(1e-3, gt=0, lt=10)
    warmup_steps: int = option(100, ge=0)
    final_learning_rate: float = option(0.1, ge=0, le=1)  # share of the peak that cosine decay ends at
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices by Muon, the rest by AdamW
    weight_decay: float = option(0.1, ge=0, lt=10)
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = option(1.0, gt=0)
    ema: float = option(0.99, ge=0, lt=1)
    precision: Precision = "no"  # of the products: f32, bf16, or auto, bf16 where the machine computes in it
    gradient_checkpointing: bool = False  # blocks are computed again in the backward pass, to hold less
    compile: bool = False  # torch.compile, block by block
    shard: bool = False  # each process holds its share of weights, gradients, average and moments (FSDP2)
    samples: int = option(0, ge=0)  # held-out prompts that are answered at every check of a fine-tuning, and scored
    threads: int = option(0, ge=0)  # CPU threads per process; 0: torch's default
    save_every: int = option(200, ge=1)
    validate_every: int = option(200, ge=1)
    validation_rows: int = option(32, ge=1)
    keep: Literal["best", "last"] = "best"  # weights of the check with the least loss on held-out rows, or of the end


@dataclass(frozen=True)
class AdapterShape:
    """The adapter that a base is given: sizes, a count of tokens, and what it starts from."""

    base: str  # a model's name or path
    adapter_rank: int = option(0, ge=0)
    adapter_width: int = option(0, ge=0)
    chain_width: int = option(0, ge=0)
    block_length: int = option(4, ge=2)
    draft_vocabulary: int = option(16384, ge=1)  # tokens that drafts may propose
    start: str = ""  # name or path of an adapted model of the same base to go on from; what that lacks starts fresh


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training run is made of."""

    command: ClassVar[str]  # of `unmask` that runs it
    name: str
    objective: Objective
    data: DataConfig
    training: TrainingConfig
    seed: int = option(0, ge=0)
    decoding: dict[str, Any] = field(default_factory=dict)  # how the model decodes by default, over the objective's

    def check(self) -> None:
        """Raises UnmaskError naming the first impossible value."""
        if not NAME.fullmatch(self.name):
            raise UnmaskError(
                f"recipe: name {self.name!r} cannot be a folder's name; use letters, digits, dots, dashes and spaces"
            )
        DecodingDefaults.read(self.decoding, "recipe: decoding")
        sections = {f"{section.name}.": getattr(self, section.name) for section in fields(self)}
        for prefix, section in {"": self, **sections}.items():
            try:
                if is_dataclass(section):
                    check_ranges(section)
                    _check_sizes(section)
            except UnmaskError as error:
                raise UnmaskError(f"recipe: {prefix}{str(error).removeprefix('option ')}") from None
        betas = self.training.betas
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise UnmaskError(f"recipe: training.betas must be two numbers from 0 to below 1, got {betas}")
        if self.data.vocab_size < 258 and self.data.tokenizer == "bpe":
            raise UnmaskError(f"recipe: data.vocab_size must be at least 258, got {self.data.vocab_size}")
        if not self.data.files:
            raise UnmaskError("recipe: data.files is empty")
        if self.training.shard:
            reasons = {
                "an objective with a teacher, whose copies are whole": self.objective.needs_teacher,
                "training.samples, which needs the whole network": self.training.samples > 0,
                "training.compile, which nobody has tried on a split network": self.training.compile,
                "`unmask adapt`, which trains little": self.command == "adapt",
            }
            for reason in (reason for reason, so in reasons.items() if so):
                raise UnmaskError(f"recipe: training.shard does not go with {reason}")


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
        try:
            settled = self.objective.network(self.model)
        except ValueError as error:
            raise UnmaskError(f"recipe: objective {error}") from None
        for name, value in settled.items():
            given = self.model.get(name, value)
            if (tuple(given) if isinstance(given, list) else given) != value:
                raise UnmaskError(
                    f"recipe: model.{name} {given!r} contradicts the objective, which makes it {value!r}; leave it out"
                )
        given = {"max_length": self.data.length, **of_tokenizer, **self.model, **settled}
        return ModelConfig.from_dict(given, "recipe: model")


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
        if not self.text.openings:
            raise UnmaskError("recipe: text.openings is empty")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """A model that is loaded and trained on, all of it or by LoRA. The objective may be another than it was made with:
    an autoregressive base becomes a diffusion model by `mdlm` or `bd3lm`, and then says `objective.shift`: whether its
    head goes on scoring the next position."""

    command: ClassVar[str] = "finetune"
    base: str  # a model's name, folder, GGUF file, or a PEFT adapter's folder
    teacher: str = ""  # of an objective that has one: a model's name or path; the base as the run begins if empty
    lora: LoraConfig = field(default_factory=LoraConfig)
    shift_is_given: bool = False  # set by the reader: whether the recipe says objective.shift

    def check(self) -> None:
        super().check()
        if isinstance(self.objective, Drafts):
            raise UnmaskError("recipe: objective drafts trains an adapter; name the base as model.base, `unmask adapt`")
        if self.data.format == "dialogues":
            raise UnmaskError("recipe: data.format 'dialogues' is for adapters; fine-tune on messages, prompts or text")
        if self.data.tokenizer_file:
            raise UnmaskError("recipe: data.tokenizer_file: a base is fine-tuned with its own tokenizer; leave it out")
        if not self.lora.targets:
            raise UnmaskError("recipe: lora.targets is empty")


def _check_sizes(section: Any) -> None:
    """Raises UnmaskError naming a whole number that no run can have."""
    for one in fields(section):
        value = getattr(section, one.name)
        end = 2**63 if one.name == "seed" else 2**31
        if isinstance(value, int) and value >= end:
            raise UnmaskError(f"option {one.name} must be below {end}, got {value}")


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
    objective = read_objective(tree.get("objective"), source)
    made: dict[str, Any] = {"training": {}, "data": {}, **tree, "objective": objective}
    training = made["training"]
    data = made["data"]
    model = tree.get("model")
    kind: type[Recipe] = AdaptRecipe if isinstance(model, dict) and "base" in model else TrainRecipe
    if "base" in tree:
        kind = FinetuneRecipe
        made["shift_is_given"] = "shift" in tree["objective"]
        if isinstance(data, dict):  # whole documents, and answers that begin blocks where there are blocks
            block = objective.block_length if isinstance(objective, BD3LM) and data.get("whole", True) else 0
            made["data"] = {"whole": True, "answer_block": block, **data}
    elif kind is AdaptRecipe and isinstance(data, dict) and "files" not in data:  # what the base wrote for this run
        train, held = own_text(output or Path("runs") / str(tree.get("name")))
        text = tree.get("text")
        nothing_held = isinstance(text, dict) and text.get("held_tokens") == 0
        made["data"] = {"files": train, "validation": () if nothing_held else held, "format": "dialogues", **data}
    if isinstance(training, dict) and training.get("precision") is False:  # YAML reads a bare `no` so
        made["training"] = {**training, "precision": "no"}
    recipe: Recipe = build(kind, made, source)
    recipe.check()
    return recipe


def own_text(output: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns of the shards, to train on and held out, that `unmask adapt` writes into a run's folder."""
    held, train = (f"{glob.escape(str(output))}/text/{kind}-*.safetensors" for kind in KINDS)
    return (train,), (held,)


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
