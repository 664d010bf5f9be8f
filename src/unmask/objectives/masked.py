"""Objectives of text that is read as it is or under masks: autoregressive, masked diffusion, block diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from unmask.attention import render
from unmask.layout import CLEAN, NOISED, PADDING, Coordinates, Layout
from unmask.models.transformer import Transformer
from unmask.noise import NoiseSchedule, ScheduleName, clip_times, on_grid
from unmask.objectives.draws import Draws
from unmask.objectives.objective import Noised, Objective, Rows, scored_loss, training_mask


def cart_weights(masked_BL: Tensor, document_BL: Tensor, share: float = 0.3) -> Tensor:
    """Dream's weights of masked tokens [B, L] (CART, arXiv 2508.15487): half the sum, over the tokens of the document
    that are not masked, of a geometric distribution in their distance. 0 at others."""
    index = torch.arange(masked_BL.shape[1], device=masked_BL.device)
    apart = (index[:, None] - index).abs()
    near_LL = torch.where(apart > 0, 0.5 * share * torch.exp((apart - 1) * math.log(1 - share)), 0.0)
    seen_BLL = ~masked_BL[:, None] & (document_BL[:, None] == document_BL[:, :, None])
    return (seen_BLL * near_LL).sum(-1) * masked_BL


@dataclass(frozen=True)
class AR(Objective):
    """Next-token prediction: the exact likelihood of all but each document's first token."""

    needs_mask: ClassVar[bool] = False
    shift: bool = True

    def network(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        return {"shift": self.shift, "layout": "causal"}

    def decoding(self) -> dict[str, Any]:
        return {"temperature": 0.8}

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        scored = rows.supervised & (rows.position > 0)
        noised = self._noised(rows.ids, rows, torch.ones_like(rows.ids, dtype=torch.float32), scored)
        return replace(noised, normaliser=float(scored.sum())) if self.normaliser == "tokens" else noised

    def loss(self, model: Transformer, noised: Noised) -> Tensor:
        mask = training_mask(Layout("causal"), noised.rows)
        hidden = model.hidden(noised.inputs, noised.rows.position, mask, time_B=None)
        return scored_loss(model, model.unshift(hidden, noised.rows.position), noised, model.config.mask_token_id)


def check_clip(clip: tuple[float, float]) -> None:
    if len(clip) != 2 or not 0.0 < clip[0] <= clip[1] <= 1.0:
        raise ValueError(f"clip {clip} must satisfy 0 < low <= high <= 1")


@dataclass(frozen=True)
class MDLM(Objective):
    """Masked diffusion on the whole row: continuous-time NELBO (MDLM arXiv 2406.07524, LLaDA 2502.09992).

    weight: `nelbo` gives the bound; `none` is plain cross-entropy (LLaDA2, Fast-dLLM v2); `cart` counts a token by
    how near what is not masked is (Dream).
    steps: 0 draws times from all of the interval; else from a grid of so many, and the bound is that of a chain of
    so many steps (D3PM), which is above the continuous one.
    clip: interval that times are drawn from; its low end is the smallest mask rate (eps).
    complementary: each row twice, the second with exactly the other tokens masked (Fast-dLLM v2).
    forbid_mask: SUBS parametrisation, the mask token is never predicted.
    """

    schedule: ScheduleName = "linear"
    weight: Literal["nelbo", "none", "cart"] = "nelbo"
    clip: tuple[float, float] = (1e-3, 1.0)
    complementary: bool = False
    forbid_mask: bool = True
    steps: int = 0

    def __post_init__(self) -> None:
        check_clip(self.clip)
        if self.complementary and self.schedule != "linear" and self.weight == "nelbo":
            raise ValueError("complementary copies with NELBO weights need the linear schedule")
        if self.steps < 0 or (self.steps and self.complementary):
            raise ValueError("steps must be at least 0, and 0 with complementary copies")

    @property
    def layout(self) -> Layout:
        """Of the training pass."""
        return Layout("bidirectional")

    @property
    def noise(self) -> NoiseSchedule:
        return NoiseSchedule(self.schedule)

    def network(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        return {"shift": self.shift, "layout": "bidirectional"}

    def decoding(self) -> dict[str, Any]:
        return {"rule": "random", "temperature": 0.8}  # the likeliest token first would write full stops

    def times(self, rows: Rows, draws: Draws) -> Tensor:
        """Time of every token [B, L]: here one per row."""
        return clip_times(draws.strata(1), *self.clip).to(rows.ids.device).expand(rows.ids.shape)

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        if mask_id is None:
            raise ValueError("masked diffusion needs a model with a mask_token_id")
        t = self.times(rows, draws)
        t = on_grid(t, self.steps) if self.steps else t
        masked = draws.uniforms(rows.ids.shape[1]).to(rows.ids.device) >= self.noise.alpha(t)
        if self.complementary:
            t = torch.cat([t, (1 - t).clamp(min=self.clip[0])])
            masked = torch.cat([masked, ~masked])
            rows = rows.twice()
        masked = masked & rows.supervised
        inputs = self.assemble(torch.where(masked, mask_id, rows.ids), rows)
        return self._noised(inputs, rows, self.weights(t, masked, rows), masked, self.condition(t))

    def weights(self, t_BL: Tensor, masked_BL: Tensor, rows: Rows) -> Tensor:
        """Of masked tokens [B, L], before the normaliser."""
        if self.weight == "cart":
            return cart_weights(masked_BL, rows.document)
        if self.weight == "none":
            return torch.ones_like(t_BL)
        return self.noise.chain_weight(t_BL, self.steps) if self.steps else self.noise.weight(t_BL)

    def condition(self, t_BL: Tensor) -> Tensor | None:
        """Noise level sigma = -log alpha [B] that an adaLN network is told."""
        return -self.noise.alpha(t_BL[:, 0]).clamp(min=1e-5).log()

    def assemble(self, noised_BL: Tensor, rows: Rows) -> Tensor:
        return noised_BL

    def states(self, model: Transformer, noised: Noised) -> Tensor:
        """Hidden states [B, L, D] of a corrupted batch, each at the token that it scores."""
        rows = noised.rows
        hidden = model.hidden(noised.inputs, rows.position, training_mask(self.layout, rows), time_B=noised.time)
        return model.unshift(hidden, rows.position)

    def banned(self, model: Transformer) -> int | None:
        """The token that cannot be predicted."""
        return model.config.mask_token_id if self.forbid_mask else None

    def loss(self, model: Transformer, noised: Any) -> Tensor:
        loops = model.config.loops
        if loops == 1 or self.layout.kind != "bidirectional":
            return scored_loss(model, self.states(model, noised), noised, self.banned(model))
        # a looped network is scored after every loop, so that fewer or more of them can be used later
        rows = noised.rows
        mask = training_mask(self.layout, rows)
        hidden = model.hidden(noised.inputs, rows.position, mask, time_B=noised.time, every_loop=True)
        weights = noised.weights.repeat(loops, 1) / loops
        each = replace(noised, targets=noised.targets.repeat(loops, 1), weights=weights)
        return scored_loss(model, model.unshift(hidden, rows.position.repeat(loops, 1)), each, self.banned(model))


@dataclass(frozen=True)
class Curriculum:
    """What block diffusion begins with: each value for `every` steps, one after another, then the objective's own. A
    field without values is the objective's own from the start. Held-out rows are always scored with the objective's
    own, and answers start blocks of that length."""

    every: int = 1000  # steps of training
    block_length: tuple[int, ...] = ()
    clip: tuple[tuple[float, float], ...] = ()

    def check(self) -> None:
        """Raises ValueError for an impossible value."""
        if self.every < 1 or min(self.block_length, default=1) < 1:
            raise ValueError("curriculum.every and each curriculum.block_length must be at least 1")
        for clip in self.clip:
            check_clip(clip)


@dataclass(frozen=True)
class BD3LM(MDLM):
    """Block diffusion in one pass over [x_t ; x_0] (BD3-LM, arXiv 2503.09573): times per block, every
    block sees its own noised tokens and the clean ones of the blocks before.

    block_length 1 with `shift` is AR; block_length >= L is MDLM. Under a shifted head the first token of
    a block is scored by the clean token before it (Fast-dLLM v2).
    """

    block_length: int = 4
    curriculum: Curriculum = Curriculum()  # other block lengths and clips to begin with

    def __post_init__(self) -> None:
        super().__post_init__()
        self.curriculum.check()
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")

    @property
    def layout(self) -> Layout:
        return Layout("block_diffusion", self.block_length)

    def network(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        return {"shift": self.shift, "layout": "block_causal", "block_length": self.block_length}

    def at(self, step: int) -> Self:
        number = step // self.curriculum.every
        lengths = self.curriculum.block_length[number : number + 1] or (self.block_length,)
        clips = self.curriculum.clip[number : number + 1] or (self.clip,)
        return replace(self, block_length=lengths[0], clip=clips[0], curriculum=Curriculum())

    def held_out(self) -> Self:
        return replace(self, curriculum=Curriculum())

    def times(self, rows: Rows, draws: Draws) -> Tensor:
        """One time per block of the row; blocks count from the start of each document."""
        # a document boundary inside a block makes one more block than length / block_length
        index = rows.starts_block(self.block_length).long().cumsum(1) - 1
        most = -(-rows.ids.shape[1] // self.block_length)
        return clip_times(draws.strata(most), *self.clip).to(rows.ids.device).gather(1, index % most)

    def assemble(self, noised_BL: Tensor, rows: Rows) -> Tensor:
        return torch.cat([noised_BL, rows.ids], 1)

    def condition(self, t_BL: Tensor) -> Tensor | None:
        """None: a row has as many noise levels as blocks (the reference feeds its adaLN zeros)."""
        return None

    def states(self, model: Transformer, noised: Noised) -> Tensor:
        rows = noised.rows
        if not self.shift and not bool(rows.supervised.all()):
            return self._states_of_answers(model, noised)
        length = noised.targets.shape[1]
        positions = torch.cat([rows.position, rows.position], 1)
        hidden = model.hidden(noised.inputs, positions, training_mask(self.layout, rows), time_B=noised.time)
        own = hidden[:, :length]
        if not self.shift:
            return own
        starts_block = ((rows.position % self.block_length == 0) & (rows.position > 0))[..., None]
        before = model.unshift(hidden[:, length:], rows.position)
        return torch.where(starts_block, before, model.unshift(own, rows.position))

    def _states_of_answers(self, model: Transformer, noised: Noised) -> Tensor:
        """The same states where some tokens are given: the noised copy holds only blocks with something to learn, and
        the others' states are zeros."""
        rows = noised.rows
        number = rows.starts_block(self.block_length).long().cumsum(1) - 1
        learned = torch.zeros_like(number).scatter_reduce(1, number, rows.supervised.long(), "amax").gather(1, number)
        kept = int(learned.sum(1).max())
        place = (1 - learned).argsort(dim=1, stable=True)[:, :kept]  # kept tokens first, in their order
        real = learned.gather(1, place).bool()
        ids = torch.cat([noised.inputs.gather(1, place), rows.ids], 1)
        position = torch.cat([rows.position.gather(1, place), rows.position], 1)
        document = torch.cat([torch.where(real, rows.document.gather(1, place), PADDING), rows.document], 1)
        copy = torch.cat([torch.full_like(place, NOISED), torch.full_like(rows.ids, CLEAN)], 1)
        mask = render(self.layout, Coordinates(position, document, copy))
        hidden = model.hidden(ids, position, mask, time_B=noised.time)[:, :kept]
        where = place[..., None].expand_as(hidden)
        return hidden.new_zeros((*rows.ids.shape, hidden.shape[-1])).scatter(1, where, hidden)
