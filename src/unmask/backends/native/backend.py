"""Forwards of our own compiled code on a CPU: packed weights kept on disk, no torch once they are there.

Shapes: B requests, T columns of all of them together, N scored rows, K head width, G key/value heads, V vocabulary.
"""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from unmask.backends import Progress, Source
from unmask.backends.native.logits import NativeLogits
from unmask.backends.native.network import (
    SLOTS,
    Address,
    Batch,
    CompiledNetwork,
    cpu,
    needed_library,
    rows_pay,
)
from unmask.backends.native.packed_file import PackedFile, mapped, unnamed
from unmask.backends.native.packing import Plan
from unmask.backends.store import compiled_folder
from unmask.canvas import Array
from unmask.checkpoints.rows import Held
from unmask.decoding.feed import TEXT, Feed
from unmask.decoding.planner import passes
from unmask.decoding.prefixes import Prefixes
from unmask.errors import UnmaskError
from unmask.layout import BEHIND_TEXT, PADDING, Layout
from unmask.machine import cores

log = logging.getLogger(__name__)

FORMAT = 6  # of the packed weights; a change of it makes old ones unread
WEIGHTS = "weights.packed"
NAMES = {4: "native-q4", 8: "native", 32: "native-f32"}  # by bits
SLOT_STEP = 128  # slots grow in steps
PIECE = 512  # columns computed at once, so that little memory is enough
ALONE = 8 << 20  # bytes of weights times columns below which one thread is faster than several
TOGETHER = 8  # columns that products take together (MOST in forward.c): what passes cost goes up in such stairs
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 32)  # columns of measured passes
LINES = ("id", "position", "place", "seen", "after", "until", "first", "last", "drafts", "told")
LAYOUTS = ("causal", "block_causal", "bidirectional", "drafts", *BEHIND_TEXT)


class Room:
    """Memory that is kept between forwards: fresh pages cost a small pass more than the pass itself."""

    def __init__(self, width: int, dtype: Any = np.float32) -> None:
        self.width = width
        self.array = np.empty((0, width), dtype)
        self.address = 0

    def take(self, rows: int) -> Array:
        """The first `rows` rows, from a cache line's start; what they held is lost where there were fewer."""
        if rows > len(self.array):
            shape = (1 << (rows - 1).bit_length(), self.width)
            size = shape[0] * shape[1] * self.array.itemsize
            whole = np.empty(size + 64, np.uint8)
            start = -whole.ctypes.data % 64
            self.array = whole[start : start + size].view(self.array.dtype).reshape(shape)
            self.address = whole.ctypes.data + start
        return self.array[:rows]


def log_scores(logits_NV: Array, there_N: Array, time_N: Array, scaled: bool) -> None:
    """Makes logits log scores, in place; see `models.transformer.log_scores`."""
    if scaled:
        logits_NV -= (np.log(np.expm1(time_N)) + math.log(logits_NV.shape[1] - 1))[:, None]
    logits_NV[np.arange(len(logits_NV)), there_N] = 0


@dataclass(frozen=True)
class Lines:
    """The columns of a feed in one line, request after request."""

    values: Array  # int32 [LINES, T]
    row: Array  # of the feed [T]
    text: Array  # columns that are scored as text [N]
    draft: Array  # as drafts
    slot: Array  # whose states are kept
    of_draft: Array  # of all scored rows, bool
    need: Array  # of each column: the last column + 1 that must be computed with it or before


class NativeBackend:
    """Columns of all requests stand in one line, so nothing is padded; a request's result never depends on
    who stands beside it. The logits of a forward are good until the next. Places in the cache double and halve."""

    def __init__(self, network: CompiledNetwork) -> None:
        self.network = network
        self.config = network.config
        self.vocabulary = network.vocabulary
        self.threads = cores()
        self.layout = Layout("causal")
        self.active = np.zeros(0, np.int64)  # place of each request in the cache
        self.places = self.slots = 0
        self.dtype = np.float32 if network.exact else np.float16
        self.keys = self.values = np.zeros(0, self.dtype)
        self.library = needed_library()
        proposed = 0 if self.vocabulary is None else len(self.vocabulary)
        width = self.config.hidden_size
        self.modulation: Array | None = None  # of the noise levels of a forward, see `modulation`
        self.scratch = Room(1, np.uint8)
        self.text_logits = Room(self.config.vocab_size)
        self.draft_logits = Room(proposed)
        self.head_logits = Room(proposed)  # of the draft head
        self.text_states = Room(width)
        self.slot_states = Room(width)

    def open(self, layout: Layout, rows: int, slots: int, use_cache: bool) -> None:
        if layout.kind not in LAYOUTS or layout.window:
            raise UnmaskError(f"backend 'native' does not compute layout '{layout.kind}'; use backend='torch'")
        self.layout = layout
        self.active = np.arange(rows)
        self.make_room(max(rows, 1), SLOT_STEP)

    def admit(self, rows: int, slots: int) -> None:
        if len(self.active) + rows > self.places:
            self.make_room(max(2 * self.places, len(self.active) + rows), self.slots)
        free = np.setdiff1d(np.arange(self.places), self.active)
        self.active = np.concatenate([self.active, free[:rows]])

    def keep(self, rows: Array) -> None:
        self.active = self.active[rows]
        count = len(self.active)
        if count and count * 2 <= self.places:
            self._store(*(np.ascontiguousarray(kept[:, self.active]) for kept in (self.keys, self.values)))
            self.places = count
            self.active = np.arange(count)

    def make_room(self, places: int, slots: int) -> None:
        """Makes the cache as large as this; what both sizes have room for stays."""
        if (places, slots) == (self.places, self.slots):
            return
        c = self.config
        layers = c.loops * c.num_layers
        keys = np.zeros((layers, places, c.num_kv_heads, slots // SLOTS, c.head_dim, SLOTS), self.dtype)
        values = np.zeros((layers, places, c.num_kv_heads, slots, c.head_dim), self.dtype)
        p = min(places, self.places)
        s = min(slots, self.slots)
        if p and s:
            keys[:, :p, :, : s // SLOTS] = self.keys[:, :p, :, : s // SLOTS]
            values[:, :p, :, :s] = self.values[:, :p, :, :s]
        self._store(keys, values)
        self.places = places
        self.slots = slots

    def _store(self, keys: Array, values: Array) -> None:
        self.keys = keys
        self.values = values
        self.addresses = (keys.ctypes.data, values.ctypes.data)

    def forward(self, feed: Feed) -> NativeLogits:
        lines = self._lines(feed)
        if self.network.modulation is not None:
            self.modulation, told = self.network.modulation.rows(feed.time)
            lines.values[9] = told[lines.row]
        parts = (lines.text, lines.draft, lines.slot)
        text = self.text_logits.take(len(lines.text))
        draft = self.draft_logits.take(len(lines.draft))
        states = self.text_states.take(len(lines.text))
        slots = self.slot_states.take(len(lines.slot))
        cuts = pieces(lines.need)
        done = [0, 0, 0]  # rows of text, of drafts and of slots that are made
        for low, high in cuts:
            own = parts if len(cuts) == 1 else tuple(part[(part >= low) & (part < high)] - low for part in parts)
            self._compute(lines.values[:, low:high], low, own, done)
        guided = (feed.guidance > 0).nonzero()[0]
        if len(guided):  # the requests' unconditional rows stand behind all others
            text, without = np.split(text, [len(text) - len(guided)])
            scale = feed.guidance[guided].astype(np.float32)[:, None]
            text[guided] = without + (scale + 1) * (text[guided] - without)
        excluded = None
        if self.config.output == "log_score":
            log_scores(text, feed.ids[feed.row, feed.column], feed.time[feed.row], self.config.score_scaled)
        elif (mask := self.config.mask_token_id) is not None:
            excluded = text[:, mask].copy() if self.config.mask_in_softmax else None
            text[:, mask] = -np.inf
        return NativeLogits(self, text, draft, lines.of_draft, states, slots, excluded)

    def share(self, source: int, target: int, count: int) -> bool:
        blocks = -(-count // SLOTS)
        one, other = self.active[[source, target]]
        self.keys[:, other, :, :blocks] = self.keys[:, one, :, :blocks]
        self.values[:, other, :, :count] = self.values[:, one, :, :count]
        return True

    @property
    def prefixes(self) -> Prefixes:
        """Texts that this network has read, whichever backend did."""
        return self.network.prefixes

    def read_block(self, row: int, n: int) -> tuple[tuple[Array, Array], int]:
        """See `decoding.prefixes.Remembering`."""
        place = self.active[row]
        keys = self.keys[:, place, :, n].copy()
        values = self.values[:, place, :, n * SLOTS : (n + 1) * SLOTS].copy()
        return (keys, values), keys.nbytes + values.nbytes

    def write_blocks(self, row: int, stored: Sequence[tuple[Array, Array]]) -> None:
        """See `decoding.prefixes.Remembering`."""
        needed = len(stored) * SLOTS
        if needed > self.slots:
            self.make_room(self.places, -(-needed // SLOT_STEP) * SLOT_STEP)
        place = self.active[row]
        for n, (keys, values) in enumerate(stored):
            self.keys[:, place, :, n] = keys
            self.values[:, place, :, n * SLOTS : (n + 1) * SLOTS] = values

    def pass_costs(self) -> dict[int, float]:
        """See `decoding.feed.Backend`; measured once for a CPU and so many threads, kept beside the packed weights.

        Seconds that threads computed, over the threads: what others do with the cores meanwhile does not count.
        """
        network = self.network
        kind = f"{self.library._name.rpartition('/')[2].partition('.')[0]}, {cpu()}, {self.threads} threads"
        if kind not in network.costs:
            half = min(self.config.max_length // 2, WIDTHS[-1])
            probe = NativeBackend(network)
            probe.threads = self.threads
            layout = Layout("causal")
            widths = [width for width in WIDTHS if width <= half]
            times = passes(probe, layout, widths, half, rounds=8, clock=time.process_time)
            network.keep_costs(kind, {w: min(own) / self._threads(w) for w, own in times.items()})
        return stairs(network.costs[kind])

    def _threads(self, columns: int) -> int:
        """Threads that a pass takes: a tiny one is over before another thread wakes."""
        return self.threads if self.network.text_bytes * columns > ALONE else 1

    def _lines(self, feed: Feed) -> Lines:
        there = feed.document != PADDING
        widths = there.sum(1)
        row = np.repeat(np.arange(len(widths)), widths)
        begins = widths.cumsum() - widths
        count = len(row)
        cells = self.network.struct.cells
        if cells and (widths != cells).any():
            raise UnmaskError(f"a network of a grid reads whole canvases of {cells} cells, not {widths.min()}")
        position = feed.position[there]
        anchor = feed.anchor[there]
        drafts = anchor != TEXT
        column = np.arange(count)
        values = np.zeros((len(LINES), count), np.int32)
        seen, after, until = values[3:6]
        ends = feed.position[np.arange(len(widths)), widths - 1] + 1 if count else widths
        needed = int(position[~drafts].max(initial=0)) + 1
        if self.layout.kind == "causal_window" and drafts.any():  # anchors order a group that sees its first one's text
            least = np.full(len(widths), anchor.max())
            np.minimum.at(least, row[drafts], anchor[drafts])
            anchor = np.where(drafts, least[row], TEXT)
        if self.layout.kind in ("causal", "drafts", *BEHIND_TEXT):
            seen[:] = np.where(drafts, anchor, position) + 1
        else:
            late = feed.cached_after[row]
            needed = max(needed, int(late.max(initial=0)))
            limit = np.full(count, self.slots + needed)
            if self.layout.kind == "block_causal":
                size = self.layout.block_length
                limit = ((position + feed.offset[row]) // size + 1) * size - feed.offset[row]
            seen[:] = np.minimum(limit, ends[row])
            after[:] = late[:, 0]
            until[:] = np.maximum(late[:, 0], np.minimum(limit, late[:, 1]))
        need = column + seen - position
        if drafts.any():
            first, last = groups(row, anchor)
            need = np.where(drafts, last, need)
            values[6] = np.where(drafts, first, 0)
            values[7] = np.where(drafts, column + 1 if self.layout.kind == "causal_window" else last, 0)
            values[8] = drafts
        if needed > self.slots:
            self.make_room(self.places, -(-needed // SLOT_STEP) * SLOT_STEP)
        values[0] = feed.ids[there]
        values[1] = position
        values[2] = self.active[row]
        scored = begins[feed.row] + feed.column
        of_draft = drafts[scored] & (self.layout.kind == "drafts")
        guided = feed.guidance > 0
        unconditional = begins[feed.row[guided] + 1] + feed.column[guided]
        text = scored[~of_draft] if of_draft.any() else scored
        slot = begins[feed.slot_row] + feed.slot_column
        return Lines(values, row, np.concatenate([text, unconditional]), scored[of_draft], slot, of_draft, need)

    def _compute(self, values: Array, low: int, parts: tuple[Array, ...], done: list[int]) -> None:
        """One call of the compiled code, for columns from `low` on; `done` rows of each kind are made, and counted."""
        count = values.shape[1]
        own = np.ascontiguousarray(values)
        if low:
            own[6:8] -= low * own[8]
        rows = [np.ascontiguousarray(part, np.int32) for part in parts]
        batch = Batch(count, *map(len, rows), self.places, self.slots // SLOTS, self._threads(count))
        start = own.ctypes.data
        for i, name in enumerate(LINES):
            setattr(batch, name, start + i * own.strides[0])
        if self.modulation is not None:
            batch.modulation = self.modulation.ctypes.data
        batch.text, batch.draft, batch.slot = (part.ctypes.data for part in rows)
        batch.keys, batch.values = self.addresses
        rooms = (self.text_logits, self.draft_logits, self.text_states, self.slot_states)
        made = (done[0], done[1], done[0], done[2])
        outputs = [room.address + 4 * room.width * n for room, n in zip(rooms, made, strict=True)]
        batch.text_logits, batch.draft_logits, batch.text_states, batch.slot_states = outputs
        self._run(lambda: self.library.unmask_forward(ctypes.byref(self.network.struct), ctypes.byref(batch)), batch)
        for i, part in enumerate(parts):
            done[i] += len(part)

    def _run(self, call: Callable[[], int], batch: Batch) -> None:
        """Calls with the room there is, and again with as much as it turns out to need."""
        while True:
            batch.room = self.scratch.address
            batch.room_size = len(self.scratch.array)
            needed = call()
            if not needed:
                return
            self.scratch.take(needed)

    def draft_head(self, state: Array, before: Array, token: Array) -> tuple[Array, Array]:
        """See `logits.Network`; the logits are good until the head is asked again."""
        given = [np.ascontiguousarray(state, np.float32), np.ascontiguousarray(before, np.float32)]
        given.append(np.ascontiguousarray(token, np.int32))
        made = np.empty_like(given[0])
        logits = self.head_logits.take(len(made))
        at = [Address(a.ctypes.data) for a in (*given, made, logits)]
        batch = Batch()

        def call() -> int:
            room = (Address(batch.room), ctypes.c_int64(batch.room_size))
            rows: int = self.library.unmask_chain(
                ctypes.byref(self.network.struct), len(made), self.threads, *at, *room
            )
            return rows

        self._run(call, batch)
        return made, logits


def stairs(measured: dict[int, float]) -> dict[int, float]:
    """Seconds of passes of 1 to TOGETHER * 32 columns, of those at WIDTHS: beyond the last but one they go up as in the
    TOGETHER columns up to there, and to the last. As measured where there are fewer widths."""
    widths = sorted(measured)
    if widths[-1] != WIDTHS[-1]:
        return measured
    low, high = WIDTHS[-2:]
    rise = (measured[high] - measured[low]) / (high - low) * TOGETHER
    out = np.interp(np.arange(low + 1), widths, [measured[width] for width in widths]).tolist()
    while len(out) <= 32 * TOGETHER:
        out.append(out[-TOGETHER] + rise)
    return dict(enumerate(out[1:], 1))


def groups(row: Array, anchor: Array) -> tuple[Array, Array]:
    """First column and last + 1 of each column's group [T]: neighbours of one request and anchor, text by itself."""
    count = len(row)
    new = np.ones(count, bool)
    new[1:] = (row[1:] != row[:-1]) | (anchor[1:] != anchor[:-1]) | (anchor[1:] == TEXT)
    starts = new.nonzero()[0]
    which = new.cumsum() - 1
    return starts[which], np.append(starts[1:], count)[which]


def pieces(need: Array) -> list[tuple[int, int]]:
    """Ranges of columns, none wider than PIECE but where columns that see each other are.

    need [T]: of each column, the last + 1 of those that it must be computed with, or after.
    """
    count = len(need)
    if count <= PIECE:
        return [(0, count)]
    cuts = (np.maximum.accumulate(need) <= np.arange(1, count + 1)).nonzero()[0] + 1
    out = []
    low = 0
    while low < count:
        fitting = cuts[(cuts > low) & (cuts <= low + PIECE)]
        high = int(fitting[-1]) if len(fitting) else int(cuts[cuts > low][0])
        out.append((low, high))
        low = high
    return out


def packed(source: Source, bits: int, progress: Progress | None) -> CompiledNetwork:
    """A model's network; its weights are packed once, kept in the user's cache where that can be written, and mapped.

    bits: of the weights, 32 for float32.
    """

    def fill(file: BinaryIO) -> None:
        made = PackedFile(file)
        _plan(source, bits).write(made, progress or (lambda done, total: None))
        made.end()

    def write(folder: Path) -> None:
        with (folder / WEIGHTS).open("wb") as file:
            fill(file)

    if source.loaded is not None:
        try:
            layout = 2 * FORMAT + rows_pay()  # two kinds of CPU that share a cache keep two files
            where = compiled_folder(source.loaded, NAMES[bits], layout, write)
            with (where / WEIGHTS).open("rb") as kept:
                return CompiledNetwork(source.config, mapped(kept), bits == 32, where / "costs.json")
        except UnmaskError as error:
            log.warning("weights are packed anew at every start: %s", error)
    with unnamed() as file:
        fill(file)
        return CompiledNetwork(source.config, mapped(file), bits == 32)


def _plan(source: Source, bits: int) -> Plan:
    """Of the weights as they lie in the files, or of a network in memory: an adapter on its base."""
    rows = None if source.loaded is None else source.loaded.rows()
    if rows is not None:
        return Plan(source.config, rows, None, bits, rows_pay())
    network = source.network()
    held = {name: Held(p.detach().float().cpu().numpy()) for name, p in network.named_parameters()}
    vocabulary = None if network.draft_vocabulary is None else network.draft_vocabulary.numpy()
    return Plan(source.config, held, vocabulary, bits, rows_pay())
