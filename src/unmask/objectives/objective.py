"""Training objectives as typed profiles. No convention is implicit in the trainer.

An objective turns clean rows into a `Noised` batch (`corrupt`) and scores a network on it (`loss`). The
trainer knows nothing else of it, so a new objective is one class and its line in the recipe's registry.
Shapes: B rows, L tokens, D hidden size, V vocabulary, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from unmask.attention import AttentionMask, doubled, plain_mask, render
from unmask.layout import PADDING, Coordinates, Layout
from unmask.models.transformer import Transformer
from unmask.objectives.draws import Draws

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
        return self._each(lambda t: t.to(device))

    def slice(self, start: int, stop: int) -> Rows:
        return self._each(lambda t: t[start:stop])

    def twice(self) -> Rows:
        return self._each(lambda t: torch.cat([t, t]))

    def starts_block(self, length: int) -> Tensor:
        """Whether a token is the first of a block of so many positions, or of its document [B, L]."""
        block = self.position // length
        starts = torch.ones_like(self.document, dtype=torch.bool)
        starts[:, 1:] = (block[:, 1:] != block[:, :-1]) | (self.document[:, 1:] != self.document[:, :-1])
        return starts

    def _each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        return Rows(*(change(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class Noised:
    """One corrupted batch. `inputs` is [B, L], or [B, 2L] for block diffusion; the rest is [B, L]."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor  # 0 where there is nothing to learn
    rows: Rows
    normaliser: float  # what the summed loss is divided by, to be added up over ranks
    time: Tensor | None = None  # noise level sigma = -log alpha [B], for adaLN networks

    def slice(self, start: int, stop: int) -> Self:
        """Rows start .. stop of everything that has rows."""
        cut: dict[str, Any] = {name: v[start:stop] for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, rows=self.rows.slice(start, stop), **cut)


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
            head = head_VD.to(dtype)
            total = hidden_ND.new_zeros((), dtype=torch.float32)
            grad_hidden = torch.empty_like(hidden_ND)
            grad_head = torch.zeros_like(head_VD, dtype=torch.float32)
            for start in range(0, hidden_ND.shape[0], chunk):
                h = hidden_ND[start : start + chunk].to(dtype)
                target = target_N[start : start + chunk, None]
                weight = weight_N[start : start + chunk, None].float()
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


def scored_loss(
    model: Transformer, hidden_BLD: Tensor, noised: Noised, banned: int | None, chunk: int = 1024
) -> Tensor:
    """Weighted cross-entropy, summed, on the rows whose weight is not zero."""
    index = noised.weights.flatten().nonzero().squeeze(1)
    hidden = hidden_BLD.flatten(0, 1)[index]
    head: Tensor = model.head.weight
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
    if bool((rows.document == rows.document[:, :1]).all()) and not bool(rows.position[:, 0].any()):
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
    needs_teacher: ClassVar[bool] = False  # whether `teach` is to be called
    needs_mask: ClassVar[bool] = True  # whether the model must have a mask token

    def network(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of ModelConfig that this objective settles, for a network whose recipe gives the fields `shape`.

        Raises ValueError where the shape cannot be trained so.
        """
        return {"shift": self.shift}

    def decoding(self) -> dict[str, Any]:
        """Decoding defaults that follow from how a model is trained, for generation_config.json."""
        return {}

    def at(self, step: int) -> Self:
        """The objective as it is at a step of training."""
        return self

    def teach(self, teacher: Transformer, noised: Any) -> Noised:
        """The batch with what a teacher says of it; called without gradients."""
        return noised

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> Noised:
        """vocab_size is read where noise is random tokens."""
        raise NotImplementedError

    def loss(self, model: Transformer, noised: Any) -> Tensor:
        """Summed loss (nats) of what `corrupt` made; divide by the normaliser of the global batch."""
        raise NotImplementedError

    def held_out(self) -> Objective:
        """The objective that held-out rows are scored with, at a step by its own `at`; where that changes, a round of
        distillation begins: losses do not compare, and the student becomes its own teacher."""
        return self

    def report(self, model: Transformer, noised: Any) -> dict[str, float]:
        """More figures of a held-out batch, as sums, with their `count`; none for most objectives."""
        return {}

    def _noised(
        self, inputs: Tensor, rows: Rows, weights: Tensor, scored: Tensor, time: Tensor | None = None
    ) -> Noised:
        """A batch whose targets are the rows' own ids; the normaliser is applied to the weights [B, L]."""
        weights = torch.where(scored, weights, 0.0).float()
        total = float((rows.supervised if self.normaliser == "tokens" else scored).sum())
        if self.normaliser == "answer":
            weights = weights / rows.supervised.sum(1, keepdim=True).clamp(min=1)
            total = float(len(rows.ids))
        return Noised(inputs, rows.ids, weights, rows, total, time)
