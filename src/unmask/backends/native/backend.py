"""Forwards of our own compiled code on a CPU: packed weights kept on disk, no torch once they are there.

Shapes: B requests, T columns of all of them together, N scored rows, K head width, G key/value heads, V vocabulary.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from unmask.backends import Progress, Source
from unmask.backends.logits import CompiledLogits
from unmask.backends.native.network import Batch, CompiledNetwork, cores, library
from unmask.backends.native.packing import packed_weights
from unmask.backends.store import compiled_folder
from unmask.canvas import Array
from unmask.decoding.feed import TEXT, Feed, Sampling
from unmask.decoding.sampling import Scores
from unmask.errors import UnmaskError
from unmask.layout import PADDING, Layout

FORMAT = 4  # of the packed weights; a change of it makes old ones unread
WEIGHTS = "weights.safetensors"
SLOTS = 16  # of the cache stand together
SLOT_STEP = 128  # slots grow in steps
PIECE = 512  # columns computed at once, so that little memory is enough
ALONE = 8 << 20  # bytes of weights times columns below which one thread is faster than several
LINES = ("id", "position", "place", "seen", "after", "until", "first", "last", "drafts")
LAYOUTS = ("causal", "block_causal", "bidirectional", "drafts")


class NativeLogits(CompiledLogits):
    """Logits whose best tokens are found by the compiled code."""

    network: NativeBackend

    def best(self, logits: Array, sampling: Sampling) -> Scores:
        if (sampling.temperature > 0).any():
            return super().best(logits, sampling)
        token, confidence, entropy, margin = summarise(logits, self.network.threads)
        return Scores(token, confidence, entropy, margin, sampling.choice_draw)


def summarise(logits_NV: Array, threads: int) -> tuple[Array, Array, Array, Array]:
    """Of each row: the best token, its probability, the entropy in nats, and how far the second best token's
    probability is below, [N] each."""
    rows, size = logits_NV.shape
    token = np.empty(rows, np.int64)
    values = np.empty((3, rows))
    at = [_address(a) for a in (logits_NV, token, values)]
    step = values.strides[0]
    _library().unmask_summarise(at[0], rows, size, threads, at[1], *[Address(at[2].value + i * step) for i in range(3)])
    return token, values[0], values[1], values[2]


Address = ctypes.c_void_p


def _address(array: Array) -> Any:
    return Address(array.__array_interface__["data"][0])


def _library() -> ctypes.CDLL:
    build = library()
    if build is None:
        raise UnmaskError("backend 'native' cannot run here; use backend='torch'")
    return build


class Room:
    """Memory that is kept between forwards: fresh pages cost a small pass more than the pass itself."""

    def __init__(self, width: int, dtype: type = np.float32) -> None:
        self.width = width
        self.dtype = dtype
        self.array = np.empty((0, width), dtype)
        self.address = 0

    def take(self, rows: int) -> Array:
        """The first `rows` rows, larger where there were fewer; what they held is lost."""
        if rows > len(self.array):
            whole = np.empty((1 << (rows - 1).bit_length()) * self.width * np.dtype(self.dtype).itemsize + 64, np.uint8)
            start = -whole.ctypes.data % 64
            usable = (len(whole) - start) // np.dtype(self.dtype).itemsize // max(self.width, 1) if self.width else rows
            end = start + usable * self.width * np.dtype(self.dtype).itemsize
            self.array = whole[start:end].view(self.dtype).reshape(usable, self.width)
            self.address = whole.ctypes.data + start
        return self.array[:rows]


@dataclass(frozen=True)
class Lines:
    """The columns of a feed in one line, request after request."""

    values: Array  # int32 [LINES, T]
    text: Array  # columns that are scored as text [N]
    draft: Array  # as drafts
    slot: Array  # whose states are kept
    of_draft: Array  # of all scored rows, bool
    need: Array  # of each column: the last column + 1 that must be computed with it or before


class NativeBackend:
    """Columns of all requests stand in one line, so nothing is padded; a request's result never depends on
    who stands beside it. The logits of a forward are good until the next."""

    def __init__(self, network: CompiledNetwork) -> None:
        self.network = network
        self.config = network.config
        self.vocabulary = network.vocabulary
        self.threads = cores()
        self.layout = Layout("causal")
        self.active = np.zeros(0, np.int64)  # place of each request in the cache
        self.places = 0
        self.slots = 0
        self.dtype = np.float32 if network.exact else np.float16
        self.keys = self.values = np.zeros(0, self.dtype)
        proposed = 0 if self.vocabulary is None else len(self.vocabulary)
        width = self.config.hidden_size
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
        self._make_room(max(rows, 1), SLOT_STEP)

    def _make_room(self, places: int, slots: int) -> None:
        """Makes the cache as large as this; what both sizes have room for stays."""
        if (places, slots) == (self.places, self.slots):
            return
        c = self.config
        keys = np.zeros((c.num_layers, places, c.num_kv_heads, slots // SLOTS, c.head_dim, SLOTS), self.dtype)
        values = np.zeros((c.num_layers, places, c.num_kv_heads, slots, c.head_dim), self.dtype)
        p = min(places, self.places)
        s = min(slots, self.slots)
        if p and s:
            keys[:, :p, :, : s // SLOTS] = self.keys[:, :p, :, : s // SLOTS]
            values[:, :p, :, :s] = self.values[:, :p, :, :s]
        self.keys = keys
        self.values = values
        self.places = places
        self.slots = slots

    def admit(self, rows: int, slots: int) -> None:
        free = np.setdiff1d(np.arange(self.places), self.active)
        if len(free) < rows:
            self._make_room(max(2 * self.places, len(self.active) + rows), self.slots or SLOT_STEP)
            free = np.setdiff1d(np.arange(self.places), self.active)
        self.active = np.concatenate([self.active, free[:rows]])

    def keep(self, rows: Array) -> None:
        self.active = self.active[rows]
        count = len(self.active)
        if count and count * 2 <= self.places:
            self.keys = np.ascontiguousarray(self.keys[:, self.active])
            self.values = np.ascontiguousarray(self.values[:, self.active])
            self.places = count
            self.active = np.arange(count)

    def forward(self, feed: Feed) -> CompiledLogits:
        lines = self._lines(feed)
        counts = (len(lines.text), len(lines.draft), len(lines.text), len(lines.slot))
        rooms = (self.text_logits, self.draft_logits, self.text_states, self.slot_states)
        made = [room.take(count) for room, count in zip(rooms, counts, strict=True)]
        done = [0, 0, 0, 0]
        for low, high in pieces(lines.need):
            parts = (lines.text, lines.draft, lines.slot)
            if high - low < lines.values.shape[1]:
                parts = tuple(part[(part >= low) & (part < high)] - low for part in parts)
            self._compute(lines.values[:, low:high], parts, [room.address for room in rooms], done)
        text, draft, states, slots = made
        guided = (feed.guidance > 0).nonzero()[0]
        if len(guided):  # the rows of the requests' twins stand behind all others
            without = text[len(text) - len(guided) :]
            scale = feed.guidance[guided].astype(np.float32)[:, None]
            text[guided] = without + (scale + 1) * (text[guided] - without)
            text = text[: len(text) - len(guided)]
        if self.config.mask_token_id is not None:
            text[:, self.config.mask_token_id] = -np.inf
        return NativeLogits(self, text, draft, lines.of_draft, states, slots)

    def _lines(self, feed: Feed) -> Lines:
        there = feed.document != PADDING
        widths = there.sum(1)
        row = np.repeat(np.arange(len(widths)), widths)
        begins = widths.cumsum() - widths
        count = len(row)
        position = feed.position[there]
        anchor = feed.anchor[there]
        drafts = anchor != TEXT
        column = np.arange(count)
        values = np.zeros((len(LINES), count), np.int32)
        seen, after, until = values[3:6]
        ends = feed.position[np.arange(len(widths)), widths - 1] + 1 if count else widths
        needed = int(position[~drafts].max(initial=0)) + 1
        if self.layout.kind in ("causal", "drafts"):
            seen[:] = np.where(drafts, anchor, position) + 1
        else:
            late = feed.beyond[row]
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
            values[7] = np.where(drafts, last, 0)
            values[8] = drafts
        if needed > self.slots:
            self._make_room(self.places, -(-needed // SLOT_STEP) * SLOT_STEP)
        values[0] = feed.ids[there]
        values[1] = position
        values[2] = self.active[row]
        scored = begins[feed.row] + feed.column
        of_draft = drafts[scored]
        guided = feed.guidance > 0
        twins = begins[feed.row[guided] + 1] + feed.column[guided]
        text = scored[~of_draft] if of_draft.any() else scored
        slot = begins[feed.slot_row] + feed.slot_column
        return Lines(values, np.concatenate([text, twins]), scored[of_draft], slot, of_draft, need)

    def _compute(self, values: Array, parts: tuple[Array, ...], outputs: list[int], done: list[int]) -> None:
        """One call of the compiled code; `done` rows of each output are there already, and are counted on."""
        width, count = values.shape
        own = values.copy()  # in one piece
        for line in (6, 7):
            own[line] -= np.where(own[8] > 0, self._low, 0) if self._low else 0
        text, draft, slot = (np.ascontiguousarray(part, np.int32) for part in parts)
        start = own.__array_interface__["data"][0]
        network = self.network
        threads = self.threads if network.text_bytes * count > ALONE else 1
        batch = Batch(count, len(text), len(draft), len(slot), self.places, self.slots // SLOTS, threads)
        del width, start, batch, outputs, done


def groups(row: Array, anchor: Array) -> tuple[Array, Array]:
    """First column and last + 1 of each column's group [T]: neighbours of one request and anchor, text by itself."""
    count = len(row)
    new = np.ones(count, bool)
    new[1:] = (row[1:] != row[:-1]) | (anchor[1:] != anchor[:-1]) | (anchor[1:] == TEXT)
    starts = new.nonzero()[0]
    which = new.cumsum() - 1
    return starts[which], np.append(starts[1:], count)[which]
