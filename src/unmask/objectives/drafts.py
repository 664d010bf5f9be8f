"""Teaching an AR model to draft: groups of masks after clean text, distilled from the frozen base itself.

A group hangs on an anchor, the last token of the text that it sees. Its K slots stand at positions
anchor + 1 .. anchor + K and, the head being shifted, score anchor + 2 .. anchor + K + 1; anchor + 1 is the
base's own next token. Only these slots pass the adapter, so text is computed by the base alone
(multi-token prediction by gated LoRA, arXiv 2507.11851; block-wise masks, arXiv 2503.09573). Where the network
has a chain, a slot is scored once the token at its own place is known: the base's, then one draft after another.

Shapes: B rows, T tokens, M slots of all groups of a row, K slots of a group, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unmask.attention import GroupMask
from unmask.layout import Coordinates, Layout
from unmask.objectives.draws import Draws
from unmask.objectives.objective import Noised, Objective, Rows, training_mask


class Prefix:
    """Keys and values of the clean text: recorded in one pass, then put before the drafts' own in another."""

    states = None

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.recording = True

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        if self.recording:
            self.layers.append((k_BGTK, v_BGTK))
            return k_BGTK, v_BGTK
        k, v = self.layers[layer]
        return torch.cat([k, k_BGTK], 2), torch.cat([v, v_BGTK], 2)


@dataclass(frozen=True, kw_only=True)
class Drafted(Noised):
    """Groups of drafts over clean rows: inputs, targets, weights, position and anchor are [B, M]."""

    position: Tensor  # of each slot, index in the row
    anchor: Tensor  # of its group, index in the row
    length: int = 1  # slots of a group


class Distillation(torch.autograd.Function):
    """Sum over N slots of weight * cross-entropy(teacher, student), logits made a chunk at a time, never kept.

    Its gradient is that of the KL divergence. Teacher and student share the head, whose rows [V] may be a
    part of the vocabulary; the teacher's states [U, D] are the base's, its distribution sharpened to the
    temperature that the text was written at. Only the students' states [N, D] get a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        teacher_UD: Tensor,
        which_N: Tensor,
        head_VD: Tensor,
        weight_N: Tensor,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            grad = torch.empty_like(hidden_ND)
            total = hidden_ND.new_zeros((), dtype=torch.float32)
            teacher = torch.empty(len(teacher_UD), len(head_VD), dtype=head_VD.dtype, device=head_VD.device)
            for start in range(0, len(teacher_UD), chunk):
                part = (teacher_UD[start : start + chunk].to(head_VD.dtype) @ head_VD.T).float()
                teacher[start : start + chunk] = part.div_(temperature).softmax(-1).to(head_VD.dtype)
            for start in range(0, len(hidden_ND), chunk):
                q = (hidden_ND[start : start + chunk].to(head_VD.dtype) @ head_VD.T).float()
                log_z = q.logsumexp(-1, keepdim=True)
                p = teacher[which_N[start : start + chunk]].float()
                weight = weight_N[start : start + chunk, None].float()
                # the teacher's mass is one up to rounding of its dtype
                total += (weight * (log_z * p.sum(-1, keepdim=True) - (p * q).sum(-1, keepdim=True))).sum()
                back = q.sub_(log_z).exp_().sub_(p).mul_(weight).to(head_VD.dtype)
                grad[start : start + chunk] = (back @ head_VD).to(grad.dtype)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), None, None, None, None, None, None


def draft_head(model: Any) -> Tensor:
    """Rows of the head that score drafts: the tokens of the draft vocabulary (FR-Spec, arXiv 2502.14856)."""
    return model.head.weight[model.draft_vocabulary]


def chained(model: Any, drafted: Drafted, clean: Tensor, own: Tensor) -> Tensor:
    """States [B, M, D] of slots that know the text's own token before what they score, one after another; own
    [B, M, D] are theirs, clean [B, T, D] the text's."""
    batch, _, size = own.shape
    tokens = model.embedding(drafted.rows.ids.gather(1, drafted.position)).view(batch, -1, drafted.length, size)
    own = own.view(tokens.shape)
    anchor = drafted.anchor[:, :: drafted.length, None].expand(-1, -1, size)
    states = [clean.gather(1, anchor)]
    for slot in range(drafted.length):
        states.append(model.chain(own[:, :, slot], states[-1], tokens[:, :, slot].to(own.dtype)))
    return torch.stack(states[1:], 2).flatten(1, 2)


@dataclass(frozen=True)
class Drafts(Objective):
    """Self-distillation of drafts. `slots` are spent per row, on groups of one length a step.

    lengths and shares: how often a step trains which group length. decay: weight of a slot relative to the
    one before it (a draft counts only where all before it were right). revealed: share of groups in which
    some slots show their token, as they do once a diffusion step has committed out of order.
    temperature: of the teacher, the one its text was written at. marginal: share of groups whose slots are also
    scored as they are, without the chain, as a diffusion step does that writes several at once.
    """

    shift: bool = True
    slots: int = 512
    lengths: tuple[int, ...] = (4, 8, 16, 32)
    shares: tuple[float, ...] = (0.7, 0.2, 0.07, 0.03)
    decay: float = 0.85
    revealed: float = 0.2
    temperature: float = 0.7
    marginal: float = 0.25

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.shares) or min(self.lengths) < 1 or min(self.shares) < 0:
            raise ValueError("lengths and shares must be of one count, lengths at least 1, shares not negative")
        if not abs(sum(self.shares) - 1) < 1e-6 or max(self.lengths) > self.slots:
            raise ValueError("shares must sum to 1 and slots must hold the longest group")
        if not 0 < self.decay <= 1 or not 0 <= self.revealed <= 1 or not self.temperature > 0:
            raise ValueError("decay must be in (0, 1], revealed in [0, 1] and temperature above 0")
        if not 0 < self.marginal <= 1:
            raise ValueError("marginal must be in (0, 1]")

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> Drafted:
        if mask_id is None:
            raise ValueError("drafts need a model with a mask_token_id")
        upper = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)[:-1]
        length = self.lengths[int((draws.shared() >= upper).sum())]
        groups = self.slots // length
        count, width = rows.ids.shape
        device = rows.ids.device
        u = draws.uniforms(width + groups * (length + 2)).to(device)

        follows = torch.zeros_like(rows.supervised)  # anchors whose first scored position is to be learned
        follows[:, :-2] = rows.supervised[:, 2:] & (rows.document[:, 2:] == rows.document[:, :-2])
        score = torch.where(follows, u[:, :width], -1.0)
        anchor = score.topk(min(groups, width), -1).indices
        if anchor.shape[1] < groups:
            anchor = torch.cat([anchor, anchor.new_zeros(count, groups - anchor.shape[1])], 1)
        used = follows.gather(1, anchor) & (torch.arange(groups, device=device) < width)
        rest = u[:, width:].view(count, groups, length + 2)
        most = max(1, int(used.sum(1).max()))  # the best scores come first: groups beyond are of no row
        anchor, used, rest = (each[:, :most] for each in (anchor, used, rest))

        def at(of_row: Tensor, index: Tensor) -> Tensor:
            return of_row.gather(1, index.flatten(1)).view_as(index)

        step = torch.arange(1, length + 1, device=device)
        place = anchor[..., None] + step  # [B, groups, K], index in the row
        scored = (place + 1).clamp(max=width - 1)
        document = at(rows.document, anchor)[..., None]
        inside = used[..., None] & (place + 1 < width) & at(rows.supervised, scored)
        inside &= at(rows.document, scored) == document
        in_row = place < width
        place = place.clamp(max=width - 1)
        there = (at(rows.document, place) == document) & in_row

        # a slot beyond its document or the row has no token of its own to show
        shown = there & (rest[..., 0:1] < self.revealed) & (rest[..., 2:] < rest[..., 1:2])
        inputs = torch.where(shown, at(rows.ids, place), mask_id)
        known_next = torch.cat([shown[..., 1:], torch.zeros_like(shown[..., :1])], -1)
        weights = torch.where(inside & ~known_next, self.decay ** (step - 1).double(), 0.0).float()
        return Drafted(
            inputs=inputs.flatten(1),
            targets=scored.flatten(1),
            weights=weights.flatten(1),
            rows=rows,
            normaliser=float(weights.sum()),
            position=place.flatten(1),
            anchor=anchor[..., None].expand_as(place).flatten(1),
            length=length,
        )

    def hidden(self, model: Any, drafted: Drafted) -> tuple[Tensor, Tensor]:
        """Hidden states of the text [B, T, D], without gradient, and of the drafts [B, M, D]."""
        rows = drafted.rows
        prefix = Prefix()
        with torch.no_grad():
            clean = model.hidden(rows.ids, rows.position, training_mask(Layout("causal"), rows), prefix)
        prefix.recording = False
        anchor = rows.position.gather(1, drafted.anchor)  # inside its document
        position = anchor + drafted.position - drafted.anchor
        document = rows.document.gather(1, drafted.anchor)
        text = Coordinates.drafts(rows.position, torch.full_like(rows.position, -1), rows.document)
        own = Coordinates.drafts(position, anchor, document)
        mask = GroupMask.of(own, text, drafted.length)
        gate = torch.ones_like(drafted.inputs, dtype=torch.bool)
        return clean, model.hidden(drafted.inputs, position, mask, prefix, gate_BT=gate)

    def loss(self, model: Any, noised: Drafted) -> Tensor:
        clean, own = self.hidden(model, noised)
        if model.chain is None:
            return self._distilled(model, noised, clean, own, noised.weights)
        group = torch.arange(own.shape[1], device=own.device) // noised.length
        some = torch.where(group % round(1 / self.marginal) == 0, noised.weights, 0.0)
        sequential = self._distilled(model, noised, clean, chained(model, noised, clean, own), noised.weights)
        return sequential + self._distilled(model, noised, clean, own, some)

    def _distilled(self, model: Any, noised: Drafted, clean: Tensor, states: Tensor, weights: Tensor) -> Tensor:
        """Loss of the slots that have a weight [B, M], from their states [B, M, D]."""
        row, slot = weights.nonzero(as_tuple=True)
        place = noised.position[row, slot] + row * clean.shape[1]
        unique, which = torch.unique(place, return_inverse=True)
        return Distillation.apply(  # type: ignore[no-untyped-call]
            states[row, slot],
            clean.flatten(0, 1)[unique],
            which,
            draft_head(model),
            weights[row, slot],
            self.temperature,
            256,
        )

    def held_out(self) -> Drafts:
        """Groups of eight, nothing revealed."""
        return replace(self, lengths=(min(8, self.slots),), shares=(1.0,), revealed=0.0)

    @torch.no_grad()
    def report(self, model: Any, noised: Drafted) -> dict[str, float]:
        """Of fully masked groups: how often slot j agrees with the base's own best token (`agree_j`, the
        first four) and how many tokens are right in a row (`accepted`), as sums over `count` groups."""
        clean, own = self.hidden(model, noised)
        own = own if model.chain is None else chained(model, noised, clean, own)
        index = noised.position[..., None].expand(-1, -1, clean.shape[-1])
        head = model.head.weight
        best = (clean.gather(1, index).to(head.dtype) @ head.T).argmax(-1)
        mine = model.draft_vocabulary[(own.to(head.dtype) @ draft_head(model).T).argmax(-1)]
        right = (mine == best) & (noised.weights > 0)
        length = noised.length
        weights = noised.weights.view(len(right), -1, length)
        right = right.view(len(right), -1, length)
        whole = (weights > 0).all(-1)
        in_a_row = right.long().cumprod(-1)[whole]
        out = {f"agree_{j + 1}": float(right[whole][:, j].sum()) for j in range(min(4, length))}
        return {**out, "accepted": float(in_a_row.sum()), "count": float(whole.sum())}
