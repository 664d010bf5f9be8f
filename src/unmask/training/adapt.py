"""From an AR model to one that drafts: its own text, then an adapter trained on it (a recipe with model.base)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from unmask.checkpoints import catalogue, entries
from unmask.checkpoints import weights as checkpoint
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.models import adapter
from unmask.models.config import ModelConfig, build
from unmask.models.transformer import Transformer
from unmask.objectives.drafts import Drafts
from unmask.training.curve import draw_curve
from unmask.training.curve_drafts import draw_accepted
from unmask.training.dialogues import Dialogues
from unmask.training.progress import TextProgress
from unmask.training.recipe import Recipe, own_text
from unmask.training.self_text import make_text
from unmask.training.trainer import Trainer


@dataclass(frozen=True)
class AdapterOptions:
    """What recipe.model says of an adapter: a model's name or path, sizes, a count of tokens, and the name or path of
    an adapted model of the same base to go on from (what that lacks starts fresh)."""

    base: str
    adapter_rank: int = 0
    adapter_width: int = 0
    chain_width: int = 0
    block_length: int = 4
    draft_vocabulary: int = 16384  # tokens that drafts may propose
    start: str = ""

    @staticmethod
    def of(recipe: Recipe) -> AdapterOptions:
        """Raises UnmaskError for a recipe that is not one of an adapter, naming what is wrong."""
        if "base" not in recipe.model:
            raise UnmaskError(f"recipe '{recipe.name}' names no model.base to adapt; run it with `unmask train`")
        if not isinstance(recipe.objective, Drafts):
            raise UnmaskError("recipe: an adapter is trained with objective.kind 'drafts'")
        if recipe.data.format != "dialogues":
            raise UnmaskError("recipe: an adapter is trained on data.format 'dialogues'")
        options: AdapterOptions = build(AdapterOptions, recipe.model, "recipe: model")
        least = {"adapter_rank": 0, "adapter_width": 0, "chain_width": 0, "block_length": 2, "draft_vocabulary": 1}
        for name, low in least.items():
            if getattr(options, name) < low:
                raise UnmaskError(f"recipe: model.{name} must be at least {low}, got {getattr(options, name)}")
        return options

    def config(self, base: ModelConfig) -> ModelConfig:
        """That of the adapted base; raises UnmaskError for a base that can't be one."""
        sizes = (self.block_length, self.adapter_rank, self.adapter_width, self.chain_width)
        return adapter.adapted_config(base, *sizes)

    def lasting_base(self) -> str:
        """The base as an adapter's folder names it: a path is made absolute, to be found from anywhere."""
        path = Path(self.base)
        return str(path.resolve()) if self.base not in entries.ENTRIES and path.exists() else self.base


def adapt(recipe: Recipe, output: Path, stage: str = "all", console: Console | None = None) -> Path:
    """Text by the base into `output`/text, an adapter trained on it in `output`/adapter, the finished model in
    `output`/model; returns the folder that was written last.

    stage: `text`, `train` or `all`. Either goes on where it was cut off. A recipe whose data.files lie
    elsewhere is trained on them, and `all` makes no text for it.
    """
    options = AdapterOptions.of(recipe)
    if stage not in ("text", "train", "all"):
        raise UnmaskError(f"stage '{stage}' is unknown; use text, train or all")
    folder = output / "text"
    if stage == "text" or (stage == "all" and recipe.data.files == own_text(output)[0]):
        _write_text(recipe, options, folder, console or Console())
    if stage == "text":
        return folder
    return AdapterTrainer(recipe, output / "adapter", console, output / "model").run()


def _write_text(recipe: Recipe, options: AdapterOptions, folder: Path, console: Console) -> None:
    """The text stage, on a GPU where there is one."""
    from unmask.lm import DiffusionLM

    config = replace(recipe.text, length=recipe.text.length or recipe.data.length)
    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", None)
    lm = DiffusionLM.from_pretrained(options.base, device, dtype)
    options.config(lm.config)
    with TextProgress(config.held_tokens + config.tokens, console) as progress:
        make_text(lm, config, folder, recipe.seed, progress.update)


def draft_vocabulary(ids: np.ndarray, size: int, vocab_size: int, banned: int) -> torch.Tensor:
    """The tokens that drafts may propose, ascending: those of the text by frequency, then the lowest ids,
    which a byte-pair vocabulary learned first (FR-Spec, arXiv 2502.14856)."""
    count = np.bincount(ids, minlength=vocab_size)
    count[banned] = -1
    order = np.lexsort((np.arange(vocab_size), -count))[: min(size, vocab_size - 1)]
    return torch.from_numpy(np.sort(order))


def make_network(recipe: Recipe, dialogues: Dialogues) -> Transformer:
    """The frozen base, in the precision of the run, with an adapter to train: a fresh one, or that of model.start."""
    options = AdapterOptions.of(recipe)
    dtype = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    base, _ = checkpoint.load(catalogue.find(options.base), dtype=dtype)
    config = options.config(base.config)
    network = adapter.attach(base, config)
    started = adapter.read(catalogue.find(options.start)) if options.start else {}
    started.pop("draft_vocabulary", None)  # nothing learned depends on it; this text may need other tokens
    adapter.put(network, adapter.initial(network, recipe.seed) | {k: t.float() for k, t in started.items()})
    for parameter in adapter.own_parameters(network).values():
        parameter.requires_grad_(True)
    size, banned = options.draft_vocabulary, cast(int, config.mask_token_id)
    network.draft_vocabulary = draft_vocabulary(dialogues.ids, size, config.vocab_size, banned)
    return network


class AdapterTrainer(Trainer):
    """Trains an adapter in `folder`; its finished model, in `model_folder`, is the adapter alone."""

    def __init__(
        self, recipe: Recipe, folder: Path, console: Console | None = None, model_folder: Path | None = None
    ) -> None:
        self.options = AdapterOptions.of(recipe)
        vocabulary_source = Dialogues(recipe.data.files, recipe.data.length, recipe.seed)
        saved = folder / "draft_vocabulary.safetensors"
        network = make_network(recipe, vocabulary_source)
        if saved.is_file():  # text made since must not change what a resumed run proposes
            network.draft_vocabulary = checkpoint.read_tensors(saved)["draft_vocabulary"]
        else:
            assert network.draft_vocabulary is not None
            checkpoint.write_tensors(saved, {"draft_vocabulary": network.draft_vocabulary})
        super().__init__(recipe, folder, console, network)
        self.model_folder = model_folder or self.model_folder

    def _save_model(self) -> None:
        folder, history = self.model_folder, cast(list[dict[str, Any]], self.history)
        adapter.save(folder, self.network, self.best or self.ema, self.options.lasting_base())
        write_text(folder / "curve.jsonl", "".join(json.dumps(r) + "\n" for r in history))
        draw_curve(self.history, folder / "curve.png", f"{self.recipe.name}: drafts")
        slots = self.config.batch_size * cast(Drafts, self.recipe.objective).slots
        draw_accepted(self.history, slots, folder / "drafts.png", f"{self.recipe.name}: held-out drafts")
