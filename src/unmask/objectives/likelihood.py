"""How likely a text is: exact for AR, per block for block diffusion, a bound with its error for full canvases.

All values are negative log-likelihoods in nats. Shapes: R windows, T tokens of a window, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from unmask.attention import plain_mask
from unmask.errors import UnmaskError
from unmask.layout import GROUPED, Layout
from unmask.models.transformer import Transformer
from unmask.noise import NoiseSchedule
from unmask.objectives.masked import BD3LM
from unmask.objectives.objective import Noised, Rows
from unmask.objectives.score import score_entropy, uniform_prior, uniform_score

Method = Literal["exact", "blockwise", "nelbo"]
Progress = Callable[[float], None]  # called with the share that is done


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of one text, or an upper bound on it."""

    nats: float
    tokens: int
    std_error: float  # of `nats`; 0 for exact methods
    num_bytes: int
    method: Method

    @staticmethod
    def total(parts: list[Likelihood]) -> Likelihood:
        """Of independent texts together."""
        return Likelihood(
            nats=sum(part.nats for part in parts),
            tokens=sum(part.tokens for part in parts),
            std_error=math.sqrt(sum(part.std_error**2 for part in parts)),
            num_bytes=sum(part.num_bytes for part in parts),
            method=parts[0].method,
        )

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.num_bytes)

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(700.0, self.nats / max(1, self.tokens)))


def exact_causal(model: Transformer, window_RT: Tensor) -> Tensor:
    """-log p(x_1.. | x_0) of a causal model in one forward, [R]."""
    mask = plain_mask(Layout("causal"), window_RT.shape[1], window_RT.device, model.config.windows)
    logits = model(window_RT, None, mask)
    return -_log_p(model, logits, window_RT)[:, 1:].sum(1)


def exact_sequential(model: Transformer, window_RT: Tensor, batch: int = 16) -> Tensor:
    """Chain rule from left to right on a masked model: all to the right masked, one forward a token, [R]."""
    length = window_RT.shape[1]
    totals = []
    for window in window_RT:
        total = 0.0
        for first in range(1, length, batch):
            here = torch.arange(first, min(first + batch, length), device=window.device)
            hidden_part = torch.arange(length, device=window.device) >= here[:, None]
            ids = torch.where(hidden_part, _mask_id(model), window)
            logits = model(ids)[torch.arange(len(here)), here]
            total -= float(_log_p(model, logits, window[here]).sum())
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64)


def exact_k_masks(count: int, samples: int, generator: torch.Generator) -> Tensor:
    """Bool [S, count]: masks of exactly k positions at random, k stratified over 1 .. count.

    Drawing k uniformly and weighing by count / k has the mean of the continuous-time NELBO of any
    schedule (its time integral is a beta function), without the binomial noise (LLaDA, arXiv 2502.09992).
    """
    strata = (torch.arange(samples) + torch.rand(samples, generator=generator, dtype=torch.float64)) / samples
    k = 1 + (strata * count).long().clamp(max=count - 1)
    order = torch.rand(samples, count, generator=generator).argsort(1).argsort(1)
    return order < k[:, None]


def one_draw(model: Transformer, x0_BT: Tensor, masked_BT: Tensor, given_BT: Tensor, guidance: float = 0.0) -> Tensor:
    """One estimate of the bound per row, [B] float64: cross-entropy of the masked tokens, times the number of
    tokens not given over the number masked.

    given: bool, the condition. guidance s > 0 scores with u + (1 + s)(c - u), where u are the logits with the
    condition masked too (LLaDA, arXiv 2502.09992, classifier-free guidance).
    """
    canvas = torch.where(masked_BT, _mask_id(model), x0_BT)

    def logits(ids_BT: Tensor) -> Tensor:
        return model.head(model.unshift(model.hidden(ids_BT))[masked_BT]).float()

    scored = logits(canvas)
    if guidance:
        without = logits(torch.where(given_BT, _mask_id(model), canvas))
        scored = without + (1 + guidance) * (scored - without)
    losses = torch.zeros(masked_BT.shape, dtype=torch.float64, device=x0_BT.device)
    losses[masked_BT] = -_log_p(model, scored, x0_BT[masked_BT])
    return losses.sum(1) * (~given_BT).sum(1) / masked_BT.sum(1)


def nelbo(
    model: Transformer, window_RT: Tensor, samples: int, seed: int, batch: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Continuous-time NELBO of x_1.. given x_0 and its standard error, each [R] float64.

    The error is that of independent samples, so it errs on the large side: k is stratified.
    """
    generator = torch.Generator().manual_seed(seed)
    count = window_RT.shape[1] - 1
    masks = torch.stack([exact_k_masks(count, samples, generator) for _ in window_RT]).flatten(0, 1)
    rows = window_RT.repeat_interleave(samples, 0)

    def estimate(part: slice) -> Tensor:
        x0 = rows[part]
        masked = torch.zeros_like(x0, dtype=torch.bool)
        masked[:, 1:] = masks[part].to(rows.device)
        given = torch.zeros_like(masked)
        given[:, 0] = True
        return one_draw(model, x0, masked, given)

    return _mean_and_error(estimate, len(window_RT), samples, batch, progress)


def uniform_nelbo(
    model: Transformer, window_RT: Tensor, samples: int, seed: int, batch: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """The same of a model of uniform noise: DUO's NELBO (arXiv 2506.10892), and the divergence from random tokens of
    what its schedule ends with. Mean and standard error, each [R] float64.

    The number k of tokens drawn anew is stratified over 0 .. n; the share of noise p, in which the bound is an
    integral whatever the schedule, comes from Beta(k, n - k + 1), or Beta(1, n + 1) where k is 0. So a loss that is
    seen with chance p, and grows as 1 / p, has a bounded spread.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = model.config
    level = NoiseSchedule.of_network(config.noise_schedule, *config.noise_range)
    rows, length = window_RT.shape
    count = length - 1
    end = float(level.alpha(np.float64(1.0)))
    draws = [_moves(count, samples, generator, rng) for _ in range(rows)]
    moved, p, weight = (torch.cat(parts) for parts in zip(*draws, strict=True))
    clean = window_RT.repeat_interleave(samples, 0).cpu()
    drawn = torch.randint(config.vocab_size, moved.shape, generator=generator)
    canvas = clean.clone()
    canvas[:, 1:] = torch.where(moved, drawn, clean[:, 1:])
    weight = torch.where(1 - p >= end, weight, 0.0)
    sigma = -torch.log1p(-p.clamp(max=1 - end))

    def estimate(part: slice) -> Tensor:
        x, x0, noise = (each[part].to(window_RT.device) for each in (canvas, clean, sigma))
        logits = model(x, time_B=noise.float() if config.time_conditioned else None)
        levels = noise[:, None].expand(x.shape)
        score = uniform_score(logits.double().log_softmax(-1), x, levels)
        losses = score_entropy(score, x, x0, levels, None)[:, 1:].sum(1)
        return losses * weight[part].to(losses.device)

    mean, error = _mean_and_error(estimate, rows, samples, batch, progress)
    prior = uniform_prior(torch.tensor(end, dtype=torch.float64), config.vocab_size)
    return mean + count * prior.to(mean.device), error


def _moves(count: int, samples: int, generator: torch.Generator, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Which tokens are drawn anew [S, count], the share of noise [S] and the weight of a loss per total noise [S]."""
    strata = (torch.arange(samples) + torch.rand(samples, generator=generator, dtype=torch.float64)) / samples
    k = (strata * (count + 1)).long().clamp(max=count)
    order = torch.rand(samples, count, generator=generator).argsort(1).argsort(1)
    some = k.clamp(min=1).numpy()
    p = torch.from_numpy(np.where(k == 0, rng.beta(1, count + 1, samples), rng.beta(some, count - some + 1)))
    weight = torch.where(k == 0, 1.0, (count + 1) * p / k.clamp(min=1)) / (1 - p)
    return order < k[:, None], p, weight


def blockwise(
    model: Transformer, window_RT: Tensor, block_length: int, samples: int, seed: int, batch: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Sum over blocks of each block's NELBO given the clean blocks before it, in one pass over [x_t ; x_0]
    per sample; the first token is given. Block length 1 is exact. Mean and standard error, each [R]."""
    generator = torch.Generator().manual_seed(seed)
    length = window_RT.shape[1]
    objective = BD3LM(block_length=block_length, shift=model.config.shift)
    rows = window_RT.repeat_interleave(samples, 0)
    blocks = [slice(max(1, s), min(s + block_length, length)) for s in range(0, length, block_length)]
    blocks = [b for b in blocks if b.stop > b.start]
    masks = torch.zeros(len(rows), length, dtype=torch.bool)
    weights = torch.zeros(len(rows), length, dtype=torch.float64)
    for row in range(0, len(rows), samples):
        for block in blocks:
            count = block.stop - block.start
            drawn = exact_k_masks(count, samples, generator)
            drawn = drawn[torch.randperm(samples, generator=generator)]  # strata of blocks are not aligned
            masks[row : row + samples, block] = drawn
            weights[row : row + samples, block] = count / drawn.sum(1, keepdim=True)

    def estimate(part: slice) -> Tensor:
        x0 = rows[part]
        masked = masks[part].to(rows.device)
        inputs = torch.cat([torch.where(masked, _mask_id(model), x0), x0], 1)
        own = objective.states(model, Noised(inputs, x0, masked, Rows.of(x0), 1.0))
        losses = torch.zeros(masked.shape, dtype=torch.float64, device=rows.device)
        losses[masked] = -_log_p(model, model.head(own[masked]), x0[masked])
        return (losses * weights[part].to(rows.device)).sum(1)

    return _mean_and_error(estimate, len(window_RT), samples, batch, progress)


def windows(ids: list[int], first: int, length: int) -> list[list[int]]:
    """Cuts ids into windows of at most `length` tokens, each beginning with one given token: `first` (the
    start of text), then the last token of the window before. Every id is scored exactly once."""
    step = length - 1
    previous = first
    out = []
    for start in range(0, len(ids), step):
        piece = ids[start : start + step]
        out.append([previous, *piece])
        previous = piece[-1]
    return out


def _log_p(model: Transformer, logits: Tensor, target: Tensor) -> Tensor:
    """Log-probability of the targets, float64, the mask token excluded (SUBS)."""
    logits = logits.float()
    if model.config.mask_token_id is not None:
        logits[..., model.config.mask_token_id] = -torch.inf
    return logits.log_softmax(-1).gather(-1, target[..., None]).squeeze(-1).double()


def _mask_id(model: Transformer) -> int:
    if model.config.mask_token_id is None:
        raise UnmaskError("the model has no mask token, so no text can be hidden from it")
    return model.config.mask_token_id


def _mean_and_error(
    estimate: Callable[[slice], Tensor], rows: int, samples: int, batch: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Of `samples` estimates for each row, made a batch at a time; each [R]."""
    estimates = []
    for first in range(0, rows * samples, batch):
        estimates.append(estimate(slice(first, first + batch)))
        progress(min(1.0, (first + batch) / (rows * samples)))
    estimates_RS = torch.cat(estimates).view(rows, samples)
    spread = estimates_RS.std(1) if samples > 1 else torch.full_like(estimates_RS[:, 0], math.inf)
    return estimates_RS.mean(1), spread / math.sqrt(samples)


@torch.inference_mode()
def score_texts(
    model: Transformer,
    texts: list[str],
    tokens: list[list[int]],
    method: str,
    samples: int,
    seed: int,
    batch: int,
    progress: Callable[[float], None],
) -> list[Likelihood]:
    """Negative log-likelihood of each text in nats; see `DiffusionLM.likelihood`. tokens: each text's ids.

    An adapted model's text is its base's, so it is scored as one; text before a canvas is read causally, and so is
    scored here. Raises UnmaskError for a method that does not fit the model, samples below 1, a model without a start
    of text, or one that gives log scores.
    """
    if model.config.output != "logits":
        raise UnmaskError("the model gives log scores at a noise level, from which no likelihood is computed here")
    first = model.config.bos_token_id
    layout = "causal" if model.config.layout in GROUPED else model.config.layout
    uniform = model.config.corruption == "uniform" and layout == "bidirectional"
    fits = {"causal": ("exact",), "block_causal": ("blockwise",), "bidirectional": ("nelbo", "exact")}[layout]
    fits = ("nelbo",) if uniform else fits
    method = fits[0] if method == "auto" else method
    if method not in fits:
        kind = "uniform-noise" if uniform else layout
        raise UnmaskError(f"likelihood method '{method}' does not fit a {kind} model; use '{fits[0]}'")
    if samples < 1:
        raise UnmaskError(f"samples must be at least 1, got {samples}")
    if first is None:
        raise UnmaskError("the model has no start-of-text token to score from")

    def score(group: Tensor, number: int, done: Callable[[float], None]) -> tuple[Tensor, Tensor]:
        if method == "nelbo":
            return (uniform_nelbo if uniform else nelbo)(model, group, samples, seed + number, batch, done)
        if method == "blockwise":
            return blockwise(model, group, model.config.block_length, samples, seed + number, batch, done)
        exact = exact_causal if layout == "causal" else exact_sequential
        nats = torch.cat([exact(model, group[i : i + batch]) for i in range(0, len(group), batch)])
        return nats, torch.zeros_like(nats)

    results = []
    for number, (text, ids) in enumerate(zip(texts, tokens, strict=True)):
        cut = windows(ids, first, model.config.max_length)
        mean = error = 0.0
        for length in sorted({len(w) for w in cut}, reverse=True):
            group = torch.tensor([w for w in cut if len(w) == length], device=model.embedding.weight.device)

            def done(share: float, number: int = number, part: float = len(group) / len(cut)) -> None:
                progress((number + share * part) / len(texts))

            nats, spread = score(group, number, done)
            mean += float(nats.sum())
            error += float((spread**2).sum())
        results.append(Likelihood(mean, len(ids), error**0.5, len(text.encode()), cast(Method, method)))
    return results
