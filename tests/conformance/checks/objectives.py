"""Training objectives against numbers that the references' own methods gave for fixed logits, times and masks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from conformance.checks.checks import Check, not_checked, perform
from conformance.checks.outcome import Outcome
from unmask.models.transformer import log_scores
from unmask.noise import NoiseSchedule, ScheduleName, on_grid
from unmask.objectives.consistency import Divergence, divergence
from unmask.objectives.draws import Draws
from unmask.objectives.masked import BD3LM, MDLM, cart_weights
from unmask.objectives.objective import Noised, Normaliser, Objective, Rows
from unmask.objectives.score import DUO, SEDD, NoiseConditioned

LOW = 1e-6  # a low end of the clip that leaves the references' times as they are
PLAIN_LOW = 1e-3  # the low end that the references' own draws of times are clipped to


@dataclass(frozen=True, kw_only=True)
class FixedDraws(Draws):
    """Draws that are given: times as drawn [B, n] (before any clip) and uniforms [B, L]."""

    t: Tensor
    u: Tensor
    drawn: Tensor | None = None  # random tokens [B, L]

    def strata(self, per_row: int) -> Tensor:
        return self.t

    def uniforms(self, length: int) -> Tensor:
        return self.u

    def tokens(self, length: int, vocab_size: int) -> Tensor:
        assert self.drawn is not None
        return self.drawn


class FixedLogits:
    """A network whose logits [B, L, V] are given: its states are the logits and its head is the identity."""

    def __init__(self, logits: Tensor, mask_id: int, shift: bool = False, scores: bool = False) -> None:
        self.logits, self.shift, self.scores = logits, shift, scores
        self.config = SimpleNamespace(mask_token_id=mask_id, loops=1)
        self.head: Any = SimpleNamespace(weight=torch.eye(logits.shape[-1]), bias=None)

    def hidden(self, ids: Tensor, positions: Tensor, mask: Any, *, time_B: Tensor | None) -> Tensor:
        return torch.cat([self.logits, self.logits], 1)[:, : ids.shape[1]]

    def __call__(self, ids_BT: Tensor, positions_BT: Tensor, mask: Any, cache: None, time_B: Tensor | None) -> Tensor:
        return log_scores(self.logits, ids_BT, time_B, True) if self.scores else self.logits

    def unshift(self, x: Tensor, positions: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, :-1]], 1) if self.shift else x


def before_clip(t: Tensor, low: float) -> Tensor:
    """The draw that a clip to [low, 1] maps to t."""
    return ((t.double() - low) / (1 - low)).float()


@dataclass(frozen=True)
class Reference:
    """Recorded logits [B, L, V], texts, corruptions and times, and what a reference's loss made of them."""

    tensors: dict[str, Tensor]
    mask_id: int

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def network(self, shift: bool = False) -> FixedLogits:
        return FixedLogits(self["logits"], self.mask_id, shift)

    def rows(self, supervised: Tensor | None = None) -> Rows:
        return Rows.of(self["x0"], supervised=supervised)

    @property
    def block_length(self) -> int:
        return self["block.x_t"].shape[1] // self["block.sample_t.u"].shape[1]

    def forced(self, profile: MDLM, rows: Rows, x_t: Tensor, t: Tensor) -> Noised:
        """The profile's corruption where it draws the times t, before its clip, and masks what x_t masks."""
        draws = FixedDraws(0, 0, len(x_t), 0, len(x_t), t=t, u=(x_t == self.mask_id).float())
        noised = profile.corrupt(rows, draws, self.mask_id)
        if not torch.equal(noised.inputs[:, : x_t.shape[1]], x_t):
            raise ValueError("the corruption is not the recorded one")
        return noised

    def per_token(self, profile: Objective, noised: Noised) -> Tensor:
        """The loss of each token [B, L], by scoring them one at a time."""
        return self.one_by_one(profile, self.network(profile.shift), noised)

    @staticmethod
    def one_by_one(profile: Objective, model: FixedLogits, noised: Noised) -> Tensor:
        out = torch.zeros(noised.weights.shape)
        for b, i in noised.weights.nonzero().tolist():
            only = torch.zeros_like(noised.weights)
            only[b, i] = noised.weights[b, i]
            out[b, i] = profile.loss(model, replace(noised, weights=only))
        return out

    def mean(self, profile: MDLM, noised: Noised) -> Tensor:
        return profile.loss(self.network(profile.shift), noised) / noised.normaliser


Compute = Callable[[Reference], Tensor]


def mdlm(r: Reference, kept: bool = False, schedule: ScheduleName = "linear") -> Tensor:
    """MDLM's SUBS loss; `kept` reduces it over the tokens of an attention mask."""
    profile = MDLM(clip=(LOW, 1.0), schedule=schedule)
    noised = r.forced(profile, r.rows(), r["x_t"], before_clip(r["t"], LOW)[:, None])
    if not kept:
        return r.per_token(profile, noised)
    attended = r["attention_mask"].bool()
    scored = replace(noised, weights=noised.weights * attended)
    return profile.loss(r.network(), scored) / attended.sum()


def chain(r: Reference, steps: int, reconstruction: bool = False) -> Tensor:
    """MDLM's loss of discrete times, which end at 1 - 1e-4; D3PM's has that of reading the clean text besides."""
    profile = MDLM(clip=(LOW, 1.0), steps=steps)
    noised = r.forced(profile, r.rows(), r["x_t"], before_clip(r["discrete.t"], LOW)[:, None])
    last = on_grid(r["discrete.t"], steps)[:, None] > 1 - 1e-4
    losses = r.per_token(
        profile, replace(noised, weights=torch.where(last, noised.weights / (1 - 1e-4), noised.weights))
    )
    if not reconstruction:
        return losses
    return losses + r.per_token(profile, replace(noised, weights=torch.ones_like(noised.weights)))


def told(
    r: Reference, profile: NoiseConditioned, name: str, x_t: str = "x_t", reduced: bool = False, rate: bool = True
) -> Tensor:
    """The loss of SEDD or DUO of each token, times d sigma / dt or not; `reduced` adds a row's up.

    name: of the recorded network outputs; logits become SEDD's log scores.
    """
    ids, t = r[x_t], before_clip(r["t"], profile.clip[0])[:, None]
    draws = FixedDraws(0, 0, len(ids), 0, len(ids), t=t, u=(ids != r["x0"]).float(), drawn=ids)
    noised = profile.corrupt(r.rows(), draws, r.mask_id, int(r[name].shape[-1]))
    if not torch.equal(noised.inputs, ids):
        raise ValueError("the corruption is not the recorded one")
    if not rate:
        noised = replace(noised, weights=torch.ones_like(noised.weights))
    model = FixedLogits(r[name], r.mask_id, scores=name == "logits" and isinstance(profile, SEDD))
    losses = r.one_by_one(profile, model, noised)
    return losses.sum(1) if reduced else losses


def cosine(r: Reference) -> Tensor:
    """DUO's cosine schedule; its derivative lacks the factor 1 - 1e-3 of the time's."""
    return told(r, DUO(schedule="cosine", clip=(LOW, 1.0)), "logits", "duo.x_t") / (1 - 1e-3)


def bd3lm(r: Reference, weight: str = "nelbo", first: str = "scored", schedule: ScheduleName = "linear") -> Tensor:
    """BD3-LM's loss, a time per block. The first token is scored, left out, or left out but counted."""
    how: Any = {"weight": weight, "schedule": schedule}
    profile = BD3LM(clip=(LOW, 1.0), block_length=r.block_length, **how)
    t, x_t = before_clip(r["block.t"][:, :: r.block_length], LOW), r["block.x_t"]
    if first == "scored":
        noised = r.forced(profile, r.rows(), x_t, t)
        return r.per_token(profile, replace(noised, weights=noised.weights * _guards(schedule, r["block.t"])))
    beyond = torch.arange(x_t.shape[1]).expand(x_t.shape) > 0
    attended = r["attention_mask"].bool()
    noised = r.forced(profile, r.rows(beyond), torch.where(beyond, x_t, r["x0"]), t)
    count = float((attended & beyond if first == "out" else attended).sum())
    return r.mean(profile, replace(noised, weights=noised.weights * attended, normaliser=count))


def _guards(schedule: ScheduleName, t: Tensor) -> Tensor:
    """What BD3-LM's guards against small shares of masks make of a weight."""
    share = 1 - NoiseSchedule(schedule).alpha(t)
    if schedule == "cosine_mdlm":
        return (1 - 1e-3) * share / (1 - (1 - 1e-3) * (1 - share) + 1e-3)
    return share / share.clamp(min=1e-3) if schedule in ("square", "square_root") else torch.ones_like(t)


def exact_blocks_of_one(r: Reference) -> Tensor:
    profile = BD3LM(clip=(1.0, 1.0), block_length=1)
    everything = torch.full_like(r["x0"], r.mask_id)
    return r.per_token(profile, r.forced(profile, r.rows(), everything, torch.ones(r["x0"].shape)))


def clipped_times(r: Reference) -> Tensor:
    """BD3-LM's affine clip of the times that it drew without one."""
    low, high = next(_clips(r))
    profile = BD3LM(clip=(low, high), block_length=r.block_length)
    drawn = before_clip(r["bd3lm.sample_t.antithetic"][:, :: r.block_length], PLAIN_LOW)
    return profile.times(r.rows(), FixedDraws(0, 0, len(drawn), 0, len(drawn), t=drawn, u=torch.zeros_like(drawn)))


def _clips(r: Reference) -> Any:
    for name in r.tensors:
        found = re.fullmatch(r"bd3lm\.subs_loglinear_clipped_([\d.]+)_([\d.]+)", name)
        if found:
            yield float(found.group(1)), float(found.group(2))


LLADA = MDLM(clip=(1e-3, 1.0), forbid_mask=False)  # p = (1 - eps) t + eps, plain softmax


def llada(r: Reference, per_token: bool = False) -> Tensor:
    noised = r.forced(LLADA, r.rows(), r["x_t"], r["t"][:, None])
    return r.per_token(LLADA, noised)[r["x_t"] == r.mask_id] if per_token else r.mean(LLADA, noised)


def answers(r: Reference, normaliser: Normaliser) -> Tensor:
    """Loss on answers only: LLaDA divides by each answer's length, SDAR by all answers' tokens."""
    profile = replace(LLADA, normaliser=normaliser)
    supervised = torch.arange(r["x0"].shape[1]) >= r["llada.prompt_lengths"][:, None]
    return r.mean(profile, r.forced(profile, r.rows(supervised), r["llada.sft.x_t"], r["t"][:, None]))


def dllm(r: Reference, profile: MDLM, how: str = "mean") -> Tensor:
    """From the reference's own uniform draws: it masks where u < 1 - alpha, we keep where u < alpha."""
    profile = replace(profile, forbid_mask=False)
    t = r["dllm.u_t"][:, None]
    draws = FixedDraws(0, 0, len(t), 0, len(t), t=t, u=1 - r["dllm.u_mask"])
    noised = profile.corrupt(r.rows(r["dllm.labels"] != -100), draws, r.mask_id)
    x_t = r["dllm.cosine.x_t" if profile.schedule == "cosine" else "dllm.x_t"]
    if not torch.equal(noised.inputs[:, : x_t.shape[1]], x_t):
        raise ValueError("the corruption is not the recorded one")
    if profile.weight == "nelbo":  # its weights have 1e-6 more in the denominator
        masked = 1 - profile.noise.alpha(profile.times(noised.rows, draws))
        noised = replace(noised, weights=noised.weights * masked / (masked + 1e-6))
    if how == "per token":
        return r.per_token(profile, noised) / len(t)  # recorded with the batch's normaliser in it
    return r.mean(profile, noised if how == "mean" else replace(noised, normaliser=float(len(t))))


def cart(r: Reference) -> Tensor:
    masked = r["dllm.x_t"] == r.mask_id
    return cart_weights(masked, torch.zeros_like(r["x0"]))


def dllm_blocks(r: Reference) -> Tensor:
    """Its block loss draws one time per row; whatever the blocks, the same logits give the same loss."""
    length = r["dllm.x_t"].shape[1]
    profile = BD3LM(forbid_mask=False, block_length=length)
    return dllm(r, profile)


def unweighted(r: Reference, shift: bool = False) -> Tensor:
    """Plain cross-entropy of masked tokens (dFactory, Fast-dLLM v2); a shifted head can't score the first."""
    profile = MDLM(weight="none", normaliser="masked", forbid_mask=False, shift=shift)
    noised = r.forced(profile, r.rows(), r["x_t"], r["t"][:, None])
    if shift:
        weights = noised.weights.clone()
        weights[:, 0] = 0
        noised = replace(noised, weights=weights, normaliser=float((weights > 0).sum()))
    return r.mean(profile, noised)


def dcd(r: Reference, kind: Divergence) -> Tensor:
    return divergence(r["dcd.teacher_log_probs"], r["dcd.student_log_probs"], kind)


ABSORB, UNIFORM = SEDD(clip=(LOW, 1.0)), SEDD(corruption="uniform", clip=(LOW, 1.0))
SEDD_ABSORB: Any = {"name": "sedd_absorb.log_score", "x_t": "sedd_absorb.x_t"}
SEDD_UNIFORM: Any = {"name": "sedd_uniform.log_score", "x_t": "sedd_uniform.x_t"}

CHECKS: dict[str, Compute] = {
    r"mdlm\.subs_loglinear": mdlm,
    r"mdlm\.subs_loglinear\.reduced": partial(mdlm, kept=True),
    r"mdlm\.subs_cosine": partial(mdlm, schedule="cosine_mdlm"),
    r"mdlm\.subs_geometric": partial(mdlm, schedule="geometric"),
    r"mdlm\.subs_(change_of_variables|importance_sampling)": partial(mdlm, schedule="log_uniform"),
    r"mdlm\.subs_discrete_T10": partial(chain, steps=10),
    r"mdlm\.subs_discrete_T1000": partial(chain, steps=1000),
    r"mdlm\.d3pm_T1000_subs_masking": partial(chain, steps=1000, reconstruction=True),
    r"(mdlm|duo)\.sedd_absorb": partial(told, profile=ABSORB, name="logits"),
    r"sedd\.absorb\.score_entropy": partial(told, profile=ABSORB, **SEDD_ABSORB, rate=False),
    r"sedd\.absorb\.loss": partial(told, profile=ABSORB, **SEDD_ABSORB, reduced=True),
    r"sedd\.uniform\.score_entropy": partial(told, profile=UNIFORM, **SEDD_UNIFORM, rate=False),
    r"sedd\.uniform\.loss": partial(told, profile=UNIFORM, **SEDD_UNIFORM, reduced=True),
    r"duo\.uniform_loglinear(_float64)?": partial(told, profile=DUO(clip=(LOW, 1.0)), name="logits", x_t="duo.x_t"),
    r"duo\.uniform_cosine": cosine,
    r"duo\.mdlm": mdlm,
    r"dcd\.kl_fwd": partial(dcd, kind="forward"),
    r"dcd\.kl_bwd": partial(dcd, kind="backward"),
    r"bd3lm\.subs_loglinear(_clipped_[\d.]+_[\d.]+)?": bd3lm,
    r"bd3lm\.mdlm_loss_scale": bd3lm,
    r"bd3lm\.subs_CosineNoise": partial(bd3lm, schedule="cosine_mdlm"),
    r"bd3lm\.subs_LogarithmicNoise": partial(bd3lm, schedule="logarithmic"),
    r"bd3lm\.subs_ExpNoise2": partial(bd3lm, schedule="square"),
    r"bd3lm\.subs_ExpNoise0\.5": partial(bd3lm, schedule="square_root"),
    r"bd3lm\.subs_clip_min_[\d.]+_unit_weight": partial(bd3lm, weight="none"),
    r"bd3lm\.ignore_bos_eval\.reduced": partial(bd3lm, first="out"),
    r"bd3lm\.ignore_bos_train\.reduced": partial(bd3lm, first="counted"),
    r"bd3lm\.nll_block1": exact_blocks_of_one,
    r"bd3lm\.sample_t\.antithetic_clip": clipped_times,
    r"llada\.pretrain\.loss": llada,
    r"llada\.pretrain\.token_loss_masked_order": partial(llada, per_token=True),
    r"llada\.sft\.loss": partial(answers, normaliser="answer"),
    r"sdar\.loss": partial(answers, normaliser="tokens"),
    r"dllm\.mdlm\.token": partial(dllm, profile=MDLM()),
    r"dllm\.mdlm\.sequence": partial(dllm, profile=MDLM(normaliser="answer")),
    r"dllm\.mdlm\.batch": partial(dllm, profile=MDLM(), how="batch"),
    r"dllm\.mdlm\.token_nll": partial(dllm, profile=MDLM(), how="per token"),
    r"dllm\.mdlm\.uniform_weight": partial(dllm, profile=MDLM(weight="none")),
    r"dllm\.mdlm\.cosine": partial(dllm, profile=MDLM(schedule="cosine")),
    r"dllm\.mdlm\.right_shift": partial(dllm, profile=MDLM(shift=True)),
    r"dllm\.bd3lm\.token": dllm_blocks,
    r"dllm\.dream_cart": partial(dllm, profile=MDLM(weight="cart", shift=True)),
    r"dllm\.dream_cart\.weights": cart,
    r"dfactory\.same_token_labels": unweighted,
    r"dfactory\.shifted_labels": partial(unweighted, shift=True),
    r"fastv2\.loss": partial(unweighted, shift=True),
}

OURS_DIFFERS = {  # on purpose, and nothing recorded can show that ours is right; tests/test_noise.py does
    r"bd3lm\.sample_t\.antithetic": "ours permutes the strata of times, theirs deals them in order",
    r"llada\.likelihood_levels": "ours draws numbers of masks stratum by stratum, theirs from a first one on",
}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Greatest difference, of values above ten relative to a tenth of them: 1e-4 and one part in 1e5."""
    ours = ours.double().reshape(theirs.shape)
    return float(((ours - theirs).abs() / (1 + 0.1 * theirs.double().abs())).max())


def outcomes(folder: str, recorded: dict[str, Any], tensors: dict[str, Tensor]) -> list[Outcome]:
    """Checks every loss that an objective here computes; the others are said to be not checked."""
    out, reference = [], Reference(tensors, int(recorded.get("mask_id", -1)))
    for name in recorded.get("cases", {}):
        compute = next((make for pattern, make in CHECKS.items() if re.fullmatch(pattern, name)), None)
        if compute is None or name not in tensors:
            own = next((why for pattern, why in OURS_DIFFERS.items() if re.fullmatch(pattern, name)), None)
            out.append(not_checked(folder, "objective", name, own or "no objective here computes it"))
        else:
            check = Check("objective", name, partial(_difference, compute, reference, name))
            out.append(perform(folder, check))
    return out


def _difference(compute: Compute, reference: Reference, name: str) -> float:
    return relative(compute(reference), reference[name])
