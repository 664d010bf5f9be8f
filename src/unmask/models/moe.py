"""Mixture of experts: a router sends every token to a few of many MLPs.

Shapes: N tokens, D hidden size, E experts, k experts per token, G groups of experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.config import ModelConfig


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

    def __init__(self, config: ModelConfig, experts: nn.ModuleList, shared: nn.Module | None) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = experts
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        index_Nk, weight_Nk = self.router(flat)
        out = dispatch(flat, index_Nk, weight_Nk, lambda number, rows: self.experts[number](rows))
        if self.shared is not None:
            out = out + self.shared(flat)
        return out.view_as(x)
