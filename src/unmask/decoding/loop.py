"""The one decoding loop. Full canvas, blocks with an exact cache and AR differ in three values only:

window   the positions being denoised now: the canvas, a block of it, or one token;
cache    what earlier forwards left behind: nothing, or exact keys and values of finished positions;
rule     which proposals a step commits.

Shapes: B requests, L canvas positions, W positions fed to a forward, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unmask.attention import EMPTY, PADDING, Coordinates, Layout
from unmask.canvas import Canvas, Commit, Frame
from unmask.decoding.cache import SlotCache
from unmask.decoding.rules import RULES, RuleOptions, remask
from unmask.decoding.sampling import Scores, propose, uniforms
from unmask.models.transformer import Transformer

TOKEN_DRAW, CHOICE_DRAW = 0, 1  # purposes of random draws


@dataclass(frozen=True)
class Request:
    """One canvas to decode. `given` marks tokens to keep as they are (masks elsewhere are open)."""

    ids: list[int]
    given: list[bool]
    seed: int = 0
    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    rule: RuleOptions = field(default_factory=RuleOptions)
    block_length: int | None = None  # None: the whole canvas at once
    max_denoising_steps: int | None = None  # per block; None: as many as the block has masks
    remask_budget: int = 0  # committed tokens that may be masked again, each once
    stop: Callable[[list[int]], bool] | None = None  # asked with the finished tokens from the left


@dataclass
class _State:
    """Where every active request is, as tensors [B] (or [B, L])."""

    row: Tensor  # its number in the batch the caller gave
    length: Tensor  # of its canvas
    start: Tensor  # window [start, end)
    end: Tensor
    cached: Tensor  # positions before this one have exact keys and values
    forwards: Tensor  # forward passes so far
    steps_in_block: Tensor
    budget: Tensor  # steps this block may take
    remask_left: Tensor
    confidence: Tensor  # of committed tokens when they were written [B, L]
    revised: Tensor  # masked again once already [B, L]

    def keep(self, rows: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


@dataclass
class Decoder:
    """Decodes a batch of requests with one forward for all of them per step.

    layout: who sees whom. `bidirectional` re-reads the canvas each step; `causal` and `block_causal`
    keep exact keys and values of everything before the window (unless use_cache is false).
    """

    model: Transformer
    layout: Layout
    requests: list[Request]
    eos_ids: frozenset[int] = frozenset()
    use_cache: bool = True
    canvas: Canvas = field(init=False)
    steps: list[int] = field(init=False)  # forward passes of each request

    def __post_init__(self) -> None:
        config = self.model.config
        assert config.mask_token_id is not None
        pad = config.pad_token_id or 0
        self.canvas = Canvas.of(
            [r.ids for r in self.requests], config.mask_token_id, pad, [r.given for r in self.requests]
        )
        self.canvas = Canvas(self.canvas.ids.to(self.device), self.canvas.frozen.to(self.device), self.canvas.mask_id)
        self.steps = [0] * len(self.requests)
        # with a bidirectional layout every key changes at every step: nothing exact to keep
        self.exact = self.use_cache and self.layout.kind != "bidirectional"

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def run(self) -> Iterator[list[Frame]]:
        """Yields the frames of each step; `canvas` and `steps` are up to date after each."""
        state, canvas = self._first_state(), self.canvas
        cache = None
        if self.exact:
            longest = int(state.length.max())
            cache = SlotCache(
                self.model.config, len(state.row), longest, self.device, self.model.embedding.weight.dtype
            )
        options = _Options(self.requests, self.device)
        state, canvas, options = self._settle(state, canvas, options, cache)
        while len(state.row):
            window = self._window(state, canvas)
            open_BL = canvas.masked & window
            logits_NV = self._forward(state, canvas, open_BL, cache)
            state.forwards += 1
            scores = self._propose(logits_NV, open_BL, state, options)
            commits = self._commit(scores, open_BL, state, canvas, options)
            state.steps_in_block += 1
            numbers = state.forwards.tolist()
            canvas, frames = canvas.apply(commits, numbers)
            rows = state.row.tolist()
            frames = [Frame(f.step, f.positions, f.tokens, f.confidences, f.kinds, rows[f.row]) for f in frames]
            self.canvas = self.canvas.replay(frames)
            for row, number in zip(rows, numbers, strict=True):
                self.steps[row] = number
            state, canvas, options = self._settle(state, canvas, options, cache)
            yield frames

    def _first_state(self) -> _State:
        count, device = len(self.requests), self.device
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        length = torch.tensor([len(r.ids) for r in self.requests], device=device)
        first = self.canvas.masked.long().argmax(1)
        block = torch.tensor([r.block_length or len(r.ids) for r in self.requests], device=device)
        # blocks of a bidirectional model count from the first mask (LLaDA), others from position 0
        start = first if self.layout.kind == "bidirectional" else first // block * block
        grid = self.canvas.ids.shape
        state = _State(
            row=torch.arange(count, device=device),
            length=length,
            start=start,
            end=torch.minimum(start + block, length),
            cached=zeros.clone(),
            forwards=zeros.clone(),
            steps_in_block=zeros.clone(),
            budget=zeros.clone(),
            remask_left=torch.tensor([r.remask_budget for r in self.requests], device=device),
            confidence=torch.full(grid, torch.inf, dtype=torch.float64, device=device),
            revised=torch.zeros(grid, dtype=torch.bool, device=device),
        )
        return state

    def _window(self, state: _State, canvas: Canvas) -> Tensor:
        index = torch.arange(canvas.ids.shape[1], device=self.device)
        return (index >= state.start[:, None]) & (index < state.end[:, None])

    def _forward(self, state: _State, canvas: Canvas, open_BL: Tensor, cache: SlotCache | None) -> Tensor:
        """Logits [N, V] of the open positions, from one forward over all that must be fed."""
        shift = int(self.model.config.shift)
        causal = self.layout.kind == "causal"
        low = (
            torch.minimum(state.cached, (state.start - shift).clamp(min=0))
            if self.exact
            else torch.zeros_like(state.start)
        )
        if self.layout.kind == "bidirectional":
            high = state.length
        else:  # nothing after the window is seen, and under a causal shifted head not its last token either
            high = torch.maximum(state.end - (shift if causal else 0), low + 1)
        width = int((high - low).max())
        position = low[:, None] + torch.arange(width, device=self.device)
        valid = position < high[:, None]
        position = torch.where(valid, position, 0)
        ids = canvas.ids.gather(1, position)
        if cache is None:
            document = torch.where(valid, 0, PADDING)
            q = Coordinates.of(position, document)
            plain = self.layout.kind == "bidirectional" and bool(valid.all())
            mask = None if plain else self.layout.render(q)
        else:
            visible = int(high.max())
            cache.begin(position, valid, visible)
            slots = torch.arange(visible, device=self.device).expand(len(low), -1)
            k = Coordinates.of(slots, torch.where(slots < high[:, None], 0, EMPTY))
            mask = self._dense(Coordinates.of(position), k)
        hidden = self.model.hidden(ids, position, mask, cache)
        if cache is not None:
            state.cached = state.start.clone()  # everything before the window is final and was fed
        row, where = open_BL.nonzero(as_tuple=True)
        source = (where - shift).clamp(min=0) - low[row]
        return self.model.head(hidden[row, source])

    def _dense(self, q: Coordinates, k: Coordinates) -> Tensor | None:
        """A cached window's mask; None where every query sees every slot (one request, one block)."""
        mask = self.layout.dense(q, k)
        return None if bool(mask.all()) else mask

    def _propose(self, logits_NV: Tensor, open_BL: Tensor, state: _State, options: _Options) -> Scores:
        row, position = open_BL.nonzero(as_tuple=True)
        seed, step = options.seed[row], state.forwards[row]
        flat = propose(
            logits_NV,
            options.temperature[row],
            options.top_k[row],
            options.top_p[row],
            uniforms(seed, step, position, TOKEN_DRAW),
            uniforms(seed, step, position, CHOICE_DRAW),
            self.model.config.mask_token_id,
        )
        return flat.grid(open_BL)

    def _commit(
        self, scores: Scores, open_BL: Tensor, state: _State, canvas: Canvas, options: _Options
    ) -> list[Commit]:
        steps_left = (state.budget - state.steps_in_block).clamp(min=1)
        chosen = torch.zeros_like(open_BL)
        for rule, rows in options.by_rule():
            part = RULES[rule.name](scores.rows(rows), open_BL[rows], steps_left[rows], rule)
            chosen[rows] = part
        commits = [Commit(chosen, scores.token, scores.confidence, "unmask")]
        revise = self._revise(chosen, open_BL, steps_left, state, canvas)
        if revise is not None:
            masks = torch.full_like(scores.token, canvas.mask_id)
            commits.append(Commit(revise, masks, state.confidence.clone(), "remask"))
        state.confidence = torch.where(chosen, scores.confidence, state.confidence)
        return commits

    def _revise(
        self, chosen: Tensor, open_BL: Tensor, steps_left: Tensor, state: _State, canvas: Canvas
    ) -> Tensor | None:
        """Committed tokens of the window to mask again, within each request's budget; never in its last step."""
        if not bool((state.remask_left > 0).any()):
            return None
        eligible = self._window(state, canvas) & ~canvas.frozen & ~open_BL & ~state.revised
        share = -(-state.remask_left // (steps_left - 1).clamp(min=1))
        count = torch.where(steps_left > 1, torch.minimum(share, state.remask_left), 0)
        # a block that this step completes is done: what was written last is not taken back
        count = torch.where((open_BL & ~chosen).any(1), count, 0)
        revise = remask(state.confidence, eligible, count)
        state.revised = state.revised | revise
        state.remask_left = state.remask_left - revise.sum(1)
        return revise

    def _settle(
        self, state: _State, canvas: Canvas, options: _Options, cache: SlotCache | None
    ) -> tuple[_State, Canvas, _Options]:
        """Moves requests whose window is full to their next one and lets finished ones go."""
        while True:
            full = ~(canvas.masked & self._window(state, canvas)).any(1)
            done = self._done(state, canvas, full)
            if bool(done.any()):
                rows = (~done).nonzero().squeeze(1)
                state.keep(rows)
                canvas = Canvas(canvas.ids[rows], canvas.frozen[rows], canvas.mask_id)
                options = options.select(rows)
                if cache is not None:
                    cache.select(rows)
                full = full[rows]
            if not bool(full.any()):
                break
            block = torch.minimum(options.block, state.length)
            state.start = torch.where(full, state.end, state.start)
            state.end = torch.where(full, torch.minimum(state.end + block, state.length), state.end)
            state.steps_in_block = torch.where(full, 0, state.steps_in_block)
            state.budget = torch.where(full, 0, state.budget)
        masks = (canvas.masked & self._window(state, canvas)).sum(1)
        fresh = state.budget == 0
        # never more steps than masks: a step that is not needed is not paid for
        steps = torch.where(options.max_steps > 0, torch.minimum(options.max_steps, masks), masks)
        state.budget = torch.where(fresh, steps, state.budget)
        return state, canvas, options

    def _done(self, state: _State, canvas: Canvas, full: Tensor) -> Tensor:
        """Requests with nothing left to do: no mask left, or all written up to an end of text."""
        masked = canvas.masked
        done = full & ~masked.any(1)
        written = ~canvas.frozen & ~masked
        index = torch.arange(canvas.ids.shape[1], device=self.device)
        first_mask = torch.where(masked, index, canvas.ids.shape[1]).amin(1)
        ends = torch.zeros_like(masked)
        for eos in self.eos_ids:
            ends |= canvas.ids == eos
        done |= (ends & written & (index < first_mask[:, None])).any(1)
        for i, row in enumerate(state.row.tolist()):
            stop = self.requests[row].stop
            if stop is not None and not bool(done[i]):
                finished = canvas.ids[i, : int(first_mask[i])][~canvas.frozen[i, : int(first_mask[i])]]
                done[i] = stop(finished.tolist())
        return done


class _Options:
    """The requests' options as tensors [B]."""

    def __init__(self, requests: list[Request], device: torch.device) -> None:
        def column(values: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.rules = [r.rule for r in requests]
        self.seed = column([r.seed for r in requests], torch.long)
        self.temperature = column([r.temperature for r in requests], torch.float64)
        self.top_k = column([r.top_k for r in requests], torch.long)
        self.top_p = column([r.top_p for r in requests], torch.float64)
        self.block = column([r.block_length or len(r.ids) for r in requests], torch.long)
        self.max_steps = column([r.max_denoising_steps or 0 for r in requests], torch.long)

    def select(self, rows: Tensor) -> _Options:
        chosen = object.__new__(_Options)
        chosen.rules = [self.rules[i] for i in rows.tolist()]
        for name in ("seed", "temperature", "top_k", "top_p", "block", "max_steps"):
            setattr(chosen, name, getattr(self, name)[rows])
        return chosen

    def by_rule(self) -> Iterator[tuple[RuleOptions, Tensor]]:
        """Each distinct rule with the requests that use it."""
        for rule in dict.fromkeys(self.rules):
            yield rule, torch.tensor([i for i, r in enumerate(self.rules) if r == rule], device=self.seed.device)
