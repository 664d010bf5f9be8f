"""How likely a text is: exact for AR, per block for block diffusion, a bound with its error for full canvases.

All values are negative log-likelihoods in nats. Shapes: R windows, T tokens of a window, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple, cast
from zlib import crc32

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
from unmask.objectives.score import absorbing_prior, score_entropy, uniform_prior, uniform_score

Method = Literal["exact", "blockwise", "nelbo", "llada"]
Progress = Callable[[float], None]  # called with the share that is done


class Estimation(NamedTuple):
    """How a bound is estimated: noised copies of each window, the seed of their noise, and rows of a forward."""

    samples: int
    seed: int
    batch: int
    progress: Progress


class Window(NamedTuple):
    """Tokens that are read together, and which of them are scored; the others are given."""

    ids: list[int]
    scored: list[bool]


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of one text, or an upper bound on it."""

    nats: float
    tokens: int
    std_error: float  # of `nats`; 0 for exact methods
    num_bytes: int
    method: Method
    greedy: bool | None = None  # whether greedy decoding would write it; None where that is not defined

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.num_bytes)

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(700.0, self.nats / max(1, self.tokens)))


def exact_causal(model: Transformer, window_RT: Tensor, open_RT: Tensor, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """-log p of the open tokens of a causal model in one forward, and whether each is the likeliest, both [R].

    rows: of logits held at once.
    """
    mask = plain_mask(Layout("causal"), window_RT.shape[1], window_RT.device, model.config.windows)
    states = model.unshift(model.hidden(window_RT, None, mask))[open_RT]
    log_p = []
    best = []
    for part, target in zip(torch.split(states, rows), torch.split(window_RT[open_RT], rows), strict=True):
        scores = _log_softmax(model, model.head(part))
        log_p.append(scores.gather(-1, target[:, None])[:, 0].double())
        best.append(scores.argmax(-1) == target)
    nats = torch.zeros(open_RT.shape, dtype=torch.float64, device=window_RT.device)
    nats[open_RT] = -torch.cat(log_p)
    missed = torch.zeros_like(open_RT)
    missed[open_RT] = ~torch.cat(best)
    return nats.sum(1), ~missed.any(1)


def exact_sequential(model: Transformer, window_RT: Tensor, open_RT: Tensor, batch: int = 16) -> tuple[Tensor, Tensor]:
    """Chain rule from left to right on a masked model: the open tokens to the right masked, one forward a token; and
    its error, 0; both [R]."""
    totals = []
    for window, some in zip(window_RT, open_RT, strict=True):
        total = 0.0
        for here in some.nonzero()[:, 0].split(batch):
            hidden_part = some & (torch.arange(len(window), device=window.device) >= here[:, None])
            ids = torch.where(hidden_part, _mask_id(model), window)
            logits = model(ids)[torch.arange(len(here)), here]
            total -= float(_log_p(model, logits, window[here]).sum())
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64), torch.zeros(len(totals), dtype=torch.float64)


def is_greedy(model: Transformer, window_T: Tensor, open_T: Tensor, block_length: int = 0) -> bool:
    """Whether a masked model would write the open tokens: the surest first, one a forward (LLaDA, arXiv 2502.09992).

    block_length: of a block-causal model, which writes block after block.
    """
    length = len(window_T)
    layout = Layout("block_causal", block_length) if block_length else Layout("bidirectional")
    mask = plain_mask(layout, length, window_T.device, model.config.windows)
    canvas = torch.where(open_T, _mask_id(model), window_T)
    for start in range(0, length, block_length or length):
        places = start + open_T[start : start + (block_length or length)].nonzero()[:, 0]
        while len(places):
            states = model.unshift(model.hidden(canvas[None], None, mask))[0, places]
            sure, tokens = _log_softmax(model, model.head(states)).max(-1)
            place = places[sure.argmax()]
            if tokens[sure.argmax()] != window_T[place]:
                return False
            canvas[place] = window_T[place]
            places = places[places != place]
    return True


def exact_k_masks(count: int, samples: int, generator: torch.Generator) -> Tensor:
    """Bool [S, count]: masks of exactly k positions at random, k stratified over 1 .. count.

    Drawing k uniformly and weighing by count / k has the mean of the continuous-time NELBO of any
    schedule (its time integral is a beta function), without the binomial noise (LLaDA, arXiv 2502.09992).
    """
    strata = (torch.arange(samples) + torch.rand(samples, generator=generator, dtype=torch.float64)) / samples
    k = 1 + (strata * count).long().clamp(max=count - 1)
    order = torch.rand(samples, count, generator=generator).argsort(1).argsort(1)
    return order < k[:, None]


def systematic_masks(count: int, samples: int, generator: torch.Generator) -> Tensor:
    """Bool [S, count]: masks of k positions, k in even steps around 1 .. count from a random start, as LLaDA's own
    evaluation draws them, halves rounded to even as there."""
    start = torch.randint(1, count + 1, (), generator=generator).double()
    k = (torch.linspace(0, (samples - 1) * count / samples, samples, dtype=torch.float64) + start).round().long()
    order = torch.rand(samples, count, generator=generator).argsort(1).argsort(1)
    return order < ((k - 1) % count + 1)[:, None]


def one_draw(
    model: Transformer,
    x0_BT: Tensor,
    masked_BT: Tensor,
    given_BT: Tensor,
    guidance: float = 0.0,
    mask_kept: bool = False,
) -> Tensor:
    """One estimate of the bound per row, [B] float64: cross-entropy of the masked tokens, times the number of
    tokens not given over the number masked.

    given: bool, the condition. guidance s > 0 scores with u + (1 + s)(c - u), where u are the logits with the
    condition masked too (LLaDA, arXiv 2502.09992, classifier-free guidance). mask_kept: see `_log_p`.
    """
    canvas = torch.where(masked_BT, _mask_id(model), x0_BT)

    def logits(ids_BT: Tensor) -> Tensor:
        return model.head(model.unshift(model.hidden(ids_BT))[masked_BT]).float()

    scored = logits(canvas)
    if guidance:
        without = logits(torch.where(given_BT, _mask_id(model), canvas))
        scored = without + (1 + guidance) * (scored - without)
    losses = torch.zeros(masked_BT.shape, dtype=torch.float64, device=x0_BT.device)
    losses[masked_BT] = -_log_p(model, scored, x0_BT[masked_BT], mask_kept)
    return losses.sum(1) * (~given_BT).sum(1) / masked_BT.sum(1)


def nelbo(
    model: Transformer,
    window_RT: Tensor,
    how: Estimation,
    open_RT: Tensor,
    guidance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Continuous-time NELBO of the open tokens given the others and its standard error, each [R] float64.

    The error is that of independent samples, so it errs on the large side: k is stratified.
    guidance: LLaDA's own protocol: numbers of masks in even steps, the mask's share left in the softmax, and
    classifier-free guidance of this strength, 0 for none.
    """
    generator = torch.Generator().manual_seed(how.seed)
    draw = exact_k_masks if guidance is None else systematic_masks
    masked_rows = _scattered(open_RT, how.samples, lambda count: draw(count, how.samples, generator))
    rows = window_RT.repeat_interleave(how.samples, 0)
    given = ~open_RT.repeat_interleave(how.samples, 0)

    def estimate(part: slice) -> Tensor:
        masked = masked_rows[part].to(rows.device)
        return one_draw(model, rows[part], masked, given[part], guidance or 0.0, guidance is not None)

    return _mean_and_error(estimate, len(window_RT), how)


def told_nelbo(model: Transformer, window_RT: Tensor, how: Estimation, open_RT: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a network of uniform noise, or that gives log scores: the integral of the score entropy (SEDD, arXiv
    2310.16834; of logits it is DUO's NELBO, arXiv 2506.10892), and the divergence of what its schedule ends with from
    what it begins with. Mean and standard error, each [R] float64.

    That is random tokens, or masks with a random token where the schedule's end leaves one. The number k of tokens
    that are noised is stratified over 0 .. n; the share of noise p, in which the bound is an integral whatever the
    schedule, comes from Beta(k, n - k + 1), or Beta(1, n + 1) where k is 0. So a loss that is seen with chance p, and
    grows as 1 / p, has a bounded spread.
    """
    samples = how.samples
    generator = torch.Generator().manual_seed(how.seed)
    rng = np.random.default_rng(how.seed)
    config = model.config
    mask_id = config.mask_token_id if config.corruption == "absorbing" else None
    level = NoiseSchedule.of_network(config.noise_schedule, *config.noise_range)
    end = float(level.alpha(np.float64(1.0)))
    counts = open_RT.sum(1).tolist()
    draws = [_moves(count, samples, generator, rng) for count in counts]
    p = torch.cat([share for _, share, _ in draws])
    weight = torch.cat([of_loss for _, _, of_loss in draws])
    each = iter(draws)
    moved = _scattered(open_RT, samples, lambda count: next(each)[0]).cpu()
    clean = window_RT.repeat_interleave(samples, 0).cpu()
    drawn = torch.randint(config.vocab_size, moved.shape, generator=generator)
    canvas = torch.where(moved, drawn if mask_id is None else torch.full_like(drawn, mask_id), clean)
    weight = torch.where(1 - p >= end, weight, 0.0)
    sigma = -torch.log1p(-p.clamp(max=1 - end))
    open_rows = open_RT.repeat_interleave(samples, 0)

    def estimate(part: slice) -> Tensor:
        x, x0, noise = (each[part].to(window_RT.device) for each in (canvas, clean, sigma))
        out = model(x, time_B=noise.float() if config.time_conditioned else None).double()
        levels = noise[:, None].expand(x.shape)
        score = out if config.output == "log_score" else uniform_score(out.log_softmax(-1), x, levels)
        losses = score_entropy(score, x, x0, levels, mask_id)
        return torch.where(open_rows[part], losses, 0.0).sum(1) * weight[part].to(losses.device)

    mean, error = _mean_and_error(estimate, len(window_RT), how)
    prior = absorbing_prior if mask_id is not None else uniform_prior
    missing = float(prior(torch.tensor(end, dtype=torch.float64), config.vocab_size))
    return mean + missing * open_RT.sum(1).to(mean.device), error


def _moves(count: int, samples: int, generator: torch.Generator, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Which tokens are noised [S, count], the share of noise [S] and the weight of a loss per total noise [S]."""
    strata = (torch.arange(samples) + torch.rand(samples, generator=generator, dtype=torch.float64)) / samples
    k = (strata * (count + 1)).long().clamp(max=count)
    order = torch.rand(samples, count, generator=generator).argsort(1).argsort(1)
    some = k.clamp(min=1).numpy()
    p = torch.from_numpy(np.where(k == 0, rng.beta(1, count + 1, samples), rng.beta(some, count - some + 1)))
    weight = torch.where(k == 0, 1.0, (count + 1) * p / k.clamp(min=1)) / (1 - p)
    return order < k[:, None], p, weight


def blockwise(
    model: Transformer, window_RT: Tensor, block_length: int, how: Estimation, open_RT: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over blocks of each block's NELBO given the clean blocks before it and what is given in it, in one pass over
    [x_t ; x_0] per sample. Block length 1 is exact. Mean and standard error, each [R]."""
    samples = how.samples
    generator = torch.Generator().manual_seed(how.seed)
    length = window_RT.shape[1]
    objective = BD3LM(block_length=block_length, shift=model.config.shift)
    rows = window_RT.repeat_interleave(samples, 0)
    masks = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device)
    weights = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)

    def drawn(count: int) -> Tensor:
        order = torch.randperm(samples, generator=generator)  # strata of blocks are not aligned
        return exact_k_masks(count, samples, generator)[order]

    for start in range(0, length, block_length):
        block = slice(start, start + block_length)
        masks[:, block] = _scattered(open_RT[:, block], samples, drawn)
        counts = open_RT[:, block].sum(1).repeat_interleave(samples)
        weights[:, block] = (counts / masks[:, block].sum(1).clamp(min=1))[:, None]

    def estimate(part: slice) -> Tensor:
        x0 = rows[part]
        masked = masks[part]
        inputs = torch.cat([torch.where(masked, _mask_id(model), x0), x0], 1)
        own = objective.states(model, Noised(inputs, x0, masked, Rows.of(x0), 1.0))
        losses = torch.zeros(masked.shape, dtype=torch.float64, device=rows.device)
        losses[masked] = -_log_p(model, model.head(own[masked]), x0[masked])
        return (losses * weights[part]).sum(1)

    return _mean_and_error(estimate, len(window_RT), how)


def windows(ids: list[int], given: list[int], length: int) -> list[Window]:
    """Cuts ids into windows of at most `length` tokens: the first behind `given`, each other behind the last token of
    the one before. Every id is scored exactly once. Raises UnmaskError where `given` leaves no room."""
    if len(given) >= length:
        raise UnmaskError(f"{len(given)} given tokens leave no room for a text: the model reads {length}; shorten them")
    out = []
    while ids:
        piece = ids[: length - len(given)]
        out.append(Window([*given, *piece], [False] * len(given) + [True] * len(piece)))
        ids = ids[len(piece) :]
        given = piece[-1:] if length > 1 else []
    return out


def _scattered(open_RT: Tensor, samples: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Bool [R * S, T]: for each row, `draw`'s bools [S, n] for the row's n open positions, put where those are."""
    out = torch.zeros(len(open_RT), samples, open_RT.shape[1], dtype=torch.bool, device=open_RT.device)
    for row, scored in zip(out, open_RT, strict=True):
        count = int(scored.sum())
        if count:
            row[:, scored] = draw(count).to(row.device)
    return out.flatten(0, 1)


def _log_softmax(model: Transformer, logits: Tensor) -> Tensor:
    """Log-probabilities, the mask token excluded (SUBS)."""
    logits = logits.float()
    if model.config.mask_token_id is not None:
        logits[..., model.config.mask_token_id] = -torch.inf
    return logits.log_softmax(-1)


def _log_p(model: Transformer, logits: Tensor, target: Tensor, mask_kept: bool = False) -> Tensor:
    """Log-probability of the targets, float64; mask_kept: with the mask token's share left in."""
    scores = logits.float().log_softmax(-1) if mask_kept else _log_softmax(model, logits)
    return scores.gather(-1, target[..., None]).squeeze(-1).double()


def _mask_id(model: Transformer) -> int:
    if model.config.mask_token_id is None:
        raise UnmaskError("the model has no mask token, so no text can be hidden from it")
    return model.config.mask_token_id


def _mean_and_error(estimate: Callable[[slice], Tensor], rows: int, how: Estimation) -> tuple[Tensor, Tensor]:
    """Of all samples of each row, made a batch at a time; each [R]."""
    count = rows * how.samples
    estimates = []
    for first in range(0, count, how.batch):
        estimates.append(estimate(slice(first, first + how.batch)))
        how.progress(min(1.0, (first + how.batch) / count))
    estimates_RS = torch.cat(estimates).view(rows, how.samples)
    spread = estimates_RS.std(1) if how.samples > 1 else torch.full_like(estimates_RS[:, 0], math.inf)
    return estimates_RS.mean(1), spread / math.sqrt(how.samples)


@torch.inference_mode()
def score_texts(
    model: Transformer,
    texts: list[list[Window]],
    method: str,
    samples: int,
    seed: int,
    batch: int,
    progress: Progress,
    guidance: float = 0.0,
) -> list[Likelihood]:
    """Negative log-likelihood of the scored tokens of each text's windows; see `DiffusionLM.likelihood`.

    An adapted model's text is its base's, so it is scored as one; text before a canvas is read causally, and so is
    scored here. A text's masks are of the seed and the text, whatever stands beside it. Raises UnmaskError for a
    method that does not fit the model, samples below 1, and guidance of another method than `llada`.
    """
    layout = "causal" if model.config.layout in GROUPED else model.config.layout
    told = model.config.output == "log_score" or (model.config.corruption == "uniform" and layout == "bidirectional")
    fits = {"causal": ("exact",), "block_causal": ("blockwise",), "bidirectional": ("nelbo", "exact", "llada")}[layout]
    fits = ("nelbo",) if told else fits
    method = fits[0] if method == "auto" else method
    if method not in fits:
        kind = "score-entropy or uniform-noise" if told else layout
        raise UnmaskError(f"likelihood method '{method}' does not fit a {kind} model; use '{fits[0]}'")
    if samples < 1:
        raise UnmaskError(f"samples must be at least 1, got {samples}")
    if guidance and method != "llada":
        raise UnmaskError(f"guidance is part of the likelihood method 'llada', not of '{method}'")
    device = model.embedding.weight.device
    block = model.config.block_length if layout == "block_causal" else 0
    every = [(number, window) for number, windows_ in enumerate(texts) for window in windows_]
    every.sort(key=lambda one: -len(one[1].ids))
    causal = layout == "causal"
    groups: list[list[tuple[int, Window]]]
    if causal:
        groups = [every[first : first + batch] for first in range(0, len(every), batch)]
    else:  # samples fill a batch, and each text has its own masks
        keyed = sorted(every, key=lambda one: (one[0], -len(one[1].ids)))
        groups = [list(g) for _, g in groupby(keyed, key=lambda one: (one[0], len(one[1].ids)))]
    nats = [0.0] * len(texts)
    variance = [0.0] * len(texts)
    greedy: list[bool | None] = [None if told else True] * len(texts)
    for number, group in enumerate(groups):
        width = max(len(window.ids) for _, window in group)
        ids = torch.tensor([[*w.ids, *[0] * (width - len(w.ids))] for _, w in group], device=device)
        scored = torch.tensor([[*w.scored, *[False] * (width - len(w.ids))] for _, w in group], device=device)
        own = crc32(repr((seed, ids.tolist(), scored.tolist())).encode())

        def done(share: float, number: int = number) -> None:
            progress((number + share) / len(groups))

        how = Estimation(samples, own, batch, done)
        best = torch.zeros(len(group), dtype=torch.bool)
        if causal:
            mean, best = exact_causal(model, ids, scored)
            error = torch.zeros_like(mean)
        elif method == "exact":
            mean, error = exact_sequential(model, ids, scored)
        elif method == "blockwise":
            mean, error = blockwise(model, ids, block, how, scored)
        elif told:
            mean, error = told_nelbo(model, ids, how, scored)
        else:
            mean, error = nelbo(model, ids, how, scored, guidance if method == "llada" else None)
        for row, (text, _) in enumerate(group):
            nats[text] += float(mean[row])
            variance[text] += float(error[row]) ** 2
            if greedy[text]:
                greedy[text] = bool(best[row]) if causal else is_greedy(model, ids[row], scored[row], block)
        done(1.0)
    tokens = [sum(sum(window.scored) for window in windows_) for windows_ in texts]
    return [
        Likelihood(n, count, v**0.5, 0, cast(Method, method), best)
        for n, count, v, best in zip(nats, tokens, variance, greedy, strict=True)
    ]
