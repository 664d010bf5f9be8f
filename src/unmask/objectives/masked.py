"""Training objectives as typed profiles. No convention is implicit in the trainer.

An objective turns clean rows into a `Noised` batch (`corrupt`) and scores a network on it (`loss`). The
trainer knows these two methods and nothing else, so a new objective is a new class here.
Shapes: B rows, L tokens, D hidden size, V vocabulary, N scored tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from unmask import noise
from unmask.attention import AttentionMask, doubled, plain_mask, render
from unmask.layout import PADDING, Coordinates, Layout
from unmask.objectives.losses import cart_weights

Normaliser = Literal["tokens", "masked", "answer"]
EosPolicy = Literal["learn", "ignore"]


@dataclass(frozen=True)
class Rows:
    """Clean training rows [B, L]: ids, the document each token is of (PADDING = none), its position in
    that document, and whether it is to be learned (a prompt is not)."""

    ids: Tensor
    document: Tensor
    position: Tensor
    supervised: Tensor

    @staticmethod
    def of(ids: Tensor, document: Tensor | None = None, supervised: Tensor | None = None) -> Rows:
        """Rows of plain ids: one document each and all of it to be learned, unless told otherwise."""
        document = torch.zeros_like(ids) if document is None else document
        supervised = document != PADDING if supervised is None else supervised & (document != PADDING)
        index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        starts = torch.ones_like(document, dtype=torch.bool)
        starts[:, 1:] = document[:, 1:] != document[:, :-1]
        return Rows(ids, document, index - torch.where(starts, index, 0).cummax(1).values, supervised)

    def to(self, device: torch.device) -> Rows:
        return Rows(*(t.to(device) for t in (self.ids, self.document, self.position, self.supervised)))

    def slice(self, start: int, stop: int) -> Rows:
        return Rows(*(t[start:stop] for t in (self.ids, self.document, self.position, self.supervised)))


@dataclass(frozen=True)
class Noised:
    """One corrupted batch. `inputs` is [B, L], or [B, 2L] for block diffusion; the rest is [B, L]."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor  # 0 where there is nothing to learn
    rows: Rows
    normaliser: float  # what the summed loss is divided by, to be added up over ranks
    time: Tensor | None = None  # noise level sigma = -log alpha [B], for adaLN networks

    def slice(self, start: int, stop: int) -> Noised:
        time = None if self.time is None else self.time[start:stop]
        part = slice(start, stop)
        rows = self.rows.slice(start, stop)
        return Noised(self.inputs[part], self.targets[part], self.weights[part], rows, self.normaliser, time)


class Denoiser(Protocol):
    """What a loss needs of a network (models.transformer.Transformer has it)."""

    config: Any
    head: torch.nn.Linear

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: AttentionMask, *, time_B: Tensor | None) -> Tensor: ...

    def unshift(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor: ...

    def __call__(
        self, ids_BT: Tensor, positions_BT: Tensor, mask: AttentionMask, cache: None, time_B: Tensor | None
    ) -> Tensor: ...


class MaskedCrossEntropy(torch.autograd.Function):
    """Sum of weights * CE over N rows, logits made `chunk` rows at a time and never kept.

    Both gradients are formed in the forward pass, so peak memory is one chunk of logits. `banned` is a
    token that can't be predicted (SUBS: the mask has probability zero).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor, banned: int | None, chunk: int
    ) -> Tensor:
        # under autocast the products run in the autocast dtype, as nn.Linear's would
        kind = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head_VD.dtype
        with torch.autocast(kind, enabled=False):
            head, total = head_VD.to(dtype), hidden_ND.new_zeros((), dtype=torch.float32)
            grad_hidden, grad_head = torch.empty_like(hidden_ND), torch.zeros_like(head_VD, dtype=torch.float32)
            for start in range(0, hidden_ND.shape[0], chunk):
                h = hidden_ND[start : start + chunk].to(dtype)
                target, weight = target_N[start : start + chunk, None], weight_N[start : start + chunk, None].float()
                logits = (h @ head.T).float()
                if banned is not None:
                    logits[:, banned] = -torch.inf
                log_p = logits.log_softmax(-1)
                total -= (weight * log_p.gather(1, target)).sum()
                p = log_p.exp_()
                p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand_as(target))
                p = (p * weight).to(dtype)
                grad_hidden[start : start + chunk] = (p @ head).to(grad_hidden.dtype)
                grad_head += (p.T @ h).float()
        ctx.save_for_backward(grad_hidden, grad_head.to(head_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_head * grad, None, None, None, None


def scored_loss(model: Denoiser, hidden_BLD: Tensor, noised: Noised, banned: int | None, chunk: int = 1024) -> Tensor:
    """Weighted cross-entropy, summed, on the rows whose weight is not zero."""
    index = noised.weights.flatten().nonzero().squeeze(1)
    hidden, head = hidden_BLD.flatten(0, 1)[index], model.head.weight
    if model.head.bias is not None:  # a bias is one more column, met by a feature that is always one
        hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], 1)
        head = torch.cat([head, model.head.bias[:, None]], 1)
    return MaskedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden,
        head,
        noised.targets.flatten()[index],
        noised.weights.flatten()[index],
        banned,
        chunk,
    )


def training_mask(layout: Layout, rows: Rows) -> AttentionMask:
    """Mask of a training batch: the cached one where every row is one document, else built for it."""
    length = rows.ids.shape[1]
    if bool((rows.document == rows.document[:, :1]).all()):
        return plain_mask(layout, 2 * length if layout.kind == "block_diffusion" else length, rows.ids.device)
    coordinates = Coordinates.of(rows.position, rows.document)
    return render(layout, doubled(coordinates) if layout.kind == "block_diffusion" else coordinates)


@dataclass(frozen=True)
class Objective:
    """The fields every objective has.

    shift: the head at position i scores position i + 1 (the network un-shifts itself; AR models shift).
    normaliser: `tokens` all supervised tokens, `masked` those in the loss, `answer` each row's own
    supervised length, averaged over rows (LLaDA SFT).
    eos: padding after a text is `learn`ed as EOS and attended (LLaDA), or `ignore`d by loss and attention.
    """

    shift: bool = False
    normaliser: Normaliser = "tokens"
    eos: EosPolicy = "ignore"

    def corrupt(self, rows: Rows, draws: noise.Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        """vocab_size is read where noise is random tokens."""
        raise NotImplementedError

    def loss(self, model: Denoiser, noised: Noised) -> Tensor:
        """Summed loss (nats); divide by the normaliser of the global batch."""
        raise NotImplementedError

    def held_out(self) -> Objective:
        """The objective that held-out rows are scored with."""
        return self

    def report(self, model: Denoiser, noised: Noised) -> dict[str, float]:
        """More figures of a held-out batch, as sums, with their `count`; none for most objectives."""
        return {}

    def _weigh(self, weights: Tensor, scored: Tensor, rows: Rows) -> tuple[Tensor, float]:
        """Applies the normaliser: per-token weights [B, L] and what their sum is divided by."""
        weights = torch.where(scored, weights, 0.0).float()
        if self.normaliser == "masked":
            return weights, float(scored.sum())
        if self.normaliser == "answer":
            return weights / rows.supervised.sum(1, keepdim=True).clamp(min=1), float(rows.ids.shape[0])
        return weights, float(rows.supervised.sum())


@dataclass(frozen=True)
class AR(Objective):
    """Next-token prediction: the exact likelihood of all but each document's first token."""

    shift: bool = True

    def corrupt(self, rows: Rows, draws: noise.Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        scored = rows.supervised & (rows.position > 0)
        weights, normaliser = self._weigh(torch.ones_like(rows.ids, dtype=torch.float32), scored, rows)
        if self.normaliser == "tokens":
            normaliser = float(scored.sum())
        return Noised(rows.ids, rows.ids, weights, rows, normaliser)

    def loss(self, model: Denoiser, noised: Noised) -> Tensor:
        mask = training_mask(Layout("causal"), noised.rows)
        hidden = model.hidden(noised.inputs, noised.rows.position, mask, time_B=None)
        return scored_loss(model, model.unshift(hidden, noised.rows.position), noised, model.config.mask_token_id)


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

    schedule: noise.Schedule = "linear"
    weight: Literal["nelbo", "none", "cart"] = "nelbo"
    clip: tuple[float, float] = (1e-3, 1.0)
    complementary: bool = False
    forbid_mask: bool = True
    steps: int = 0

    def __post_init__(self) -> None:
        low, high = self.clip
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"clip {self.clip} must satisfy 0 < low <= high <= 1")
        if self.complementary and self.schedule != "linear" and self.weight == "nelbo":
            raise ValueError("complementary copies with NELBO weights need the linear schedule")
        if self.steps < 0 or (self.steps and self.complementary):
            raise ValueError("steps must be at least 0, and 0 with complementary copies")

    @property
    def layout(self) -> Layout:
        return Layout("bidirectional")

    def times(self, rows: Rows, draws: noise.Draws) -> Tensor:
        """Time of every token [B, L]: here one per row."""
        return noise.clip_times(draws.strata(1), *self.clip).to(rows.ids.device).expand(rows.ids.shape)

    def corrupt(self, rows: Rows, draws: noise.Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        if mask_id is None:
            raise ValueError("masked diffusion needs a model with a mask_token_id")
        t = self.times(rows, draws)
        t = noise.on_grid(t, self.steps) if self.steps else t
        masked = draws.uniforms(rows.ids.shape[1]).to(rows.ids.device) >= noise.alpha(self.schedule, t)
        if self.complementary:
            t, masked = torch.cat([t, (1 - t).clamp(min=self.clip[0])]), torch.cat([masked, ~masked])
            rows = Rows(*(torch.cat([x, x]) for x in (rows.ids, rows.document, rows.position, rows.supervised)))
        masked = masked & rows.supervised
        weights, normaliser = self._weigh(self.weights(t, masked, rows), masked, rows)
        noised = torch.where(masked, mask_id, rows.ids)
        return Noised(self.assemble(noised, rows), rows.ids, weights, rows, normaliser, self.condition(t))

    def weights(self, t_BL: Tensor, masked_BL: Tensor, rows: Rows) -> Tensor:
        """Of masked tokens [B, L], before the normaliser."""
        if self.weight == "cart":
            return cart_weights(masked_BL, rows.document)
        if self.weight == "none":
            return torch.ones_like(t_BL)
        return (
            noise.chain_weight(self.schedule, t_BL, self.steps)
            if self.steps
            else noise.nelbo_weight(self.schedule, t_BL)
        )

    def condition(self, t_BL: Tensor) -> Tensor | None:
        """Noise level sigma = -log alpha [B] that an adaLN network is told."""
        return -noise.alpha(self.schedule, t_BL[:, 0]).clamp(min=1e-5).log()

    def assemble(self, noised_BL: Tensor, rows: Rows) -> Tensor:
        """The network's input."""
        return noised_BL

    def loss(self, model: Denoiser, noised: Noised) -> Tensor:
        rows = noised.rows
        hidden = model.hidden(noised.inputs, rows.position, training_mask(self.layout, rows), time_B=noised.time)
        banned = model.config.mask_token_id if self.forbid_mask else None
        return scored_loss(model, model.unshift(hidden, rows.position), noised, banned)


@dataclass(frozen=True)
class BD3LM(MDLM):
    """Block diffusion in one pass over [x_t ; x_0] (BD3-LM, arXiv 2503.09573): times per block, every
    block sees its own noised tokens and the clean ones of the blocks before.

    block_length 1 with `shift` is AR; block_length >= L is MDLM. Under a shifted head the first token of
    a block is scored by the clean token before it (Fast-dLLM v2).
    """

    block_length: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")

    @property
    def layout(self) -> Layout:
        return Layout("block_diffusion", self.block_length)

    def times(self, rows: Rows, draws: noise.Draws) -> Tensor:
        """One time per block of the row; blocks count from the start of each document."""
        length = rows.ids.shape[1]
        starts = torch.ones_like(rows.document, dtype=torch.bool)
        block = rows.position // self.block_length
        starts[:, 1:] = (block[:, 1:] != block[:, :-1]) | (rows.document[:, 1:] != rows.document[:, :-1])
        # a document boundary inside a block makes one more block than length / block_length
        index = starts.long().cumsum(1) - 1
        most = -(-length // self.block_length)
        t = noise.clip_times(draws.strata(most), *self.clip).to(rows.ids.device)
        return t.gather(1, index % most)

    def assemble(self, noised_BL: Tensor, rows: Rows) -> Tensor:
        return torch.cat([noised_BL, rows.ids], 1)

    def condition(self, t_BL: Tensor) -> Tensor | None:
        """None: a row has as many noise levels as blocks (the reference feeds its adaLN zeros)."""
        return None

    def loss(self, model: Denoiser, noised: Noised) -> Tensor:
        rows, length = noised.rows, noised.targets.shape[1]
        positions = torch.cat([rows.position, rows.position], 1)
        hidden = model.hidden(noised.inputs, positions, training_mask(self.layout, rows), time_B=noised.time)
        own, clean = hidden[:, :length], hidden[:, length:]
        if self.shift:
            starts_block = ((rows.position % self.block_length == 0) & (rows.position > 0))[..., None]
            own = torch.where(starts_block, model.unshift(clean, rows.position), model.unshift(own, rows.position))
        return scored_loss(model, own, noised, model.config.mask_token_id if self.forbid_mask else None)


OBJECTIVES: dict[str, type[Objective]] = {"ar": AR, "mdlm": MDLM, "bd3lm": BD3LM}
