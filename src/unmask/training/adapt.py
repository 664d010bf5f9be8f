"""From an AR model to one that drafts: its own text, then an adapter trained on it (a recipe with model.base)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.models import adapter, catalogue, checkpoint
from unmask.models.transformer import Transformer
from unmask.training.curve import draw_curve
from unmask.training.dialogues import Dialogues
from unmask.training.recipe import Recipe
from unmask.training.trainer import Trainer


def draft_vocabulary(ids: np.ndarray, size: int, vocab_size: int, banned: int) -> torch.Tensor:
    """The tokens that drafts may propose, ascending: those of the text by frequency, then the lowest ids,
    which a byte-pair vocabulary learned first (FR-Spec, arXiv 2502.14856)."""
    count = np.bincount(ids, minlength=vocab_size)
    count[banned] = -1
    order = np.lexsort((np.arange(vocab_size), -count))[: min(size, vocab_size - 1)]
    return torch.from_numpy(np.sort(order))


def make_network(recipe: Recipe, dialogues: Dialogues) -> Transformer:
    """The frozen base in bfloat16 with a fresh adapter to train; recipe.model holds base, adapter_rank,
    block_length and draft_vocabulary (a count of tokens)."""
    options = {"adapter_rank": 64, "block_length": 8, "draft_vocabulary": 16384, **recipe.model}
    unknown = options.keys() - {"base", "adapter_rank", "block_length", "draft_vocabulary"}
    if unknown or not isinstance(options.get("base"), str):
        raise UnmaskError("recipe: model of an adapter names its base, adapter_rank, block_length, draft_vocabulary")
    base, _ = checkpoint.load(catalogue.find(options["base"]), dtype=torch.bfloat16)
    config = adapter.adapted_config(base.config, options["adapter_rank"], options["block_length"])
    network = adapter.attach(base, config)
    adapter.put(network, adapter.initial(network, recipe.seed))
    for parameter in adapter.own_parameters(network).values():
        parameter.requires_grad_(True)
    size, banned = options["draft_vocabulary"], cast(int, config.mask_token_id)
    network.draft_vocabulary = draft_vocabulary(dialogues.ids, size, config.vocab_size, banned)
    return network


class AdapterTrainer(Trainer):
    """Trains an adapter; its finished model is a folder with the adapter alone."""

    def __init__(self, recipe: Recipe, folder: Path, console: Console | None = None) -> None:
        if recipe.data.format != "dialogues":
            raise UnmaskError("recipe: an adapter is trained on data.format 'dialogues'")
        vocabulary_source = Dialogues(recipe.data.files, recipe.data.length, recipe.seed)
        saved = folder / "draft_vocabulary.safetensors"
        network = make_network(recipe, vocabulary_source)
        if saved.is_file():  # text made since must not change what a resumed run proposes
            network.draft_vocabulary = checkpoint.read_tensors(saved)["draft_vocabulary"]
        else:
            assert network.draft_vocabulary is not None
            checkpoint.write_tensors(saved, {"draft_vocabulary": network.draft_vocabulary})
        super().__init__(recipe, folder, console, network)

    def _save_model(self) -> None:
        adapter.save(self.folder / "model", self.network, self.best or self.ema, self.recipe.model["base"])
        history: list[dict[str, Any]] = self.history
        write_text(self.folder / "model" / "curve.jsonl", "".join(json.dumps(r) + "\n" for r in history))
        draw_curve(self.history, self.folder / "model" / "curve.png", f"{self.recipe.name}: drafts")
