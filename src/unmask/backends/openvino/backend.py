"""Forwards of a compiled OpenVINO graph on a CPU; needs no torch once the graph is on disk.

Shapes: B requests, W columns, S cache slots, N scored rows, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

from unmask.backends.compiled import CompiledLogits, compiled_folder, remove_older
from unmask.canvas import Array
from unmask.decoding.feed import TEXT, Feed
from unmask.errors import UnmaskError
from unmask.files import replacing
from unmask.layout import EMPTY, PADDING, Coordinates, Layout

if TYPE_CHECKING:
    from unmask.checkpoints.loading import Loaded

FORMAT = 2  # of the compiled graphs; a change of the graph makes old ones unread
SLOT_STEP = 128  # slots grow in steps, so that few shapes are ever seen
SECOND_FORWARD = 48  # columns that cost as much as reading the weights once more
WIDTHS = (1, 4, 9, 16, 32, 64, 128)  # a change of shape costs more than the columns that fill it up


def _padded(width: int) -> int:
    return next((w for w in WIDTHS if w >= width), -(-width // 64) * 64)


def _doubled(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def narrow_width(widths: Array, rows: int) -> int | None:
    """Widest row that is computed with all `rows` of the cache's batch, if the wider ones had better be computed on
    their own; None if all go together. Counts columns: a forward is padded to its widest row, in every row."""
    padded = [_padded(int(width)) for width in widths]
    widest = max(padded)
    best, cut = rows * widest - SECOND_FORWARD, None
    for width in sorted(set(padded))[:-1]:
        columns = rows * width + _doubled(sum(other > width for other in padded)) * widest
        if columns < best:
            best, cut = columns, width
    return cut


class OpenVINOBackend:
    """Runs the base's graph for feeds of text, and the adapted one once a request drafts."""

    def __init__(self, loaded: Loaded, where: Path) -> None:
        self.loaded, self.config, self.where = loaded, loaded.config, where
        self.requests: dict[str, Any] = {}  # compiled graphs: base, drafts (the adapted one), chain
        self.vocabulary: Array | None = None
        self.layout, self.slots = Layout("causal"), 0
        self.cache: Array = np.zeros((0, 0, 0, 0, 0), np.float32)
        self.active = np.zeros(0, np.int64)  # place of each request in the cache's batch
        self.made: Array = self.cache  # keys and values of the last computation's columns

    @classmethod
    def compiled(cls, loaded: Loaded) -> OpenVINOBackend:
        """The backend of a model; its graphs are built once and kept in the user's cache."""
        where = compiled_folder(loaded, "openvino", (FORMAT, ov.__version__))
        if not (where / "base.xml").is_file():
            _write_graphs(loaded, where)
        return cls(loaded, where)

    def open(self, layout: Layout, rows: int, slots: int, use_cache: bool) -> None:
        if not use_cache:
            raise UnmaskError("backend 'openvino' always keeps exact keys and values; use backend='torch' without")
        self.layout, self.active = layout, np.arange(rows)
        self._room(rows, SLOT_STEP)

    def _room(self, rows: int, slots: int) -> None:
        c, old = self.config, self.cache
        shape = (2 * c.num_layers, rows, c.num_kv_heads, slots, c.head_dim)
        if old.shape == shape:
            return
        self.cache = np.zeros(shape, np.float32)
        if old.shape[1] == rows and old.shape[3] < slots:
            self.cache[:, :, :, : old.shape[3]] = old

    def admit(self, rows: int, slots: int) -> None:
        have = self.cache.shape[1]
        free = np.setdiff1d(np.arange(have), self.active)
        if len(free) < rows:  # batches double, so that few shapes are ever seen
            size = max(2 * have, len(self.active) + rows)
            grown = np.zeros((*self.cache.shape[:1], size, *self.cache.shape[2:]), np.float32)
            grown[:, :have], self.cache = self.cache, grown
            free = np.setdiff1d(np.arange(size), self.active)
        self.active = np.concatenate([self.active, free[:rows]])

    def keep(self, rows: Array) -> None:
        self.active = self.active[rows]
        if len(self.active) * 2 <= self.cache.shape[1] and len(self.active):  # smaller, but few shapes in all
            self.cache, self.active = np.ascontiguousarray(self.cache[:, self.active]), np.arange(len(self.active))

    def forward(self, feed: Feed) -> CompiledLogits:
        if (feed.guidance > 0).any():
            raise UnmaskError("backend 'openvino' does not guide; use backend='torch' or guidance=0")
        # text alone needs no adapter, but a graph that is at hand beats compiling another
        drafted = bool((feed.anchor != TEXT).any()) or ("base" not in self.requests and "drafts" in self.requests)
        needed = int(feed.cached.max())
        if needed > self.cache.shape[3]:
            self._room(self.cache.shape[1], -(-needed // SLOT_STEP) * SLOT_STEP)
        widths = (feed.document != PADDING).sum(1)
        cut, of_draft = narrow_width(widths, self.cache.shape[1]), feed.of_draft
        if cut is None:
            text, drafts, *states = self._compute(feed, self.cache, self.active, drafted)
            self._remember(feed, self.active)
            return CompiledLogits(self, text, drafts, of_draft, *states)
        # wide rows in a forward of their own: few, and a prompt that is being read has little in the cache yet
        parts = [np.zeros((0, 0), np.float32)] * 4
        whose = (feed.row[~of_draft], feed.row[of_draft], feed.row[~of_draft], feed.slot_row)
        for wide in (False, True):
            index = ((widths > cut) == wide).nonzero()[0]
            own = feed.rows(index)
            cache, places = self.cache, self.active[index]
            if wide:
                cache, places = self._excerpt(places, int(own.cached.max())), np.arange(len(index))
            out = self._compute(own, cache, places, drafted)
            for kind, made in enumerate(out):
                mine = np.isin(whose[kind], index)
                if not parts[kind].size:
                    parts[kind] = np.zeros((len(mine), made.shape[1]), np.float32)
                parts[kind][mine] = made[: int(mine.sum())]
            self._remember(own, self.active[index], places)
        return CompiledLogits(self, parts[0], parts[1], of_draft, parts[2], parts[3])

    def chain(self, state: Array, before: Array, token: Array) -> tuple[Array, Array]:
        """See `engine.compiled.Compiled`."""
        request = self._request("chain")
        for name, values in (("state", state), ("before", before), ("token", token.astype(np.int32))):
            request.set_tensor(name, ov.Tensor(np.ascontiguousarray(values), shared_memory=True))
        request.infer()
        told, logits = (request.get_output_tensor(n).data.copy() for n in range(2))
        return told, logits

    def _excerpt(self, places: Array, needed: int) -> Array:
        """A cache of some rows of the batch, with so many slots at least."""
        layers, _, heads, have, size = self.cache.shape
        slots = min(have, max(1, -(-needed // SLOT_STEP)) * SLOT_STEP)
        out = np.zeros((layers, _doubled(len(places)), heads, slots, size), np.float32)
        out[:, : len(places)] = self.cache[:, places, :, :slots]
        return out

    def _compute(self, feed: Feed, cache: Array, places: Array, drafted: bool) -> tuple[Array, ...]:
        """Logits of a feed's scored rows, of text and of drafts, and states of text and of its slots; its rows stand at
        `places` of a cache's batch."""
        request, width = self._request("drafts" if drafted else "base"), feed.ids.shape[1]
        wide, rows, slots = _padded(width), cache.shape[1], cache.shape[3]

        def spread(values: Array, fill: int) -> Array:
            out = np.full((rows, wide), fill, np.int32)
            out[places, :width] = values
            return out

        position, document = spread(feed.position, 0), spread(feed.document, PADDING)
        anchor, cached = spread(feed.anchor, TEXT), np.zeros(rows, np.int64)
        cached[places] = feed.cached
        q = Coordinates.drafts(position, anchor, document)
        place = np.broadcast_to(np.arange(slots), (rows, slots))
        earlier = Coordinates.drafts(place, np.full_like(place, TEXT), np.where(place < cached[:, None], 0, EMPTY))
        k = Coordinates(*(np.concatenate([a, b], 1) for a, b in zip(earlier, q, strict=True)))
        allowed = Layout("drafts").dense(q, k)  # of text alone this is causal
        of_draft, none = feed.of_draft, np.zeros(1, np.int32)  # an empty product is refused
        flat, slots = (
            (places[row] * wide + column).astype(np.int32)
            for row, column in ((feed.row, feed.column), (feed.slot_row, feed.slot_column))
        )
        inputs = {
            "ids": spread(feed.ids, 0),
            "position": position,
            "mask": np.where(allowed, np.float32(0), np.float32(-1e9)),
            "cache": cache,
            "rows": flat[~of_draft] if not of_draft.all() else none,
        }
        if drafted:
            inputs["gate"] = (anchor != TEXT).astype(np.float32)[..., None]
            inputs["draft_rows"] = flat[of_draft] if of_draft.any() else none
            inputs["slot_rows"] = slots if len(slots) else none
        for name, values in inputs.items():
            request.set_tensor(name, ov.Tensor(np.ascontiguousarray(values), shared_memory=True))
        request.infer()
        text = request.get_output_tensor(0).data[: int((~of_draft).sum())]
        text[:, self.config.mask_token_id] = -np.inf
        self.made = request.get_output_tensor(1).data
        if not drafted:
            return text, text[:0], text[:, :0], text[:0, :0]
        drafts, states, kept = (request.get_output_tensor(n).data for n in (2, 3, 4))
        return text, drafts[: int(of_draft.sum())], states[: len(text)], kept[: len(slots)]

    def _remember(self, feed: Feed, physical_of: Array, made_of: Array | None = None) -> None:
        """Puts the text's new keys and values at their positions; rows stand elsewhere in what was made."""
        row, column = ((feed.anchor == TEXT) & (feed.document != PADDING)).nonzero()
        position = feed.position[row, column]
        last = int(position.max()) + 1 if len(position) else 0
        if last > self.cache.shape[3]:
            self._room(self.cache.shape[1], -(-last // SLOT_STEP) * SLOT_STEP)
        physical, source = physical_of[row], (physical_of if made_of is None else made_of)[row]
        self.cache[:, physical, :, position] = self.made[:, source, :, column]

    def _request(self, graph: str) -> Any:
        if graph not in self.requests:
            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": str(self.where)}
            path = self.where / f"{graph}.xml"
            # by its path: what was compiled once is then read from the folder without reading the graph
            compiled = ov.Core().compile_model(str(path), "CPU", options)
            self.requests[graph] = compiled.create_infer_request()
            if graph == "drafts":
                self.vocabulary = np.load(self.where / "vocabulary.npy", allow_pickle=False)
        return self.requests[graph]


def _write_graphs(loaded: Loaded, where: Path) -> None:
    """Builds and saves the graphs: base.xml, and where there is an adapter drafts.xml, chain.xml and vocabulary.npy."""
    from unmask.backends.openvino.graph import GraphBuilder

    network = loaded.network()
    weights = dict(network.named_parameters())

    def weight(name: str) -> Array:
        return weights[name].detach().float().numpy()

    remove_older(where)
    with replacing(where) as temporary:
        temporary.mkdir()
        vocabulary = None if network.draft_vocabulary is None else network.draft_vocabulary.numpy()
        for slots in (False, True):
            if slots and vocabulary is None:
                continue
            model = GraphBuilder(loaded.config, weight, slots).build(vocabulary)
            name = "drafts.xml" if slots else "base.xml"
            ov.save_model(model, temporary / name, compress_to_fp16=False)
        if vocabulary is not None:
            chain = GraphBuilder(loaded.config, weight, True).build_chain(vocabulary)
            ov.save_model(chain, temporary / "chain.xml", compress_to_fp16=False)
            np.save(temporary / "vocabulary.npy", vocabulary, allow_pickle=False)
