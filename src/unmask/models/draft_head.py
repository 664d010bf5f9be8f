"""What a draft owes to the token before it: a small head that corrects a slot's state once that token is known.

Slots of a group are filled at once, so each knows only the text before the group. By the time that they are
drafted the base's own token is there, and every draft before the one at hand; this head lets them count at the
cost of one small product for each (sequentially dependent draft heads, Hydra, arXiv 2402.05109).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DraftHead(nn.Module):
    """state + out(silu(gate(x)) * inner(x)), x: state, the state before it and the embedding of the token before it,
    each at unit root mean square. Shapes: D hidden size, C width."""

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
