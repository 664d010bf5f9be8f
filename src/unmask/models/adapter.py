"""An adapter: a base network of the catalogue and low-rank matrices that act at masked positions only.

Its folder holds config.json (ours), adapter.json (name and hash of the base) and model.safetensors with the
adapter's own tensors; the base is fetched and read where it lies.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.checkpoints import weights as checkpoint
from unmask.checkpoints.folder import ADAPTER, CONFIG, INDEX, WEIGHTS, read_json
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer
from unmask.models.unfilled import unfilled

CHAIN = "chain."
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")  # with a chain: it is the second


def is_adapter_tensor(name: str) -> bool:
    """Whether a parameter belongs to the adapter rather than to its base."""
    return name == "mask_embedding" or name.startswith(CHAIN) or name.endswith((".down", ".up"))


def adapted_config(base: ModelConfig, block_length: int, rank: int = 0, width: int = 0, chain: int = 0) -> ModelConfig:
    """The base's config as that of a drafting network, with adapters of a rank or a bottleneck width, or both, and a
    chain of some width."""
    if base.layout != "causal" or not base.shift:
        raise UnmaskError("an adapter needs an autoregressive base (causal layout, shifted head)")
    if rank + width < 1:
        raise UnmaskError("an adapter needs an adapter_rank or an adapter_width of at least 1")
    if base.mask_token_id is None:
        raise UnmaskError("the base's tokenizer has no mask token and no free token to use as one")
    drafting = replace(base, layout="drafts", block_length=block_length)
    return replace(drafting, adapter_rank=rank, adapter_width=width, chain_width=chain)


def attach(base: Transformer, config: ModelConfig) -> Transformer:
    """A network of `config` that shares the base's tensors; the adapter's are on the meta device."""
    with unfilled():
        network = Transformer(config)
    for name, parameter in base.named_parameters():
        module, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(module), leaf, nn.Parameter(parameter.detach(), requires_grad=False))
    if config.tie_embeddings:
        network.head.weight = network.embedding.weight
    network.make_rotary_tables()
    return network


def own_parameters(network: Transformer) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name."""
    return {name: p for name, p in network.named_parameters() if is_adapter_tensor(name)}


def put(network: Transformer, tensors: dict[str, Tensor]) -> None:
    """Sets the adapter's tensors; one missing, extra or misshapen raises UnmaskError naming it."""
    expected = {name: p.shape for name, p in own_parameters(network).items()}
    for name in sorted(expected.keys() ^ tensors.keys()):
        state = "lacks" if name in expected else "has an unknown"
        raise UnmaskError(f"the adapter {state} tensor {name!r}; it is of another base or rank")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            raise UnmaskError(
                f"the adapter's tensor {name!r} has shape {list(tensor.shape)}, its base asks for "
                f"{list(expected[name])}; it is of another base or rank"
            )
        module, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))


def initial(network: Transformer, seed: int) -> dict[str, Tensor]:
    """Tensors an adapter starts from: it changes nothing yet, and the mask looks like a mean token."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for name, parameter in own_parameters(network).items():
        if name == "mask_embedding":
            out[name] = network.embedding.weight.detach().float().mean(0).cpu()
        elif name.endswith((".down", ".gate", ".inner")):
            out[name] = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
        else:
            out[name] = torch.zeros(parameter.shape)
    return out


def save(folder: Path, network: Transformer, tensors: dict[str, Tensor], base: str) -> None:
    """Writes an adapter's folder: its tensors in bfloat16, the draft vocabulary, config and the base's name."""
    assert network.draft_vocabulary is not None
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    weights["draft_vocabulary"] = network.draft_vocabulary.to(torch.int32)
    chain = {name: weights.pop(name) for name in list(weights) if name.startswith(CHAIN)}
    parts = dict(zip(SHARDS, (weights, chain), strict=True)) if chain else {WEIGHTS: weights}
    for name, part in parts.items():
        checkpoint.write_tensors(folder / name, part)
    if chain:
        homes = {tensor: name for name, part in parts.items() for tensor in part}
        write_text(folder / INDEX, json.dumps({"metadata": {}, "weight_map": homes}, indent=2) + "\n")
    for name in {WEIGHTS, INDEX, *SHARDS} - {*parts, *([INDEX] if chain else [])}:
        (folder / name).unlink(missing_ok=True)  # of an adapter that was saved there before
    write_text(folder / ADAPTER, json.dumps({"base": base, "embedding": fingerprint(network)}, indent=2) + "\n")
    write_text(folder / CONFIG, json.dumps(network.config.to_dict(), indent=2) + "\n")


def load(folder: Path, base: Transformer, config: ModelConfig) -> Transformer:
    """The base with the adapter of a folder; one of another base raises UnmaskError."""
    sizes = (config.block_length, config.adapter_rank, config.adapter_width, config.chain_width)
    expected = adapted_config(base.config, *sizes)
    if config != expected:
        raise UnmaskError(f"{folder}: its config is not that of its base with an adapter; it is of another base")
    saved = read_json(folder / ADAPTER).get("embedding")
    if saved != fingerprint(base):
        raise UnmaskError(f"{folder}: the adapter was made for another base than the one that is here; pull it anew")
    tensors = read(folder)
    vocabulary = tensors.pop("draft_vocabulary", None)
    if vocabulary is None or vocabulary.dim() != 1 or vocabulary.dtype != torch.int32 or not len(vocabulary):
        raise UnmaskError(f"{folder} lacks its draft_vocabulary; copy it again")
    if int(vocabulary.min()) < 0 or int(vocabulary.max()) >= config.vocab_size:
        raise UnmaskError(f"{folder}: draft_vocabulary holds ids outside the vocabulary")
    network = attach(base, config)
    weight = base.embedding.weight
    put(network, {name: t.to(weight.device, weight.dtype) for name, t in tensors.items()})
    network.draft_vocabulary = vocabulary.long().to(weight.device)
    return network.eval()


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter's folder, `draft_vocabulary` among them."""
    return dict(checkpoint.open_weights(folder).tensors(None))


def fingerprint(network: Transformer) -> str:
    """Tells bases of one shape apart: a hash of the first embeddings, in bfloat16."""
    rows = network.embedding.weight[:64].detach().to(torch.bfloat16).cpu().contiguous()
    return hashlib.sha256(rows.view(torch.int16).numpy().tobytes()).hexdigest()[:16]
