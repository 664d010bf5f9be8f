"""An adapter: a base network and small matrices that act at masked positions only."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.network import fill, on_meta
from unmask.models.transformer import Transformer

DRAFT_HEAD = "chain."  # how the names of its tensors begin


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
    network = on_meta(config)
    fill(network, ((name, parameter.detach()) for name, parameter in base.named_parameters()))
    network.make_rotary_tables()
    return network


def own_parameters(network: Transformer) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name."""
    begins = ("mask_embedding", DRAFT_HEAD)
    return {n: p for n, p in network.named_parameters() if n.startswith(begins) or n.endswith((".down", ".up"))}


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
    fill(network, tensors.items())


def initial(network: Transformer, seed: int) -> dict[str, Tensor]:
    """Tensors an adapter starts from: it changes nothing yet, and the mask looks like a mean token."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, parameter in own_parameters(network).items():
        if name == "mask_embedding":
            out[name] = network.embedding.weight.detach().float().mean(0).cpu()
        elif name.endswith((".down", ".gate", ".inner")):
            out[name] = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
        else:
            out[name] = torch.zeros(parameter.shape)
    return out


def fingerprint(network: Transformer) -> str:
    """Tells bases of one shape apart: a hash of the first embeddings, in bfloat16."""
    rows = network.embedding.weight[:64].detach().to(torch.bfloat16).cpu().contiguous()
    return hashlib.sha256(rows.view(torch.int16).numpy().tobytes()).hexdigest()[:16]
