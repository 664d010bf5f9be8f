"""Forwards of our own compiled code on a CPU: packed weights kept on disk, no torch once they are there.

Shapes: T columns of all requests together, L layers, K head width, G key/value heads, N scored rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from unmask.backends import Source
from unmask.backends.logits import CompiledLogits
from unmask.backends.native.network import CompiledNetwork, packed_weights
from unmask.backends.store import compiled_folder
from unmask.canvas import Array
from unmask.decoding.feed import TEXT, Feed, Sampling
from unmask.decoding.sampling import Scores
from unmask.errors import UnmaskError
from unmask.layout import PADDING, Layout

FORMAT = 3  # of the packed weights; a change of it makes old ones unread
WEIGHTS = "weights.safetensors"
SLOTS = 16  # of the cache stand together
SLOT_STEP = 128  # slots grow in steps
PIECE = 512  # columns computed at once, so that little memory is enough
ROOM = 64  # rows of logits whose memory is kept: fresh pages cost a pass more than the rows do


class NativeLogits(CompiledLogits):
    """Logits whose best tokens are found by the compiled code."""

    network: CompiledNetwork
    room: Array | None = None

    def draft_head(self, state: Array, before: Array, token: Array) -> tuple[Array, Array]:
        """The logits are good until the head is asked again."""
        return self.network.draft_head(state, before, token, self.room)

    def best(self, logits: Array, sampling: Sampling) -> Scores:
        if (sampling.temperature > 0).any():
            return super().best(logits, sampling)
        token, confidence, entropy, margin = self.network.summarise(logits)
        return Scores(token, confidence, entropy, margin, sampling.choice_draw)


class NativeBackend:
    """Columns of all requests stand in one line, so nothing is padded; a request's result never depends on
    who stands beside it. The logits of a forward are good until the next."""

    def __init__(self, network: CompiledNetwork) -> None:
        self.network, self.config = network, network.config
        self.active = np.zeros(0, np.int64)  # place of each request in the cache
        self.places, self.slots = 0, 0
        self.keys = self.values = np.zeros(0, np.float16)
        self.room = np.empty((ROOM, self.config.vocab_size), np.float32)  # the last forward's logits
        self.drafts_room = np.empty((ROOM, network.proposed), np.float32)  # those of the last slots told

    def open(self, layout: Layout, rows: int, slots: int, use_cache: bool) -> None:
        self.active = np.arange(rows)
        self._room(max(rows, 1), SLOT_STEP)

    def _room(self, places: int, slots: int) -> None:
        """Makes the cache as large as this; what both sizes have room for stays."""
        c, old = self.config, (self.keys, self.values)
        shared = (min(places, self.places), min(slots, self.slots))
        if (places, slots) == (self.places, self.slots):
            return
        shape = (c.num_layers, places, c.num_kv_heads)
        self.keys = np.zeros((*shape, slots // SLOTS, c.head_dim, SLOTS), np.float16)
        self.values = np.zeros((*shape, slots, c.head_dim), np.float16)
        if all(shared):
            p, s = shared
            self.keys[:, :p, :, : s // SLOTS] = old[0][:, :p, :, : s // SLOTS]
            self.values[:, :p, :, :s] = old[1][:, :p, :, :s]
        self.places, self.slots = places, slots

    def admit(self, rows: int, slots: int) -> None:
        free = np.setdiff1d(np.arange(self.places), self.active)
        if len(free) < rows:
            self._room(max(2 * self.places, len(self.active) + rows), self.slots or SLOT_STEP)
            free = np.setdiff1d(np.arange(self.places), self.active)
        self.active = np.concatenate([self.active, free[:rows]])

    def keep(self, rows: Array) -> None:
        self.active = self.active[rows]
        count = len(self.active)
        if count and count * 2 <= self.places:
            self.keys, self.values = (np.ascontiguousarray(a[:, self.active]) for a in (self.keys, self.values))
            self.places, self.active = count, np.arange(count)

    def forward(self, feed: Feed) -> CompiledLogits:
        if (feed.guidance > 0).any():
            raise UnmaskError("backend 'native' does not guide; use backend='torch' or guidance=0")
        there = feed.document != PADDING
        row = there.nonzero()[0]
        position, anchor = feed.position[there], feed.anchor[there]
        drafts = anchor != TEXT
        needed = int(position[~drafts].max(initial=0)) + 1
        if needed > self.slots:
            self._room(self.places, -(-needed // SLOT_STEP) * SLOT_STEP)
        first, last = groups(row, anchor)
        # padding stands on the right: a request's columns follow each other
        begins = np.searchsorted(row, np.arange(len(feed.ids)))
        scored, slots = begins[feed.row] + feed.column, begins[feed.slot_row] + feed.slot_column
        of_draft = drafts[scored]
        lines = {
            "id": feed.ids[there],
            "position": position,
            "place": self.active[row],
            "seen": np.where(drafts, anchor, position) + 1,
            "first": first,
            "last": last,
            "drafts": drafts,
        }
        parts: tuple[list[Array], ...] = ([], [], [], [])
        for low, high in pieces(first, last, len(row)):
            own = {name: values[low:high] for name, values in lines.items()}
            own["first"], own["last"] = (np.where(own["drafts"], own[name] - low, 0) for name in ("first", "last"))
            mine = (scored >= low) & (scored < high)
            own["text"], own["draft"] = scored[mine & ~of_draft] - low, scored[mine & of_draft] - low
            own["slot"] = slots[(slots >= low) & (slots < high)] - low
            room = self.room if high - low == len(row) and len(own["text"]) <= ROOM else None
            for part, made in zip(parts, self.network.forward(own, self.keys, self.values, room), strict=True):
                part.append(made)
        text, draft, *states = (made[0] if len(made) == 1 else np.concatenate(made) for made in parts)
        text[:, self.config.mask_token_id] = -np.inf
        out = NativeLogits(self.network, text, draft, of_draft, *states)
        out.room = self.drafts_room
        return out


def groups(row: Array, anchor: Array) -> tuple[Array, Array]:
    """First column and last + 1 of each column's group [T]: neighbours of one request and anchor, text by itself."""
    count = len(row)
    new = np.ones(count, bool)
    new[1:] = (row[1:] != row[:-1]) | (anchor[1:] != anchor[:-1]) | (anchor[1:] == TEXT)
    starts = new.nonzero()[0]
    which = new.cumsum() - 1
    return starts[which], np.append(starts[1:], count)[which]


def pieces(first: Array, last: Array, count: int) -> list[tuple[int, int]]:
    """Ranges of columns, none wider than PIECE but for a group that is: groups stay whole."""
    out, low = [], 0
    while low < count:
        high = min(low + PIECE, count)
        if high < count:  # a group that would be cut goes to the next piece
            high = int(first[high]) if first[high] > low else int(last[high])
        out.append((low, high))
        low = high
    return out


def packed(source: Source) -> CompiledNetwork:
    """A model's network; its weights are packed once and kept in the user's cache."""
    from safetensors.numpy import load_file, save_file

    if source.loaded is None:
        return CompiledNetwork(source.config, _pack(source))
    where = compiled_folder(source.loaded, "native", FORMAT, lambda folder: save_file(_pack(source), folder / WEIGHTS))
    return CompiledNetwork(source.config, load_file(where / WEIGHTS))


def _pack(source: Source) -> dict[str, Array]:
    network = source.network()
    weights = dict(network.named_parameters())
    vocabulary = None if network.draft_vocabulary is None else network.draft_vocabulary.numpy()
    return packed_weights(source.config, lambda name: weights[name].detach().float().numpy(), vocabulary)
