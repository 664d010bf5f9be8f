"""Decoding by a stochastic sampler: the canvas goes down from time 1 in moves that are drawn, not chosen by a rule.

Shapes: L canvas positions, n scored columns, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import numpy as np

from unmask.canvas import Array, Commit, Kind
from unmask.decoding.feed import Columns
from unmask.decoding.methods import denoise
from unmask.decoding.methods.ancestral import (
    Move,
    SamplerName,
    SamplerOptions,
    SeededDraws,
    analytic,
    denoised,
    euler,
    first_hitting,
    nucleus,
    plan,
    posterior,
    psi_posterior,
    score_of,
)
from unmask.decoding.methods.denoise import Denoising
from unmask.decoding.request import Asked, Row, Scheme, Setting, StepResult, cannot_be_held
from unmask.noise import NoiseSchedule

MOST_VALUES = 2**22  # of distributions that are held at once
ANCESTRAL = ("ancestral", "ddpm", "ddpm_cache")


@dataclass(frozen=True)
class Options(SamplerOptions, denoise.Options):
    """What a step writes is drawn by a sampler, in place of a rule."""

    method: ClassVar[str] = "sample"
    by_rule: ClassVar[bool] = False

    @classmethod
    def claims(cls, asked: Asked) -> bool:
        return asked.mode == "diffusion" and asked.options.sampler != "none"

    @classmethod
    def suits(cls, asked: Asked) -> str | None:
        options = asked.options
        config = asked.config
        uniform = config.corruption == "uniform"
        scores = config.output == "log_score"
        blocks = config.block_length > 0
        windows = options.block_length is not None or asked.layout == "block_causal"
        fits = {
            "ancestral": not scores,
            "ddpm": not scores and not uniform,
            "ddpm_cache": not scores and not uniform,
            "psi": not scores and uniform,
            "analytic": scores or not (uniform or blocks),
            "euler": scores,
            "first_hitting": not scores and not uniform,
        }
        if config.layout not in ("bidirectional", "block_causal"):
            return f"sampler '{options.sampler}' is for diffusion models; leave it out and name a rule"
        if not fits[options.sampler]:
            known = ", ".join(name for name, fine in fits.items() if fine)
            kind = f"{config.corruption} noise{' and scores' if scores else ''}{' in blocks' if blocks else ''}"
            return f"sampler '{options.sampler}' is not for a model of {kind}; use {known}"
        if options.sampler == "first_hitting" and options.max_denoising_steps is not None:
            return "first_hitting takes a step for every mask; leave out max_denoising_steps, or use ddpm_cache"
        if uniform and windows:
            return "a canvas of random tokens is denoised at once; leave out block_length"
        if options.noise_removal == "none" and windows and not blocks:
            return "noise_removal 'none' would leave masks inside a text; use greedy or ancestral"
        if scores and (options.temperature, options.top_k, options.top_p, options.nucleus_p) != (1, 0, 1, 1):
            return "scores are not a distribution; leave out temperature, top_k, top_p and nucleus_p"
        if options.remask_budget:
            return f"remask_budget goes with a rule, not with sampler '{options.sampler}'; name a rule"
        return None

    @classmethod
    def reads(cls, asked: Asked) -> set[str]:
        sampler = asked.options.sampler
        uniform = asked.config.corruption == "uniform"
        out = denoise.windowed(asked) | {"sampler", "noise_removal", "nucleus_p"}
        if sampler == "psi":
            out.add("psi_kappa")
        if sampler == "first_hitting":
            out.discard("noise_removal")
            if asked.given.get("sampler") is not None:  # else who names steps gets a sampler that has them
                out.discard("max_denoising_steps")
        if asked.config.block_length > 0:
            out.discard("noise_removal")  # the last step of a block removes all
        if asked.config.output == "log_score":
            out -= {"temperature", "top_k", "top_p", "nucleus_p"}
        return out - {"block_length"} if uniform else out

    @classmethod
    def no_grammar(cls, asked: Asked) -> str | None:
        return cannot_be_held(asked, f"by sampler '{asked.options.sampler}'")

    @classmethod
    def of(cls, asked: Asked) -> Self:
        options = asked.options
        steps = options.max_denoising_steps or cls.steps
        return replace(super().of(asked), name=cast(SamplerName, options.sampler), steps=steps)

    def scheme(self, row: Row, setting: Setting) -> Scheme:
        return Sampling(row, setting, self)


class Sampling(Denoising):
    """The whole canvas, or a block of it, goes through its schedule.

    Under absorbing noise a written token stays; under uniform noise every open token may change at every move.
    Where the network is not told the time, a canvas that a move left as it was is not read again: several moves
    are drawn from one forward.
    """

    proposes = False

    def __init__(self, row: Row, setting: Setting, options: SamplerOptions) -> None:
        super().__init__(row, setting)
        config = setting.config
        self.pays_empty = False  # the rule is not asked
        self.config = config
        self.options = options
        self.draws = row.request.draws or SeededDraws(row.request.seed)
        self.mask_id = config.mask_token_id if config.corruption == "absorbing" else None
        self.noise = NoiseSchedule.of_network(config.noise_schedule, *config.noise_range)  # what the network is told
        self.chances = NoiseSchedule.of_network("linear") if options.name == "ddpm_cache" else self.noise
        self.hits = options.name == "first_hitting"
        self.blocks = setting.layout.kind == "block_causal"
        self.reads_always = config.time_conditioned or not (self.blocks or options.name == "ddpm_cache")
        self.updates = 0
        self.finished = False
        self._restart()

    def _restart(self) -> None:
        """At the start of a block: time 1."""
        self.moves = [] if self.hits else plan(self.options, self.blocks)
        self.taken = 0
        self.hit_at = 1.0
        self.masks_then = 0

    def settle(self) -> bool:
        start = self.start
        if self.finished:
            return False
        if not super().settle():
            return self.options.whole and self.taken < len(self.moves)
        if self.start != start:
            self._restart()
        masks = int(self.row.masked[self.start : self.end].sum())
        if self.hits and masks != self.masks_then:
            self.hit_at = first_hitting(self.hit_at, self.draws.hit(self.updates), masks)
            self.masks_then = masks
        return True

    def columns(self) -> Columns:
        t = self.hit_at if self.hits else self.moves[self.taken].t
        return replace(super().columns(), time=float(self.noise.sigma(t)) if self.config.time_conditioned else 0.0)

    def _writes_once(self) -> bool:
        return self.mask_id is not None

    def take(self, result: StepResult) -> list[Commit]:
        old = self.row.canvas.ids[0, result.target]
        token, confidence, over = self._hit(result, old) if self.hits else self._move(result, old)
        self._taken()
        chosen = token != old
        uniform = self.mask_id is None
        if uniform and over:
            self.row.written = self.row.length
            chosen = np.ones(len(old), bool)
        self.finished = over and (uniform or self.options.noise_removal == "none") and not self.blocks
        kind: Kind = "renoise" if uniform and not over else "unmask"
        return [self.commit(result.target, token, confidence, chosen, kind)]

    def _move(self, result: StepResult, old: Array) -> tuple[Array, Array, bool]:
        """Tokens and confidences after the next moves, up to one that needs a forward; and whether that was all."""
        while True:
            token, confidence = self._draw(result, np.arange(len(old)), self.moves[self.taken])
            self.taken += 1
            self.updates += 1
            if self.taken == len(self.moves):
                return token, confidence, True
            anew = self.options.whole and self.moves[self.taken].removal != "none"
            if anew or self.reads_always or (token != old).any():
                return token, confidence, False

    def _hit(self, result: StepResult, old: Array) -> tuple[Array, Array, bool]:
        """One mask becomes a token."""
        index = np.array([self.draws.pick(self.updates, len(old))])
        token = old.copy()
        confidence = np.zeros(len(old))
        token[index], confidence[index] = self._draw(result, index, Move(self.hit_at, 0.0, "ancestral"))
        self.updates += 1
        return token, confidence, False

    def _draw(self, result: StepResult, index: Array, move: Move) -> tuple[Array, Array]:
        """Tokens of scored columns after a move, and their chances under the network; few distributions at a time."""
        token = self.row.canvas.ids[0, result.target[index]]
        confidence = np.zeros(len(index))
        places, move = self._leaving(result.target[index], move)
        count = max(1, MOST_VALUES // self.config.vocab_size)
        for first in range(0, len(places), count):
            here = places[first : first + count]
            some = index[here]
            x = token[here]
            rows = np.arange(len(here))
            estimate = self._estimate(result, some, x)
            weights = self._transition(estimate, x, move)
            greedy = move.removal == "greedy"
            drawn = weights.argmax(-1) if greedy else self.draws.tokens(weights, self.updates, result.target[some])
            p = weights / weights.sum(-1, keepdims=True) if self.config.output == "log_score" else estimate
            token[here] = drawn
            confidence[here] = p[rows, drawn]
        return token, confidence

    def _leaving(self, position_n: Array, move: Move) -> tuple[Array, Move]:
        """Which of the positions to draw, and by which move: masks that stay need no distribution."""
        everywhere = np.arange(len(position_n))
        if move.removal != "none" or self.options.name not in ANCESTRAL or self.mask_id is None:
            return everywhere, move
        alpha_s = self.chances.alpha(move.s)
        alpha_t = self.chances.alpha(move.t)
        leaving = self.draws.leaving((alpha_s - alpha_t) / (1 - alpha_t), self.updates, position_n)
        return (everywhere, move) if leaving is None else (leaving.nonzero()[0], Move(move.t, 0.0, "ancestral"))

    def _estimate(self, result: StepResult, index: Array, x_n: Array) -> Array:
        """What the network says of columns, [n, V]: distributions of clean tokens, or the score."""
        p = result.probabilities(index)
        rows = np.arange(len(index))
        if self.config.output == "log_score":  # the token that is there has the score 1
            return p / p[rows, x_n][:, None]
        if self.row.request.temperature == 0:
            best = p.argmax(-1)
            p = np.zeros_like(p)
            p[rows, best] = 1
        return nucleus(p, self.options.nucleus_p)

    def _transition(self, estimate: Array, x_n: Array, move: Move) -> Array:
        """Chances [n, V] of the tokens after a move, up to a factor."""
        name = self.options.name
        mask_id = self.mask_id
        if name in ("analytic", "euler"):
            sigma = self.noise.sigma(move.t)
            implied = self.config.output == "logits" and mask_id is not None
            score = score_of(estimate, x_n, sigma, mask_id) if implied and mask_id is not None else estimate
            if move.removal != "none":
                return denoised(score, x_n, sigma, mask_id)
            if name == "euler":
                return euler(score, x_n, self.noise.rate(move.t) * (move.t - move.s), mask_id)
            return analytic(score, x_n, sigma - self.noise.sigma(move.s), mask_id)
        if move.removal == "greedy" or (move.removal == "ancestral" and mask_id is not None):
            return estimate
        alpha_t = self.chances.alpha(move.t)
        alpha_s = alpha_t / alpha_t if move.removal == "ancestral" else self.chances.alpha(move.s)
        if name == "psi" and move.removal == "none":
            return psi_posterior(estimate, x_n, alpha_s, alpha_t, self.options.psi_kappa)
        return posterior(estimate, x_n, alpha_s, alpha_t, mask_id)
