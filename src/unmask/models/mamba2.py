"""Mamba-2 (arXiv 2405.21060): a mixer without attention. Tokens write to a state that decays, and read it.

One function computes it in chunks (state-space duality): inside a chunk as attention with decays, between chunks by the
state. A chunk of one token is the recurrent step. To see both sides the tokens are read in two directions, which share
the projections; convolution, decays and skip are each direction's own, and the sum of both goes on.

Shapes: B rows, R directions, T columns, G groups, H heads of a group, K head width, N state size, C channels of the
convolution (heads, B and C), E inputs (those and a step for each head).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.canvas import Array
from unmask.models.config import ModelConfig
from unmask.models.layers import Projection

if TYPE_CHECKING:
    from unmask.models.mixers import Context

CHUNK = 64


def runs(position_BT: Tensor) -> Tensor | None:
    """Numbers the stretches of positions that follow on one another, [B, T]: documents of a packed row, text before
    padding. None where every row is one stretch."""
    breaks = position_BT[:, 1:] != position_BT[:, :-1] + 1
    return F.pad(breaks.cumsum(1), (1, 0)) if bool(breaks.any()) else None


class Terms(NamedTuple):
    """What every column does to the state: it decays, `x` is written to it along `b`, and it is read along `c`."""

    x: Tensor  # [B, G, H, T, K], times the column's step
    decay: Tensor  # log of the share that stays [B, G, H, T]
    b: Tensor  # [B, G, T, N]
    c: Tensor  # [B, G, T, N]

    def columns(self, start: int, end: int | None = None) -> Terms:
        part = slice(start, end)
        return Terms(self.x[..., part, :], self.decay[..., part], self.b[..., part, :], self.c[..., part, :])


def advance(state: Tensor, terms: Terms) -> Tensor:
    """The state [B, G, H, N, K] after the columns."""
    after = terms.decay.flip(-1).cumsum(-1).flip(-1)  # from a column on; summed from the end, where it counts
    left = terms.x * (after - terms.decay).exp()[..., None]
    written = torch.einsum("bgtn,bghtk->bghnk", terms.b, left)
    return state * after[..., :1, None].exp() + written


def scan(terms: Terms, run_BT: Tensor | None, state: Tensor | None = None, mark: int = 0) -> tuple[Tensor, Tensor]:
    """What every column reads of itself and of its run before it [B, G, H, T, K], and the state before column `mark`.

    state: before the first column [B, G, H, N, K]; None is zero.
    """
    rows, groups, heads, length, width = terms.x.shape
    if state is None:
        state = terms.x.new_zeros(rows, groups, heads, terms.b.shape[-1], width)
    marked = state
    read = []
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=terms.x.device).triu(1)
    before = later[:0] if run_BT is None else run_BT[:, :1]  # run of the column before the chunk
    for start, end in pairwise([*range(0, mark, CHUNK), *range(mark, length, CHUNK), length]):
        part = terms.columns(start, end)
        total = part.decay.cumsum(-1)
        unseen = later[: end - start, : end - start]
        entering = total.exp()
        if run_BT is not None:
            run = run_BT[:, start:end]
            unseen = unseen | (run[:, :, None] != run[:, None])[:, None, None]
            entering = entering * torch.eq(run, before)[:, None, None]
        share = (total[..., :, None] - total[..., None, :]).masked_fill(unseen, -torch.inf).exp()
        scores = torch.einsum("bgtn,bgsn->bgts", part.c, part.b)[:, :, None] * share
        known = torch.einsum("bgtn,bghnk->bghtk", part.c, state)
        read.append(scores @ part.x + known * entering[..., None])
        if run_BT is not None:
            last = run[:, -1:]
            state = state * torch.eq(last, before)[..., None, None, None]
            part = part._replace(x=part.x * (run == last)[:, None, None, :, None])
            before = last
        state = advance(state, part)
        if end == mark:
            marked = state
    return torch.cat(read, -2), marked


class States:
    """What recurrent layers keep of a batch's rows between forwards.

    A window's last columns may turn out not to hold (drafts that are checked), so a layer keeps the state before them
    and their inputs, and the next forward says where each row goes on.
    """

    def __init__(self, rows: int) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # states, and inputs [B, conv_width - 1 + held, E]
        self.base = np.zeros(rows, np.int64)  # position of each row's first held column
        self.held = 0  # columns
        self.count: Array = self.base  # of the held columns, those that hold
        self.settled = 0  # columns of the window that will

    def begin(self, first: Array, columns: int, settled: int) -> None:
        """Prepares a forward: the position [B] that each row's window starts at, how many columns it has, and how many
        of them hold whatever comes. A row may start anew from 0."""
        new = first == 0
        self.count = np.where(new, 0, first - self.base)
        if (self.count < 0).any() or (self.count > self.held).any():
            raise RuntimeError("a recurrent layer cannot go back to before what it holds")
        if new.any():
            old = torch.from_numpy(~new)[:, None, None]
            for layer, (state, inputs) in self.layers.items():
                kept = old.to(inputs.device)
                self.layers[layer] = (state * kept[..., None, None], inputs * kept)
        self.settled = settled
        self.held = columns - settled
        self.base = first + settled

    def extend(self, rows: int) -> None:
        """Adds room for more rows at the end."""
        self.base = np.pad(self.base, (0, rows))
        for layer, kept in self.layers.items():
            state, inputs = (F.pad(x, [0, 0] * (x.dim() - 1) + [0, rows]) for x in kept)
            self.layers[layer] = (state, inputs)

    def select(self, rows: Tensor) -> None:
        """Keeps the given rows only."""
        self.base = self.base[rows.cpu().numpy()]
        self.layers = {layer: (state[rows], inputs[rows]) for layer, (state, inputs) in self.layers.items()}


class Mamba2(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        space = config.state_space
        self.layer = layer
        self.space = space
        self.eps = config.norm_eps
        self.inner = space.expand * config.hidden_size
        self.heads = self.inner // space.head_dim
        self.channels = self.inner + 2 * space.num_groups * space.state_size
        self.directions = 2 if config.layout == "bidirectional" else 1
        inputs = self.channels + self.heads
        self.in_proj = Projection(config.hidden_size, self.inner + inputs, space.bias, config.adapter_rank)
        self.o_proj = Projection(self.inner, config.hidden_size, space.bias, config.adapter_rank)
        self.conv_weight = nn.Parameter(torch.empty(self.directions * self.channels, 1, space.conv_width))
        self.conv_bias = nn.Parameter(torch.zeros(self.directions * self.channels)) if space.conv_bias else None
        self.dt_bias, self.A_log, self.D = (nn.Parameter(torch.empty(self.directions * self.heads)) for _ in range(3))
        self.norm_weight = nn.Parameter(torch.ones(self.inner))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, shortest: float = 1e-3, longest: float = 0.1) -> None:
        """Mamba-2's own: steps between shortest and longest, evenly in their logarithm, and decays 1 to 16."""
        step = (torch.rand(len(self.D), generator=generator) * math.log(longest / shortest)).exp() * shortest
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the softplus of which is the step
        self.A_log.copy_(torch.empty(len(self.D)).uniform_(1, 16, generator=generator).log())
        nn.init.ones_(self.D)
        bound = self.space.conv_width**-0.5
        nn.init.uniform_(self.conv_weight, -bound, bound, generator=generator)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        gate_BTI, inputs_BTE = self.in_proj(x_BTD, context.gate_BT1).split([self.inner, self.channels + self.heads], -1)
        states = None if context.cache is None else context.cache.states
        mixed_BTI = self._whole(inputs_BTE, context.run_BT) if states is None else self._continued(inputs_BTE, states)
        gated = mixed_BTI * F.silu(gate_BTI.float())
        groups = gated.view(*gated.shape[:2], self.space.num_groups, -1)
        normed = F.rms_norm(groups, groups.shape[-1:], eps=self.eps).view_as(gated) * self.norm_weight.float()
        return self.o_proj(normed.to(x_BTD.dtype), context.gate_BT1)

    def _whole(self, inputs_BTE: Tensor, run_BT: Tensor | None) -> Tensor:
        """Rows that nothing stands before, in every direction."""
        if self.directions == 1:
            terms, skip = self._terms(inputs_BTE[:, None], None if run_BT is None else run_BT[:, None])
            return self._read(scan(terms, run_BT)[0], skip)[:, 0]
        both = torch.stack([inputs_BTE, inputs_BTE.flip(1)], 1)
        run_BRT = None if run_BT is None else torch.stack([run_BT, run_BT.flip(1)], 1)
        terms, skip = self._terms(both, run_BRT)
        read = self._read(scan(terms, None if run_BRT is None else run_BRT.flatten(0, 1))[0], skip)
        return read[:, 0] + read[:, 1].flip(1)

    def _continued(self, inputs_BTE: Tensor, states: States) -> Tensor:
        """Windows that go on from the states of their rows, from left to right."""
        before = self.space.conv_width - 1
        nothing = (None, inputs_BTE.new_zeros(len(inputs_BTE), before, inputs_BTE.shape[2]))
        state, held = states.layers.get(self.layer, nothing)
        again = held.shape[1] - before  # held columns, which are read into the state now where they hold
        lost = again - torch.from_numpy(states.count).to(held.device)[:, None]
        place = torch.arange(held.shape[1], device=held.device) - lost  # what holds moves up to the window
        held = held.gather(1, place.clamp(min=0)[..., None].expand_as(held))
        line = torch.cat([held, inputs_BTE], 1)
        terms, skip = self._terms(line[:, None])
        holds = (torch.arange(line.shape[1], device=held.device) >= lost + before)[:, None, None]
        terms = terms._replace(x=terms.x * holds[..., None], decay=terms.decay * holds).columns(before)
        read, state = scan(terms, None, state, again + states.settled)
        states.layers[self.layer] = (state, line[:, again + states.settled :])
        return self._read(read, skip[:, :, before:])[:, 0, again:]

    def _terms(self, inputs_BRTE: Tensor, run_BRT: Tensor | None = None) -> tuple[Terms, Tensor]:
        """The terms of every row and direction, [B R] rows, and what goes round the state [B, R, T, G, H, K]."""
        rows, directions, length, _ = inputs_BRTE.shape
        space = self.space
        before = space.conv_width - 1
        inputs, step = torch.split(inputs_BRTE.float(), [self.channels, self.heads], -1)
        weight = self.conv_weight.float().view(directions, 1, self.channels, space.conv_width)
        padded = F.pad(inputs, (0, 0, before, 0))
        mixed = torch.zeros_like(inputs) if self.conv_bias is None else self.conv_bias.float().view(directions, 1, -1)
        for tap in range(space.conv_width):
            seen = padded[:, :, tap : tap + length]
            if run_BRT is not None and tap < before:
                seen = seen * (F.pad(run_BRT, (before - tap, 0), value=-1)[..., :length] == run_BRT)[..., None]
            mixed = mixed + seen * weight[..., tap]
        sizes = [self.inner, *[space.num_groups * space.state_size] * 2]
        x, b, c = torch.split(F.silu(mixed), sizes, -1)
        step = F.softplus(step + self.dt_bias.float().view(directions, 1, -1))
        decay = step * -self.A_log.float().exp().view(directions, 1, -1)
        heads = (rows * directions, length, space.num_groups, -1)
        x = x.reshape(*x.shape[:-1], space.num_groups, -1, space.head_dim)
        skip = x * self.D.float().view(directions, 1, space.num_groups, -1, 1)
        written = (x * step.view(x.shape[:-1])[..., None]).flatten(0, 1)
        b, c = (each.reshape(heads).transpose(1, 2) for each in (b, c))
        return Terms(written.permute(0, 2, 3, 1, 4), decay.reshape(heads).permute(0, 2, 3, 1), b, c), skip

    def _read(self, read_BGHTK: Tensor, skip_BRTGHK: Tensor) -> Tensor:
        """What was read and what went round the state, [B, R, T, inner]."""
        read = read_BGHTK.permute(0, 3, 1, 2, 4).reshape(skip_BRTGHK.shape) + skip_BRTGHK
        return read.flatten(3)
