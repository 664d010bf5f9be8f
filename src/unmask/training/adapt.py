"""From an AR model to one that drafts: its own text, then an adapter trained on it (a recipe with model.base)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console

from unmask.checkpoints import adapter_files, hub
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.safetensors import read_tensors, write_tensors
from unmask.checkpoints.save import checkpoint_at
from unmask.errors import UnmaskError
from unmask.models import adapter
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer
from unmask.objectives.drafts import Drafts
from unmask.training.dialogues import Dialogues
from unmask.training.precision import choose_precision
from unmask.training.progress import TextProgress, plot_accepted
from unmask.training.recipe import AdapterShape, AdaptRecipe, own_text
from unmask.training.self_text import make_text
from unmask.training.trainer import Material, Trainer


def adapter_config(shape: AdapterShape, base: ModelConfig) -> ModelConfig:
    """That of the adapted base; raises UnmaskError for a base that can't be one."""
    return adapter.adapted_config(
        base, shape.block_length, rank=shape.adapter_rank, width=shape.adapter_width, chain=shape.chain_width
    )


def adapt(recipe: AdaptRecipe, output: Path, stage: str = "all", console: Console | None = None) -> Path:
    """Text by the base into `output`/text, an adapter trained on it in `output`/adapter, the finished model in
    `output`/model; returns the folder that was written last.

    stage: `text`, `train` or `all`. Either goes on where it was cut off. A recipe whose data.files lie
    elsewhere is trained on them, and `all` makes no text for it.
    """
    if stage not in ("text", "train", "all"):
        raise UnmaskError(f"stage '{stage}' is unknown; use text, train or all")
    folder = output / "text"
    if stage == "text" or (stage == "all" and recipe.data.files == own_text(output)[0]):
        from unmask.lm import DiffusionLM

        config = replace(recipe.text, length=recipe.text.length or recipe.data.length)
        gpu = torch.cuda.is_available()
        lm = DiffusionLM.from_pretrained(recipe.model.base, "cuda" if gpu else "cpu", "bfloat16" if gpu else None)
        adapter_config(recipe.model, lm.config)
        with TextProgress(config.held_tokens + config.tokens, console or Console()) as progress:
            make_text(lm, config, folder, recipe.seed, progress.show)
    if stage == "text":
        return folder
    return AdapterTrainer(recipe, output / "adapter", console, output / "model").run()


def draft_vocabulary(ids: np.ndarray, size: int, vocab_size: int, banned: int) -> torch.Tensor:
    """The tokens that drafts may propose, ascending: those of the text by frequency, then the lowest ids,
    which a byte-pair vocabulary learned first (FR-Spec, arXiv 2502.14856)."""
    count = np.bincount(ids, minlength=vocab_size)
    count[banned] = -1
    order = np.lexsort((np.arange(vocab_size), -count))[: min(size, vocab_size - 1)]
    return torch.from_numpy(np.sort(order))


def make_network(recipe: AdaptRecipe, dialogues: Dialogues) -> Transformer:
    """The frozen base, in the precision of the run, with an adapter to train: a fresh one, or that of model.start."""
    shape = recipe.model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, _ = choose_precision(recipe.training.precision, device)
    base = Checkpoint.open(shape.base, dtype=str(dtype).removeprefix("torch.")).network()
    config = adapter_config(shape, base.config)
    network = adapter.attach(base, config)
    started = adapter_files.read(hub.find(shape.start)) if shape.start else {}
    vocabulary = draft_vocabulary(
        dialogues.tokens.ids, shape.draft_vocabulary, config.vocab_size, cast(int, config.mask_token_id)
    )
    earlier = started.pop("draft_vocabulary", vocabulary).long()
    # of one size the tokens of the start are kept: they are counted on more text
    network.draft_vocabulary = earlier if len(earlier) == len(vocabulary) else vocabulary
    adapter.put(network, adapter.initial(network, recipe.seed) | {k: t.float() for k, t in started.items()})
    for parameter in adapter.own_parameters(network).values():
        parameter.requires_grad_(True)
    return network


class AdapterTrainer(Trainer):
    """Trains an adapter in `folder`; its finished model, in `model_folder`, is the adapter alone."""

    def __init__(
        self, recipe: AdaptRecipe, folder: Path, console: Console | None = None, model_folder: Path | None = None
    ) -> None:
        dialogues = Dialogues(recipe.data.files, recipe.data.length, recipe.seed)
        held = Dialogues(recipe.data.validation, recipe.data.length, 0) if recipe.data.validation else None
        network = make_network(recipe, dialogues)
        saved = folder / "draft_vocabulary.safetensors"
        if saved.is_file():  # text made since must not change what a resumed run proposes
            network.draft_vocabulary = read_tensors(saved)["draft_vocabulary"]
        else:
            write_tensors(saved, {"draft_vocabulary": cast(torch.Tensor, network.draft_vocabulary)})
        super().__init__(recipe, folder, console, Material(network, dialogues, held))
        self.base = recipe.model.base
        if self.base not in hub.ENTRIES and Path(self.base).exists():
            self.base = str(Path(self.base).resolve())  # to be found from anywhere
        self.model_folder = model_folder or self.model_folder

    def _describe(self, folder: Path) -> None:
        """A state of this run is no model: what its base has is not in it."""

    def _save_model(self, finished: dict[str, torch.Tensor]) -> None:
        slots = self.config.batch_size * cast(Drafts, self.recipe.objective).slots
        title = f"{self.recipe.name}: held-out drafts"
        with checkpoint_at(self.model_folder) as folder:
            adapter_files.save(folder, self.network, finished, self.base)
            self._save_curve(folder, f"{self.recipe.name}: drafts")
            plot_accepted(self.progress.history, slots, folder / "drafts.png", title)
