"""Layers that networks are built of: norms, projections, the MLP, experts, and what adapters add.

Shape letters: as in `transformer`; in mixtures N tokens, E experts, k experts per token, G groups of experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.config import ModelConfig


class Norm(nn.Module):
    """In float32: by the root mean square (arXiv 1910.07467), or a layer norm with or without a bias."""

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        self.offset = config.norm_offset
        self.weight = nn.Parameter(torch.full((size,), 1.0 - self.offset))
        self.centred = config.norm == "layer"
        self.bias = nn.Parameter(torch.zeros(size)) if self.centred and config.norm_bias else None
        self.eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() + self.offset
        if not self.centred:
            return F.rms_norm(x.float(), x.shape[-1:], weight, self.eps).to(x.dtype)
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps).to(x.dtype)


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


class Router(nn.Module):
    """Chooses and weighs experts: softmax (OLMoE, LLaDA-MoE) or group-limited sigmoid (DeepSeek-V3, LLaDA2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.num_experts)) if config.router_bias else None
        self.config = config

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts [N, k] and their weights [N, k] in float32."""
        config = self.config
        logits = F.linear(x_ND.float(), self.weight.float())
        scores = logits.softmax(-1) if config.router == "softmax" else logits.sigmoid()
        choice = scores if self.bias is None else scores + self.bias.float()
        if config.expert_groups > 1:
            choice = self._best_groups(choice)
        index = choice.topk(config.experts_per_token, -1).indices
        weight = scores.gather(1, index)
        if config.router_normalise:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return index, weight * config.router_scale

    def _best_groups(self, choice_NE: Tensor) -> Tensor:
        """Leaves the best groups, each judged by the sum of its best two experts; -inf elsewhere."""
        groups = choice_NE.view(len(choice_NE), self.config.expert_groups, -1)
        judged = groups.topk(min(2, groups.shape[-1]), -1).values.sum(-1)
        kept = judged.topk(self.config.expert_groups_kept, -1).indices
        outside = torch.ones_like(judged, dtype=torch.bool).scatter(1, kept, False)
        return groups.masked_fill(outside[..., None], -torch.inf).flatten(1)


def dispatch(x_ND: Tensor, index_Nk: Tensor, weight_Nk: Tensor, expert: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Every token through its experts, weighed and summed, [N, D]; `expert` is called with (number, rows)."""
    out = torch.zeros_like(x_ND)
    for number in torch.unique(index_Nk).tolist():  # one pass per expert that has tokens
        token, place = (index_Nk == number).nonzero(as_tuple=True)
        part = expert(number, x_ND[token]) * weight_Nk[token, place, None].to(x_ND.dtype)
        out.index_add_(0, token, part)
    return out


class MixtureOfExperts(nn.Module):
    """Routed experts, and one that every token passes where the model has it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = nn.ModuleList(MLP(config, config.expert_size) for _ in range(config.num_experts))
        self.shared = MLP(config, config.shared_expert_size) if config.shared_expert_size else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        index_Nk, weight_Nk = self.router(flat)
        out = dispatch(flat, index_Nk, weight_Nk, lambda number, rows: self.experts[number](rows))
        if self.shared is not None:
            out = out + self.shared(flat)
        return out.view_as(x)


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


class DraftHead(nn.Module):
    """What a draft owes to the token before it: corrects a slot's state once that token is known.

    Slots of a group are filled at once, so each knows only the text before the group. By the time that they are
    drafted the base's own token is there, and every draft before the one at hand; this head lets them count at the
    cost of one small product for each (sequentially dependent draft heads, Hydra, arXiv 2402.05109):
    state + out(silu(gate(x)) * inner(x)), x: state, the state before it and the embedding of the token before it, each
    at unit root mean square. Shapes: D hidden size, C width.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.gate, self.inner = (nn.Parameter(torch.empty(width, 3 * size)) for _ in range(2))
        self.out = nn.Parameter(torch.zeros(size, width))

    def forward(self, state: Tensor, before: Tensor, embedded: Tensor) -> Tensor:
        """The corrected state [..., D] of slots whose own is `state` [..., D], ready for the head.

        before: the state that the token before the slot was chosen by, the base's or a corrected one [..., D];
        embedded: that token's embedding [..., D].
        """
        x = torch.cat([F.rms_norm(part, part.shape[-1:], eps=1e-6) for part in (state, before, embedded)], -1)
        gate, inner = (F.linear(x, weight.to(x.dtype)) for weight in (self.gate, self.inner))
        return state + F.linear(F.silu(gate) * inner, self.out.to(x.dtype))
