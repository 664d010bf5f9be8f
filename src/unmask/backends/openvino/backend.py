"""Forwards of a compiled OpenVINO graph on a CPU; needs no torch once the graph is on disk.

Shapes: B requests, W columns, S cache slots, N scored rows, V vocabulary.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from unmask.backends import Source
from unmask.backends.logits import CompiledBackend, CompiledLogits
from unmask.backends.store import compiled_folder
from unmask.canvas import Array
from unmask.decoding.feed import TEXT, Feed
from unmask.errors import UnmaskError
from unmask.layout import EMPTY, PADDING, Coordinates, Layout
from unmask.models.config import ModelConfig

FORMAT = 2  # of the compiled graphs; a change of the graph makes old ones unread
SLOT_STEP = 128  # slots grow in steps, so that few shapes are ever seen
WIDTHS = (1, 4, 9, 16, 32, 64, 128)  # a change of shape costs more than the columns that fill it up


@cache
def core() -> ov.Core:
    """The one of this process: each gives the thread that compiles a stack for its signals and takes that memory along
    when it goes, so that the next signal would end the process."""
    return ov.Core()


class OpenVINOBackend(CompiledBackend):
    """Runs the base's graph for feeds of text, and the adapted one once a request drafts."""

    def __init__(self, config: ModelConfig, where: Path) -> None:
        self.config = config
        self.where = where
        self.requests: dict[str, Any] = {}  # compiled graphs: base, drafts (the adapted one), draft_head
        self.vocabulary = None
        self.cache: Array = np.zeros((0, 0, 0, 0, 0), np.float32)
        self.active = np.zeros(0, np.int64)

    @classmethod
    def compiled(cls, source: Source) -> OpenVINOBackend:
        """The backend of a model; its graphs are built once and kept in the user's cache."""
        if source.loaded is None:
            raise UnmaskError("backend 'openvino' runs saved models; save this one first, or use backend='torch'")
        version = (FORMAT, ov.__version__)
        return cls(source.config, compiled_folder(source.loaded, "openvino", version, lambda to: _write(source, to)))

    def open(self, layout: Layout, rows: int, slots: int, use_cache: bool) -> None:
        if not use_cache:
            raise UnmaskError("backend 'openvino' always keeps exact keys and values; use backend='torch' without")
        self.active = np.arange(rows)
        self.make_room(rows, SLOT_STEP)

    def make_room(self, places: int, slots: int) -> None:
        c = self.config
        old = self.cache
        self.cache = np.zeros((2 * c.num_layers, places, c.num_kv_heads, slots, c.head_dim), np.float32)
        row = min(places, self.places)
        slot = min(slots, self.slots)
        if old.size:
            self.cache[:, :row, :, :slot] = old[:, :row, :, :slot]
        self.places = places
        self.slots = slots

    def leave_active(self) -> None:
        self.cache = np.ascontiguousarray(self.cache[:, self.active])

    def forward(self, feed: Feed) -> CompiledLogits:
        if (feed.guidance > 0).any():
            raise UnmaskError("backend 'openvino' does not guide; use backend='torch' or guidance=0")
        needed = int(np.where(feed.document == PADDING, 0, feed.position).max()) + 1
        if needed > self.slots:
            self.make_room(self.places, -(-needed // SLOT_STEP) * SLOT_STEP)
        # text alone needs no adapter, but a graph that is at hand beats compiling another
        drafted = bool((feed.anchor != TEXT).any()) or ("base" not in self.requests and "drafts" in self.requests)
        request = self._request("drafts" if drafted else "base")
        width = feed.ids.shape[1]
        wide = next((w for w in WIDTHS if w >= width), -(-width // 64) * 64)
        rows = self.places

        def spread(values: Array, fill: int) -> Array:
            out = np.full((rows, wide), fill, np.int32)
            out[self.active, :width] = values
            return out

        def flat(row: Array, column: Array) -> Array:  # an empty product is refused
            return (self.active[row] * wide + column).astype(np.int32) if len(row) else np.zeros(1, np.int32)

        position = spread(feed.position, 0)
        anchor = spread(feed.anchor, TEXT)
        text = ~feed.of_draft
        inputs = {
            "ids": spread(feed.ids, 0),
            "position": position,
            "mask": self._mask(position, anchor, spread(feed.document, PADDING), feed.cached),
            "cache": self.cache,
            "rows": flat(feed.row[text], feed.column[text]),
        }
        if drafted:
            inputs["gate"] = (anchor != TEXT).astype(np.float32)[..., None]
            inputs["draft_rows"] = flat(feed.row[~text], feed.column[~text])
            inputs["slot_rows"] = flat(feed.slot_row, feed.slot_column)
        made = self._infer(request, inputs)
        scores = made[0][: int(text.sum())]
        scores[:, self.config.mask_token_id] = -np.inf
        row, column = ((feed.anchor == TEXT) & (feed.document != PADDING)).nonzero()
        self.cache[:, self.active[row], :, feed.position[row, column]] = made[1][:, self.active[row], :, column]
        if not drafted:
            return CompiledLogits(self, scores, scores[:0], feed.of_draft, scores[:, :0], scores[:0, :0])
        drafts = made[2][: int((~text).sum())]
        return CompiledLogits(
            self, scores, drafts, feed.of_draft, made[3][: len(scores)], made[4][: len(feed.slot_row)]
        )

    def _mask(self, position: Array, anchor: Array, document: Array, cached: Array) -> Array:
        """What is added to scores of cached slots, then of the columns [B, 1, W, S + W]; of text alone it is causal."""
        filled = np.zeros(self.places, np.int64)
        filled[self.active] = cached
        q = Coordinates.drafts(position, anchor, document)
        place = np.broadcast_to(np.arange(self.slots), (self.places, self.slots))
        earlier = Coordinates.drafts(place, np.full_like(place, TEXT), np.where(place < filled[:, None], 0, EMPTY))
        k = Coordinates(*(np.concatenate([a, b], 1) for a, b in zip(earlier, q, strict=True)))
        return np.where(Layout("drafts").dense(q, k), np.float32(0), np.float32(-1e9))

    def draft_head(self, state: Array, before: Array, token: Array) -> tuple[Array, Array]:
        """See `CompiledBackend`."""
        inputs = {"state": state, "before": before, "token": token.astype(np.int32)}
        states, logits = self._infer(self._request("draft_head"), inputs)
        return states.copy(), logits.copy()

    @staticmethod
    def _infer(request: Any, inputs: dict[str, Array]) -> list[Array]:
        arrays = {name: np.ascontiguousarray(values) for name, values in inputs.items()}
        for name, values in arrays.items():  # a tensor that shares an array's memory does not keep the array alive
            request.set_tensor(name, ov.Tensor(values, shared_memory=True))
        request.infer()
        return [tensor.data for tensor in request.output_tensors]

    def _request(self, graph: str) -> Any:
        if graph not in self.requests:
            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": str(self.where)}
            # by its path: what was compiled once is then read from the folder without reading the graph
            compiled = core().compile_model(str(self.where / f"{graph}.xml"), "CPU", options)
            self.requests[graph] = compiled.create_infer_request()
            if graph == "drafts":
                self.vocabulary = np.load(self.where / "vocabulary.npy", allow_pickle=False)
        return self.requests[graph]


def _write(source: Source, folder: Path) -> None:
    """Saves the graphs: base.xml, and where there is an adapter drafts.xml, draft_head.xml and vocabulary.npy."""
    from unmask.backends.openvino.graph import GraphBuilder

    network = source.network()
    weights = dict(network.named_parameters())

    def weight(name: str) -> Array:
        return weights[name].detach().float().numpy()

    graphs = {"base": GraphBuilder(source.config, weight, slots=False).build(None)}
    if network.draft_vocabulary is not None:
        vocabulary = network.draft_vocabulary.numpy()
        graphs["drafts"] = GraphBuilder(source.config, weight, slots=True).build(vocabulary)
        graphs["draft_head"] = GraphBuilder(source.config, weight, slots=True).build_draft_head(vocabulary)
        np.save(folder / "vocabulary.npy", vocabulary, allow_pickle=False)
    for name, graph in graphs.items():
        ov.save_model(graph, folder / f"{name}.xml", compress_to_fp16=False)
