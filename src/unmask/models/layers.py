"""Layers that every network is built of: norms, projections, the MLP.

Shape letters: as in `transformer`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm in float32, with or without a bias."""

    def __init__(self, size: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), bias, self.eps).to(x.dtype)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(size, config.norm_eps)
    return LayerNorm(size, config.norm_eps, config.norm_bias)


class Projection(nn.Linear):
    """A linear layer with room for a low-rank adapter that acts at gated positions only.

    Where the gate is 0 the adapter's share is left out, not added as zero, so a pass without a gate is the
    base network to the bit (LoRA, arXiv 2106.09685; gated as in arXiv 2507.11851).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, rank: int = 0) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.down = nn.Parameter(torch.empty(rank, inputs)) if rank else None
        self.up = nn.Parameter(torch.zeros(outputs, rank)) if rank else None

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """x [..., inputs]; gate [..., 1], 1 where the adapter acts, or None for nowhere."""
        y = super().forward(x)
        if gate is None or self.down is None or self.up is None:
            return y
        low = F.linear(x, self.down.to(x.dtype)) * gate
        return y + F.linear(low, self.up.to(x.dtype))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, inner: int) -> None:
        super().__init__()
        size = config.hidden_size
        gated = config.activation in ("swiglu", "geglu_tanh")
        make = partial(Projection, bias=config.mlp_bias, rank=config.adapter_rank)
        self.gate_proj = make(size, inner) if gated else None
        self.up_proj = make(size, inner)
        self.down_proj = make(inner, size)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if self.gate_proj is not None:
            return self.down_proj(self.activation(self.gate_proj(x, gate)) * self.up_proj(x, gate), gate)
        return self.down_proj(self.activation(self.up_proj(x, gate)), gate)


class Bottleneck(nn.Module):
    """A small MLP beside a layer's own, at gated positions only (parallel adapter, arXiv 2110.04366).

    Its lower half reads what the layer's MLP reads, so a small pass computes both in one product.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(width, size))
        self.up = nn.Parameter(torch.zeros(size, width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x [B, T, D]; gate [B, T, 1], 1 where it acts."""
        return F.linear(F.silu(F.linear(x, self.down.to(x.dtype))) * gate, self.up.to(x.dtype))
