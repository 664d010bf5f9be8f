"""Distillation to few steps: a student learns to say at once what its teacher says a little later.

It goes by rounds, each with fewer steps than the one before; the trainer renews the teacher, a frozen copy of the
student, as a round begins. Shapes: B rows, L tokens, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from unmask.layout import Layout
from unmask.models.transformer import Transformer
from unmask.noise import clip_times
from unmask.objectives.distill import over_chunks, without
from unmask.objectives.draws import Draws
from unmask.objectives.masked import MDLM
from unmask.objectives.objective import Noised, Normaliser, Objective, Rows, training_mask
from unmask.objectives.score import DUO, gaussian_alpha

Divergence = Literal["forward", "backward"]
SUBSTEPS = 2  # of the teacher in a step of the student


def divergence(teacher_log_p_V: Tensor, student_log_p_V: Tensor, kind: Divergence) -> Tensor:
    """KL(teacher, student), forward, or KL(student, teacher), backward, in nats, over the last axis."""
    p_V, q_V = teacher_log_p_V, student_log_p_V
    if kind == "backward":
        p_V, q_V = q_V, p_V
    return (p_V.exp() * (p_V - q_V)).sum(-1)


def drawn(log_p_NV: Tensor, u_N: Tensor) -> Tensor:
    """A token [N] of each distribution, by inversion of uniform draws."""
    sums = log_p_NV.double().exp().cumsum(-1)
    return torch.searchsorted(sums, u_N.double()[:, None] * sums[:, -1:], right=True).squeeze(1)


def gaussian_gap(u_BL: Tensor, v_BL: Tensor, size: int) -> Tensor:
    """How far the greatest of size - 1 standard normal draws lies above one more [B, L], float64, from uniforms.

    Where a one-hot vector times a is added to noise times b, its token stays the greatest as long as a / b exceeds
    that; and the other that wins is one and the same for all a / b.
    """
    greatest = -torch.special.ndtri(-torch.expm1(u_BL.double().log() / (size - 1)))
    return greatest - torch.special.ndtri(v_BL.double())


@dataclass(frozen=True, kw_only=True)
class OnPath(Noised):
    """A corrupted batch, and what its teacher will read: a later state of the same texts, or draws to make one."""

    start: Tensor  # time of `inputs` [B]
    end: Tensor  # earlier time, that a student's step ends at [B]
    later: Tensor  # ids [B, L] at `end`
    u: Tensor  # uniform draws [B, 2 L]


@dataclass(frozen=True, kw_only=True)
class Foretold(Noised):
    """A corrupted batch with the teacher's log-chances of each scored token, and which of them the text settles."""

    log_p: Tensor  # [N, V]
    known: Tensor  # bool [N]


def told(noised: OnPath, log_p: Tensor, known: Tensor) -> Foretold:
    plain = {field.name: getattr(noised, field.name) for field in fields(Noised)}
    return Foretold(**plain, log_p=log_p, known=known)


@dataclass(frozen=True)
class InRounds(Objective):
    """Objectives that go by rounds. All logits of a micro-batch are held at once."""

    needs_teacher: ClassVar[bool] = True
    rounds: tuple[int, ...] = (32, 16, 8, 4)  # steps that the student is to write a canvas in, a number a round
    round_length: int = 200  # steps of training in each round but the last, which has the rest
    divergence: Divergence = "backward"  # KL(student, teacher), which looks for modes; forward: KL(teacher, student)

    def check(self) -> None:
        if not self.rounds or min(self.rounds) < 1 or self.round_length < 1:
            raise ValueError("rounds must name steps, at least 1 each, and round_length must be at least 1")

    def at(self, step: int) -> Self:
        number = min(step // self.round_length, len(self.rounds) - 1)
        return replace(self, rounds=self.rounds[number : number + 1])

    def score(self, logits_NV: Tensor, log_p_NV: Tensor, known_N: Tensor, target_N: Tensor, weight_N: Tensor) -> Tensor:
        log_q_NV = logits_NV.log_softmax(-1)
        told = divergence(log_p_NV, log_q_NV, self.divergence)
        given = -log_q_NV.gather(-1, target_N[:, None]).squeeze(-1)
        return (torch.where(known_N, given, told) * weight_N).sum()


@dataclass(frozen=True)
class MaskedConsistency(InRounds, MDLM):
    """Consistency distillation of a masked diffusion model: the student's distribution of a masked token is to be the
    teacher's when a step more of the text is known, and the text's own token where that step tells it."""

    weight: Literal["nelbo", "none", "cart"] = "none"
    normaliser: Normaliser = "masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        if self.complementary or self.steps or self.weight == "cart":
            raise ValueError("leave out complementary, steps and weight: cart; they are not of distillation by rounds")

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> OnPath:
        noised = super().corrupt(rows, draws, mask_id)
        length = rows.ids.shape[1]
        start = self.times(rows, draws)[:, 0]
        end = (start - 1 / self.rounds[0]).clamp(min=0)
        u = draws.uniforms(length).to(rows.ids.device)
        more = draws.uniforms(2 * length, purpose=5).to(rows.ids.device)
        later = torch.where(u < self.noise.alpha(end)[:, None], rows.ids, noised.inputs)
        return OnPath(**vars(noised), start=start, end=end, later=later, u=more)

    def log_chances(self, model: Transformer, noised: Noised, at: tuple[Tensor, ...]) -> Tensor:
        return without(model.head(self.states(model, noised)[at]).float(), self.banned(model)).log_softmax(-1)

    def teach(self, teacher: Any, noised: Any) -> Foretold:
        at = noised.weights.nonzero(as_tuple=True)
        time = self.condition(noised.end[:, None])
        log_p = self.log_chances(teacher, replace(noised, inputs=noised.later, time=time), at)
        return told(noised, log_p, (noised.later != noised.inputs)[at])

    def loss(self, model: Transformer, noised: Any) -> Tensor:
        at = noised.weights.nonzero(as_tuple=True)
        hidden = self.states(model, noised)[at]
        per_token = (noised.log_p, noised.known, noised.targets[at], noised.weights[at])
        return over_chunks(self.score, hidden, model, self.banned(model), *per_token)


@dataclass(frozen=True)
class SDTT(MaskedConsistency):
    """Self-distillation through time (arXiv 2410.21035): a step of the student is to say what two steps of ancestral
    sampling by the teacher do, of each masked token as it was when the teacher wrote it, or at last."""

    def teach(self, teacher: Any, noised: Any) -> Foretold:
        at = noised.weights.nonzero(as_tuple=True)
        u_leave, u_token = (part[at] for part in noised.u.chunk(2, -1))
        first = self.log_chances(teacher, noised, at)
        middle = (noised.start + noised.end) / SUBSTEPS
        stays = (1 - self.noise.alpha(middle)) / (1 - self.noise.alpha(noised.start))
        written = u_leave >= stays[at[0]]
        inputs = noised.inputs.clone()
        inputs[at] = torch.where(written, drawn(first, u_token), inputs[at])
        time = self.condition(middle[:, None])
        second = self.log_chances(teacher, replace(noised, inputs=inputs, time=time), at)
        return told(noised, torch.where(written[:, None], first, second), torch.zeros_like(written))


@dataclass(frozen=True)
class DCD(InRounds, DUO):
    """Discrete consistency distillation of uniform noise (DUO, arXiv 2506.10892): student and teacher read the argmax
    of one path of Gaussian noise, the teacher a step earlier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        if self.curriculum != (0, 0):
            raise ValueError("curriculum is of training by duo; leave it out")

    def corrupt(self, rows: Rows, draws: Draws, mask_id: int | None, vocab_size: int = 0) -> OnPath:
        length = rows.ids.shape[1]
        device = rows.ids.device
        step = 1 / self.rounds[0]
        start = (clip_times(draws.strata(1)[:, 0], *self.clip) + step).clamp(max=1).to(device)
        u_BL, v_BL = draws.uniforms(2 * length).to(device).chunk(2, -1)
        gap_BL = gaussian_gap(u_BL, v_BL, vocab_size)
        other_BL = draws.tokens(length, vocab_size - 1).to(device)
        other_BL = other_BL + (other_BL >= rows.ids).long()  # any token but the text's

        def state(time_B: Tensor) -> tuple[Tensor, Tensor]:
            gamma_B = self.gammas(time_B)
            kept_BL = torch.exp(-gamma_B.double() / 2)[:, None] > gap_BL
            sigma_B = -gaussian_alpha(gamma_B, vocab_size)[0].log()
            return torch.where(kept_BL | ~rows.supervised, rows.ids, other_BL), sigma_B.float()

        inputs, sigma = state(start)
        later, sigma_later = state(start - step)
        noised = self._noised(inputs, rows, torch.ones_like(u_BL), rows.supervised, sigma)
        return OnPath(**vars(noised), start=sigma, end=sigma_later, later=later, u=u_BL)

    def log_chances(self, model: Transformer, inputs: Tensor, sigma: Tensor, noised: Noised) -> Tensor:
        mask = training_mask(Layout("bidirectional"), noised.rows)
        out_BLV = model(inputs, noised.rows.position, mask, None, sigma)
        return out_BLV[noised.weights.nonzero(as_tuple=True)].float().log_softmax(-1)

    def teach(self, teacher: Any, noised: Any) -> Foretold:
        log_p = self.log_chances(teacher, noised.later, noised.end, noised)
        return told(noised, log_p, torch.zeros(len(log_p), dtype=torch.bool, device=log_p.device))

    def loss(self, model: Transformer, noised: Any) -> Tensor:
        log_q = self.log_chances(model, noised.inputs, noised.time, noised)
        at = noised.weights.nonzero(as_tuple=True)
        return (divergence(noised.log_p, log_q, self.divergence) * noised.weights[at]).sum()
