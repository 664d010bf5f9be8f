"""Folders of adapters: config.json (ours), adapter.json (name and hash of the base) and the adapter's own tensors.

The base is fetched and read where it lies.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoints.folder import ADAPTER, CONFIG, Folder, write_json
from unmask.checkpoints.safetensors import INDEX, WEIGHTS, write_tensors
from unmask.errors import UnmaskError
from unmask.models.adapter import DRAFT_HEAD, adapted_config, attach, fingerprint, put
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")  # the second is the draft head


def save(folder: Path, network: Transformer, tensors: dict[str, Tensor], base: str) -> None:
    """Writes an adapter's folder: its tensors in bfloat16, the draft vocabulary, config and the base's name."""
    if network.draft_vocabulary is None:
        raise UnmaskError("an adapter without a draft vocabulary cannot be saved; give the network its own")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    weights["draft_vocabulary"] = network.draft_vocabulary.to(torch.int32)
    head = {name: weights.pop(name) for name in list(weights) if name.startswith(DRAFT_HEAD)}
    parts = dict(zip(SHARDS, (weights, head), strict=True)) if head else {WEIGHTS: weights}
    for name, part in parts.items():
        write_tensors(folder / name, part)
    if head:
        homes = {tensor: name for name, part in parts.items() for tensor in part}
        write_json(folder / INDEX, {"metadata": {}, "weight_map": homes})
    write_json(folder / ADAPTER, {"base": base, "embedding": fingerprint(network)})
    write_json(folder / CONFIG, network.config.to_dict())


def load(folder: Folder, base: Transformer, config: ModelConfig) -> Transformer:
    """The base with the adapter of a folder; one of another base raises UnmaskError."""
    path = folder.path
    expected = adapted_config(
        base.config,
        block_length=config.block_length,
        rank=config.adapter_rank,
        width=config.adapter_width,
        chain=config.chain_width,
    )
    if config != expected:
        raise UnmaskError(f"{path}: its config is not that of its base with an adapter; it is of another base")
    if not folder.has(ADAPTER):
        raise UnmaskError(f"{path / ADAPTER} does not exist; it names the base of an adapter, copy it again")
    if folder.json(ADAPTER).get("embedding") != fingerprint(base):
        raise UnmaskError(f"{path}: the adapter was made for another base than the one that is here; pull it anew")
    tensors = dict(folder.weights.tensors(None))
    vocabulary = tensors.pop("draft_vocabulary", None)
    if vocabulary is None or vocabulary.dim() != 1 or vocabulary.dtype != torch.int32 or not len(vocabulary):
        raise UnmaskError(f"{path} lacks its draft_vocabulary; copy it again")
    if int(vocabulary.min()) < 0 or int(vocabulary.max()) >= config.vocab_size:
        raise UnmaskError(f"{path}: draft_vocabulary holds ids outside the vocabulary")
    network = attach(base, config)
    weight = base.embedding.weight
    put(network, {name: t.to(weight.device, weight.dtype) for name, t in tensors.items()})
    network.draft_vocabulary = vocabulary.long().to(weight.device)
    return network.eval()


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of an adapter's folder, `draft_vocabulary` among them."""
    return dict(Folder(path).weights.tensors(None))
