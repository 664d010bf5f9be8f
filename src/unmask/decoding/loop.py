"""The one decoding loop. Full canvas, blocks, AR and verify differ in three values only:

window   the positions being denoised now: the canvas, a block of it, or one token;
cache    what earlier forwards left behind: nothing, exact keys and values of finished positions, or old ones;
rule     which proposals a step commits.

Every step is one forward for all requests, whatever their length, progress and mode; between steps requests
join and leave. Shapes: B requests, L canvas positions, N scored columns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from unmask.canvas import NO_MASK, Array, Canvas, Frame
from unmask.decoding.feed import Backend, Columns, Feed, Logits
from unmask.decoding.methods.behind_text import SelfChecking
from unmask.decoding.methods.draft import Verifying, draft
from unmask.decoding.planner import Planner
from unmask.decoding.prefixes import Remembering
from unmask.decoding.processors import adjustment
from unmask.decoding.request import Request, Row, Scheme, Setting, StepResult, sampled
from unmask.decoding.sampling import Scores
from unmask.errors import UnmaskError
from unmask.layout import BEHIND_TEXT, Layout

SHARED = 16  # tokens that two requests must have in common for one to take the other's keys and values


class Decoder:
    """Decodes requests together, one forward for all of them per step.

    layout: who sees whom. `bidirectional` re-reads the canvas each step, unless a request asks for an
    approximate cache; the others keep exact keys and values of everything before the window (unless
    use_cache is false). `rows` holds every request from its admission to its release. With `isolate` a request
    whose own part of a step raises is left with that `error`, and the others go on.
    """

    def __init__(
        self,
        backend: Backend,
        layout: Layout,
        requests: Iterable[Request] = (),
        eos_ids: frozenset[int] = frozenset(),
        use_cache: bool = True,
        isolate: bool = False,
    ) -> None:
        self.backend = backend
        self.planner = Planner.of(backend)
        self.remembering = backend if isinstance(backend, Remembering) else None
        self.layout = layout
        self.eos_ids = eos_ids
        self.use_cache = use_cache
        mask = backend.config.mask_token_id
        self.mask_id = NO_MASK if mask is None else mask
        self.isolate = isolate
        self.rows: dict[int, Row] = {}
        self.waiting: list[Row] = []
        self.active: list[tuple[Row, Scheme]] = []
        self._admitted = 0
        self._open = False  # the backend has made room
        self._caching = False  # and keeps keys and values
        for request in requests:
            self.admit(request)

    def admit(self, request: Request) -> int:
        """Lets a request join at the next step; returns its number."""
        canvas = Canvas.of([request.ids], self.mask_id, self.backend.config.pad_token_id or 0, [request.given])
        written = request.given.index(False) if self.mask_id == NO_MASK and False in request.given else None
        row = Row(self._admitted, request, canvas, written=written)
        self._admitted += 1
        self.rows[row.number] = row
        self.waiting.append(row)
        return row.number

    def release(self, number: int) -> Row:
        """Forgets a request, finished or not, and gives what became of it; its place is free at the next step."""
        row = self.rows.pop(number)
        self.waiting = [other for other in self.waiting if other is not row]
        self._keep([i for i, (other, _) in enumerate(self.active) if other is not row])
        return row

    @property
    def requests(self) -> list[Request]:
        return [row.request for row in self.rows.values()]

    @property
    def steps(self) -> list[int]:
        """Forward passes of each request."""
        return [row.forwards for row in self.rows.values()]

    @property
    def accepted(self) -> list[list[int]]:
        """Of each request in mode verify: drafts kept at each step."""
        return [row.accepted for row in self.rows.values()]

    @property
    def canvas(self) -> Canvas:
        """The canvases of all requests [B, L], padded on the right."""
        rows = list(self.rows.values())
        shape = (len(rows), max((row.length for row in rows), default=0))
        ids = np.full(shape, self.backend.config.pad_token_id or 0, np.int64)
        frozen = np.ones(shape, bool)
        for b, row in enumerate(rows):
            ids[b, : row.length] = row.canvas.ids[0]
            frozen[b, : row.length] = row.canvas.frozen[0]
        return Canvas(ids, frozen, self.mask_id)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.active or self.waiting)

    def run(self) -> Iterator[list[Frame]]:
        """Steps until no request is left; yields the frames of each."""
        self._join()
        while self.active:
            yield self.step()

    def step(self) -> list[Frame]:
        """One forward for all requests and what it changes: at most a frame for each."""
        first = time.perf_counter()
        self._join()
        if not self.active:
            return []
        columns = self._columns()
        if not self.active:
            return []
        drafting = [scheme for _, scheme in self.active if isinstance(scheme, Verifying)]
        # what is fed again (a shifted head's last token before the window) is not read from the cache too
        feed = Feed.of(columns, np.array([c.position.min() for c in columns]))
        began = time.perf_counter()
        logits = self.backend.forward(feed)
        for row, _ in self.active:
            row.forwards += 1
        counts = [len(own.target) for own in columns]
        ends = np.cumsum(counts).tolist()
        parts = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
        possible = [self._asked(logits, *one) for one in zip(self.active, columns, parts, strict=True)]
        sampling = sampled([scheme for _, scheme in self.active], counts, feed.target)
        proposed = len(feed.target) > 0 and any(scheme.proposes for _, scheme in self.active)
        scores = logits.propose(sampling) if proposed else Scores.none(len(feed.target))
        seconds = time.perf_counter() - began
        frames: list[Frame] = []
        slot = 0
        for (row, scheme), own, part, able in zip(self.active, columns, parts, possible, strict=True):
            result = StepResult(own.target, scores.rows(part), sampling.rows(part), logits, part.start, slot, able)
            slot += len(own.slot)
            if row.prefill_end is not None:
                row.cached = row.prefill_end
                row.prefills += 1
                with self._blame(row):
                    scored = row.canvas.ids[0, own.target].tolist()
                    self._remember(row, list(zip(own.target.tolist(), scored, strict=True)), result)
                continue
            with self._blame(row):
                if np.isnan(result.scores.confidence).any():
                    raise UnmaskError("the network's scores are no numbers; load it in float32 or bfloat16, or again")
                row.canvas, made = row.canvas.apply(scheme.take(result), [row.steps])
                if row.request.logprobs is not None:
                    for frame in made:
                        self._remember(row, list(zip(frame.positions, frame.tokens, strict=True)), result)
                frames += [replace(frame, row=row.number) for frame in made]
        draft(drafting, logits, self._blame)
        self._settle()
        self.planner.observe(sum(len(own.ids) for own in columns), seconds, time.perf_counter() - first - seconds)
        return frames

    def _columns(self) -> list[Columns]:
        """What each active request feeds; one that cannot say is out."""
        columns: list[Columns] = []
        self._plan()
        for row, scheme in self.active:
            with self._blame(row):
                if row.error is None:
                    if row.prefill_end is None:
                        own = scheme.columns()
                    else:
                        scored = row.unscored > 0
                        own = Columns.text(row.canvas.ids[0], row.cached, row.prefill_end, scheme.offset, scored)
                    if row.request.guidance > 0:  # beside it a row that reads the same without what was given
                        given = row.canvas.frozen[0, own.position]
                        unconditional = np.where(given, row.canvas.mask_id, own.ids)
                        own = replace(own, unconditional=unconditional, guidance=row.request.guidance)
                    columns.append(own)
        self._keep([i for i, (row, _) in enumerate(self.active) if row.error is None])
        return columns

    def _plan(self) -> None:
        """Settles who only reads text, where there is too much of it before the window for one forward, and what drafts
        the others feed."""
        block = self.layout.block_length if self.layout.kind == "block_causal" else 1
        for row, scheme in self.active:
            row.prefill_end = row.chunk_end(scheme.text_end, block, scheme.offset)
        drafting = [scheme for row, scheme in self.active if isinstance(scheme, Verifying) and row.prefill_end is None]
        if drafting:
            self.planner.plan(drafting, len(self.active) - len(drafting), self.backend.pass_costs)
        checking = [scheme for row, scheme in self.active if type(scheme) is SelfChecking and row.prefill_end is None]
        if checking:
            self.planner.plan_blocks(checking, len(self.active) - len(checking), self.backend.pass_costs)

    def _asked(self, logits: Logits, active: tuple[Row, Scheme], own: Columns, part: slice) -> Array | None:
        """Leaves the logits of a request what its grammar allows (and says which scored columns have any of it), and
        changes them by its penalties, biases and floors."""
        row, scheme = active
        possible: Array | None = None
        if row.prefill_end is not None:
            return None
        if own.allowed is not None:
            possible = np.ones(len(own.target), bool)
            possible[: len(own.allowed)] = logits.restrict(part.start + np.arange(len(own.allowed)), own.allowed)
        if row.request.processed and len(own.target):
            size = self.backend.config.vocab_size
            made = adjustment(row, own.target, scheme.drafts, scheme.temperature, size, self.eos_ids)
            logits.adjust(part.start + np.arange(len(own.target)), made)
        return possible

    @contextmanager
    def _blame(self, row: Row) -> Iterator[None]:
        """What goes wrong inside is this request's own fault."""
        try:
            yield
        except Exception as error:
            if not self.isolate:
                raise
            row.error = error

    @staticmethod
    def _remember(row: Row, pairs: list[tuple[int, int]], result: StepResult) -> None:
        """Log-probabilities of tokens that stand at positions and of the likeliest in their places."""
        first = {
            int(p): i for i, p in reversed(list(enumerate(result.target)))
        }  # of verify's rows the base's come first
        if row.request.grammar is not None:  # what nothing else could stand in place of
            row.logprobs |= {p: ((t, 0.0), (t, 0.0)) for p, t in pairs if p not in first}
        count = row.request.logprobs or 0
        for position, token in pairs:
            if position in first:
                p = result.probabilities(np.array([first[position]]))[0]
                best = np.argpartition(-p, min(count, len(p) - 1))[:count]
                best = best[np.argsort(-p[best], kind="stable")]
                with np.errstate(divide="ignore"):
                    told = [(int(t), float(np.log(p[t]))) for t in (token, *best)]
                row.logprobs[position] = tuple(told)

    def _join(self) -> None:
        """Takes waiting requests in; those with nothing to do are done."""
        joining = []
        for row in self.waiting:
            with self._blame(row):
                if row.masked.any() and not self._ended(row):
                    joining.append((row, self._scheme(row)))
        self.waiting = []
        if not joining:
            return
        needed = any(self._cache(row.request) != "none" for row, _ in joining)
        if not self._open or (needed and not self._caching):  # those there read everything anyway
            joined = self.active + joining
            self._open = True
            self._caching = needed
            self.backend.open(self.layout, _places(joined), max(row.length for row, _ in joined), needed)
        else:
            self.backend.admit(_places(joining), max(row.length for row, _ in joining))
        if self._of_text:
            self._share(joining)
        self.active += joining
        for row, scheme in joining:
            with self._blame(row):
                scheme.settle()

    def _share(self, joining: list[tuple[Row, Scheme]]) -> None:
        """Gives those who join the keys and values of what others have read, as far as they begin alike: active
        requests, or earlier ones whose text is kept."""
        places = np.cumsum([0, *(row.request.rows for row, _ in self.active + joining)]).tolist()
        for n, (row, scheme) in enumerate(joining, len(self.active)):
            if not scheme.exact or row.request.rows > 1 or row.request.scores_prompt:
                continue
            most = max(int(row.masked.argmax()) - 1, 0)  # what stands before the first token to write is read anew
            alike = [_alike(row.canvas.ids[0, :most], other.canvas.ids[0, : other.cached]) for other, _ in self.active]
            best = int(np.argmax(alike)) if alike else 0
            longest = alike[best] if alike else 0
            if self.remembering is not None:
                kept = self.remembering.prefixes.find(row.canvas.ids[0, :most])
                if len(kept) * self.remembering.prefixes.length > longest:
                    self.remembering.write_blocks(places[n], kept)
                    row.cached = row.shared = len(kept) * self.remembering.prefixes.length
                    continue
            if longest >= SHARED and self.backend.share(places[best], places[n], longest):
                row.cached = row.shared = longest

    def _scheme(self, row: Row) -> Scheme:
        cache = self._cache(row.request)
        setting = Setting(self.backend.config, self.layout, cache, self.eos_ids, self.planner.odds)
        return row.request.method.scheme(row, setting)

    def _cache(self, request: Request) -> str:
        if not self.use_cache:
            return "none"
        if request.cache != "auto":
            return request.cache
        # with a bidirectional layout every key changes at every step: nothing exact to keep
        return "none" if self.layout.kind == "bidirectional" else "exact"

    def _ended(self, row: Row) -> bool:
        return row.ended(self.eos_ids if row.request.ends else frozenset())

    def _settle(self) -> None:
        """Moves windows on and lets finished requests go."""
        going_on = []
        for i, (row, scheme) in enumerate(self.active):
            with self._blame(row):
                if row.error is None and not self._ended(row) and scheme.settle():
                    going_on.append(i)
        self._keep(going_on)

    def _keep(self, index: list[int]) -> None:
        if len(index) < len(self.active):
            taken = np.array([row.request.rows for row, _ in self.active])
            first = taken.cumsum() - taken
            if self.remembering is not None and self._of_text:
                self._remember_texts(self.remembering, [(i, first[i]) for i in set(range(len(first))) - set(index)])
            places = [np.arange(first[i], first[i] + taken[i]) for i in index]
            self.backend.keep(np.concatenate(places) if places else np.zeros(0, np.int64))
            self.active = [self.active[i] for i in index]

    @property
    def _of_text(self) -> bool:
        """Whether keys and values are kept, and those of text depend on the text before them alone."""
        return self._caching and self.layout.kind in ("causal", "drafts", *BEHIND_TEXT)

    def _remember_texts(self, remembering: Remembering, leaving: list[tuple[int, int]]) -> None:
        """Keeps what requests that leave have read, each given by its number and its place in the backend's batch."""
        for i, place in leaving:
            row, scheme = self.active[i]
            if row.error is None and scheme.exact and row.request.rows == 1:
                text = row.canvas.ids[0, : row.cached]
                remembering.prefixes.keep(text, partial(remembering.read_block, place))


def _alike(one: Array, other: Array) -> int:
    """How many tokens two texts have in common at their start."""
    count = min(len(one), len(other))
    same = one[:count] == other[:count]
    return count if same.all() else int(same.argmin())


def _places(rows: list[tuple[Row, Scheme]]) -> int:
    """Rows of the backend's batch that requests take."""
    return sum(row.request.rows for row, _ in rows)
