"""The one decoding loop. Full canvas, blocks, AR and verify differ in three values only:

window   the positions being denoised now: the canvas, a block of it, or one token;
cache    what earlier forwards left behind: nothing, or exact keys and values of finished positions;
rule     which proposals a step commits.

Shapes: B requests, L canvas positions, W columns fed to a forward, N scored rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from unmask.canvas import Array, Canvas, Commit, Frame
from unmask.decoding.feed import TEXT, Backend, Columns, Feed, Logits, Sampling
from unmask.decoding.rules import RULES, RuleOptions, remask
from unmask.decoding.sampling import Scores, uniforms
from unmask.decoding.verify import accept_greedy, accept_sampled
from unmask.layout import Layout

TOKEN_DRAW, CHOICE_DRAW, ACCEPT_DRAW = 0, 1, 2  # purposes of random draws
Mode = Literal["ar", "diffusion", "verify"]


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
    mode: Mode = "diffusion"


@dataclass
class _Drafts:
    """What a request in mode verify will have checked next: guesses for the positions after its text."""

    tokens: Array
    distributions: Array | None = None  # [n, V] that they were sampled from, above temperature 0


NO_DRAFTS = _Drafts(np.zeros(0, np.int64))


@dataclass
class _State:
    """Where every active request is, as arrays [B] (or [B, L])."""

    row: Array  # its number in the batch the caller gave
    length: Array  # of its canvas
    start: Array  # window [start, end)
    end: Array
    cached: Array  # positions before this one have exact keys and values
    forwards: Array  # forward passes so far
    steps_in_block: Array
    budget: Array  # steps this block may take
    remask_left: Array
    confidence: Array  # of committed tokens when they were written [B, L]
    revised: Array  # masked again once already [B, L]
    drafts: Array  # of _Drafts

    def keep(self, rows: Array) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[rows])


@dataclass
class Decoder:
    """Decodes a batch of requests with one forward for all of them per step.

    layout: who sees whom. `bidirectional` re-reads the canvas each step; the others keep exact keys and
    values of everything before the window (unless use_cache is false). Under `drafts` the window slides: it
    starts at the first mask, whose token the text alone decides, so that one is committed at every step.
    """

    backend: Backend
    layout: Layout
    requests: list[Request]
    eos_ids: frozenset[int] = frozenset()
    use_cache: bool = True
    canvas: Canvas = field(init=False)
    steps: list[int] = field(init=False)  # forward passes of each request
    accepted: list[list[int]] = field(init=False)  # of each request in mode verify: drafts kept at each step

    def __post_init__(self) -> None:
        config = self.backend.config
        assert config.mask_token_id is not None
        pad = config.pad_token_id or 0
        self.canvas = Canvas.of(
            [r.ids for r in self.requests], config.mask_token_id, pad, [r.given for r in self.requests]
        )
        self.steps = [0] * len(self.requests)
        self.accepted = [[] for _ in self.requests]
        # with a bidirectional layout every key changes at every step: nothing exact to keep
        self.exact = self.use_cache and self.layout.kind != "bidirectional"
        self.shift = int(config.shift)

    def run(self) -> Iterator[list[Frame]]:
        """Yields the frames of each step; `canvas` and `steps` are up to date after each."""
        state, canvas = self._first_state(), self.canvas
        self.backend.open(self.layout, len(state.row), int(state.length.max()), self.exact)
        options = _Options(self.requests)
        state, canvas, options = self._settle(state, canvas, options)
        while len(state.row):
            open_BL = canvas.masked & self._window(state, canvas)
            columns = [self._columns(b, state, canvas, options) for b in range(len(state.row))]
            # what is fed again (a shifted head's last token before the window) is not read from the cache too
            feed = Feed.of(columns, np.array([c.position[0] for c in columns]))
            logits = self.backend.forward(feed)
            state.forwards += 1
            sampling = options.sampling(feed, state.forwards)
            scores = logits.propose(sampling)
            commits = self._commit(feed, scores, open_BL, state, canvas, options)
            commits += self._verify(feed, scores, logits, sampling, state, canvas, options)
            state.steps_in_block += 1
            numbers = state.forwards.tolist()
            canvas, frames = canvas.apply(commits, numbers)
            rows = state.row.tolist()
            frames = [Frame(f.step, f.positions, f.tokens, f.confidences, f.kinds, rows[f.row]) for f in frames]
            self.canvas = self.canvas.replay(frames)
            for row, number in zip(rows, numbers, strict=True):
                self.steps[row] = number
            state, canvas, options = self._settle(state, canvas, options)
            yield frames

    def _first_state(self) -> _State:
        count = len(self.requests)
        zeros = np.zeros(count, np.int64)
        length = np.array([len(r.ids) for r in self.requests])
        first = self.canvas.masked.argmax(1)
        block = np.array([r.block_length or len(r.ids) for r in self.requests])
        # blocks of a bidirectional model count from the first mask (LLaDA), others from position 0
        start = first if self.layout.kind in ("bidirectional", "drafts") else first // block * block
        grid = self.canvas.ids.shape
        return _State(
            row=np.arange(count),
            length=length,
            start=start,
            end=np.minimum(start + block, length),
            cached=zeros.copy(),
            forwards=zeros.copy(),
            steps_in_block=zeros.copy(),
            budget=zeros.copy(),
            remask_left=np.array([r.remask_budget for r in self.requests]),
            confidence=np.full(grid, np.inf),
            revised=np.zeros(grid, bool),
            drafts=np.array([NO_DRAFTS] * count, object),
        )

    def _window(self, state: _State, canvas: Canvas) -> Array:
        index = np.arange(canvas.ids.shape[1])
        return (index >= state.start[:, None]) & (index < state.end[:, None])

    def _columns(self, b: int, state: _State, canvas: Canvas, options: _Options) -> Columns:
        """What request b feeds to this forward and which positions are scored from it."""
        start, end, cached = int(state.start[b]), int(state.end[b]), int(state.cached[b])
        if options.modes[b] == "verify":
            return self._columns_to_verify(b, state, canvas)
        low = min(cached, max(0, start - self.shift)) if self.exact else 0
        if self.layout.kind == "bidirectional":
            high = int(state.length[b])
        else:  # nothing after the window is seen, and a last token that scores nothing is not fed
            ends_early = self.shift and self.layout.kind in ("causal", "drafts")
            high = max(end - int(ends_early), low + 1)
        position = np.arange(low, high)
        drafted = (position >= start) & (self.layout.kind == "drafts")
        target = np.arange(start, end)[canvas.masked[b, start:end]]
        column = np.maximum(target - self.shift, 0) - low
        return Columns(canvas.ids[b, low:high], position, np.where(drafted, start - 1, TEXT), column, target)

    def _columns_to_verify(self, b: int, state: _State, canvas: Canvas) -> Columns:
        """Text not yet read, the drafts as if they were text, and new slots for every outcome of the check."""
        start, drafts, length = int(state.start[b]), state.drafts[b].tokens, int(state.length[b])
        low, texts = int(state.cached[b]) if self.exact else 0, start + len(drafts)
        ids, position = [canvas.ids[b, low:start], drafts], [np.arange(low, texts)]
        anchor = [np.full(texts - low, TEXT)]
        for outcome in range(start - 1, texts):
            place = np.arange(outcome + 1, outcome + 1 + self._slots(outcome, start, int(state.end[b]), length))
            ids.append(np.full(len(place), canvas.mask_id))
            position.append(place)
            anchor.append(np.full(len(place), outcome))
        places = np.concatenate(position)
        column = np.arange(start - 1 - low, len(places))  # of the last known token and all after it
        return Columns(np.concatenate(ids), places, np.concatenate(anchor), column, places[column] + 1)

    @staticmethod
    def _slots(anchor: int, start: int, end: int, length: int) -> int:
        """Slots of a group: one fewer than the window, whose first token needs none, and inside the canvas."""
        return max(0, min(end - start - 1, length - anchor - 2))

    def _commit(
        self, feed: Feed, flat: Scores, open_BL: Array, state: _State, canvas: Canvas, options: _Options
    ) -> list[Commit]:
        """What the rules commit and revise, for the requests that are not verified."""
        mine = options.denoises[feed.row]
        if not mine.any():
            return []
        steps_left = np.maximum(state.budget - state.steps_in_block, 1)
        scores = flat.rows(mine).grid(feed.row[mine], feed.target[mine], open_BL.shape)
        ranked = self._sure_first(scores, state) if self.layout.kind == "drafts" else scores
        chosen = np.zeros_like(open_BL)
        for rule, rows in options.by_rule():
            chosen[rows] = RULES[rule.name](ranked.rows(rows), open_BL[rows], steps_left[rows], rule)
        commits = [Commit(chosen, scores.token, scores.confidence, "unmask")]
        revise = self._revise(chosen, open_BL, steps_left, state, canvas)
        if revise is not None:
            masks = np.full_like(scores.token, canvas.mask_id)
            commits.append(Commit(revise, masks, state.confidence.copy(), "remask"))
        state.confidence = np.where(chosen, scores.confidence, state.confidence)
        if self.exact:  # everything before the window is final and was fed
            state.cached = np.where(options.denoises, state.start, state.cached)
        return commits

    @staticmethod
    def _sure_first(scores: Scores, state: _State) -> Scores:
        """Scores in which each window's first position beats all: no later step could know it better."""
        first = (np.arange(len(state.row)), np.minimum(state.start, scores.token.shape[1] - 1))
        best = [scores.confidence.copy(), scores.entropy.copy(), scores.margin.copy(), scores.draw.copy()]
        for values, surest in zip(best, (np.inf, 0.0, np.inf, 0.0), strict=True):
            values[first] = surest
        return Scores(scores.token, *best)

    def _verify(
        self,
        feed: Feed,
        scores: Scores,
        logits: Logits,
        sampling: Sampling,
        state: _State,
        canvas: Canvas,
        options: _Options,
    ) -> list[Commit]:
        """Commits the drafts that hold and the base's token after them, and takes the drafts made meanwhile."""
        if options.denoises.all():
            return []
        chosen, tokens = np.zeros_like(canvas.frozen), np.zeros_like(canvas.ids)
        confidence = np.zeros(chosen.shape)
        for b in (~options.denoises).nonzero()[0].tolist():
            index = (feed.row == b).nonzero()[0]
            drafts, start, end = state.drafts[b], int(state.start[b]), int(state.end[b])
            count = len(drafts.tokens)
            checks, slots = index[: count + 1], index[count + 1 :]
            if drafts.distributions is None:
                kept, sure = accept_greedy(drafts.tokens, scores.token[checks])
            else:
                p = logits.probabilities(checks, sampling.rows(checks))
                accept = uniforms(options.seed[b], state.forwards[b], feed.target[checks], ACCEPT_DRAW)
                kept, sure = accept_sampled(drafts.tokens, drafts.distributions, p, accept, sampling.token_draw[checks])
            made = [*drafts.tokens[:kept].tolist(), sure][: int(state.length[b]) - start]
            where = slice(start, start + len(made))
            chosen[b, where], tokens[b, where] = True, made
            confidence[b, where] = scores.confidence[checks[: len(made)]]
            self.accepted[int(state.row[b])].append(kept)
            state.drafts[b] = self._new_drafts(b, kept, slots, start, end, scores, logits, sampling, state)
            if self.exact:
                state.cached[b] = start + kept
        return [Commit(chosen, tokens, confidence, "unmask")]

    def _new_drafts(
        self,
        b: int,
        kept: int,
        slots: Array,
        start: int,
        end: int,
        scores: Scores,
        logits: Logits,
        sampling: Sampling,
        state: _State,
    ) -> _Drafts:
        """The proposals of the group that saw exactly the text that turned out to hold."""
        sizes = [self._slots(start - 1 + i, start, end, int(state.length[b])) for i in range(kept + 1)]
        own = slots[sum(sizes[:kept]) : sum(sizes)]
        if not len(own) or sampling.temperature[own[0]] <= 0:
            return _Drafts(scores.token[own])
        return _Drafts(scores.token[own], logits.probabilities(own, sampling.rows(own)))

    def _revise(self, chosen: Array, open_BL: Array, steps_left: Array, state: _State, canvas: Canvas) -> Array | None:
        """Committed tokens of the window to mask again, within each request's budget; never in its last step."""
        if not (state.remask_left > 0).any():
            return None
        eligible = self._window(state, canvas) & ~canvas.frozen & ~open_BL & ~state.revised
        share = -(-state.remask_left // np.maximum(steps_left - 1, 1))
        count = np.where(steps_left > 1, np.minimum(share, state.remask_left), 0)
        # a block that this step completes is done: what was written last is not taken back
        count = np.where((open_BL & ~chosen).any(1), count, 0)
        revise = remask(state.confidence, eligible, count)
        state.revised = state.revised | revise
        state.remask_left = state.remask_left - revise.sum(1)
        return revise

    def _settle(self, state: _State, canvas: Canvas, options: _Options) -> tuple[_State, Canvas, _Options]:
        """Moves requests whose window is full to their next one and lets finished ones go."""
        while True:
            full = np.asarray(~(canvas.masked & self._window(state, canvas)).any(1))
            done = self._done(state, canvas, full)
            if done.any():
                rows = (~done).nonzero()[0]
                state.keep(rows)
                canvas = Canvas(canvas.ids[rows], canvas.frozen[rows], canvas.mask_id)
                options = options.select(rows)
                self.backend.keep(rows)
                full = full[rows]
            if self.layout.kind == "drafts":
                self._slide(state, canvas, options)
                break
            if not full.any():
                break
            block = np.minimum(options.block, state.length)
            state.start = np.where(full, state.end, state.start)
            state.end = np.where(full, np.minimum(state.end + block, state.length), state.end)
            state.steps_in_block = np.where(full, 0, state.steps_in_block)
            state.budget = np.where(full, 0, state.budget)
        masks = (canvas.masked & self._window(state, canvas)).sum(1)
        fresh = state.budget == 0
        # never more steps than masks: a step that is not needed is not paid for
        steps = np.where(options.max_steps > 0, np.minimum(options.max_steps, masks), masks)
        state.budget = np.where(fresh, steps, state.budget)
        return state, canvas, options

    @staticmethod
    def _slide(state: _State, canvas: Canvas, options: _Options) -> None:
        """Puts every window at its first mask."""
        if len(state.row):
            state.start = canvas.masked.argmax(1)
            state.end = np.minimum(state.start + options.block, state.length)
            state.steps_in_block, state.budget = state.steps_in_block * 0, state.budget * 0

    def _done(self, state: _State, canvas: Canvas, full: Array) -> Array:
        """Requests with nothing left to do: no mask left, or all written up to an end of text."""
        masked = canvas.masked
        done = full & ~masked.any(1)
        written = ~canvas.frozen & ~masked
        index = np.arange(canvas.ids.shape[1])
        first_mask = np.where(masked, index, canvas.ids.shape[1]).min(1)
        ends = np.zeros_like(masked)
        for eos in self.eos_ids:
            ends |= canvas.ids == eos
        done |= (ends & written & (index < first_mask[:, None])).any(1)
        for i, row in enumerate(state.row.tolist()):
            stop = self.requests[row].stop
            if stop is not None and not done[i]:
                finished = canvas.ids[i, : int(first_mask[i])][~canvas.frozen[i, : int(first_mask[i])]]
                done[i] = stop(finished.tolist())
        return done


class _Options:
    """The requests' options as arrays [B]."""

    def __init__(self, requests: list[Request]) -> None:
        self.rules, self.modes = [r.rule for r in requests], [r.mode for r in requests]
        self.denoises = np.array([r.mode != "verify" for r in requests])
        self.seed = np.array([r.seed for r in requests])
        self.temperature = np.array([r.temperature for r in requests], np.float64)
        self.top_k = np.array([r.top_k for r in requests])
        self.top_p = np.array([r.top_p for r in requests], np.float64)
        self.block = np.array([r.block_length or len(r.ids) for r in requests])
        self.max_steps = np.array([r.max_denoising_steps or 0 for r in requests])

    def select(self, rows: Array) -> _Options:
        chosen = object.__new__(_Options)
        chosen.rules, chosen.modes = ([values[i] for i in rows.tolist()] for values in (self.rules, self.modes))
        for name in ("denoises", "seed", "temperature", "top_k", "top_p", "block", "max_steps"):
            setattr(chosen, name, getattr(self, name)[rows])
        return chosen

    def sampling(self, feed: Feed, forwards: Array) -> Sampling:
        """Each scored row's own options and draws, addressed by (seed, step, position); none where none is read."""
        row, unread = feed.row, np.zeros(len(feed.row))
        address = (self.seed[row], forwards[row], feed.target)
        token = uniforms(*address, TOKEN_DRAW) if (self.temperature > 0).any() else unread
        choice = uniforms(*address, CHOICE_DRAW) if any(rule.name == "random" for rule in self.rules) else unread
        return Sampling(self.temperature[row], self.top_k[row], self.top_p[row], token, choice)

    def by_rule(self) -> Iterator[tuple[RuleOptions, Array]]:
        """Each distinct rule with the requests that use it and are not verified."""
        for rule in dict.fromkeys(self.rules):
            rows = [i for i, r in enumerate(self.rules) if r == rule and self.denoises[i]]
            if rows:
                yield rule, np.array(rows)
