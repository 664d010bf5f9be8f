"""The compiled forward (`forward.c`) from Python: which build of it this CPU runs, and its structures.

Shapes: T columns, L layers, D hidden size, K head width, G key/value heads, V vocabulary.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import numpy as np

from unmask.backends.native.packing import pack, paired
from unmask.canvas import Array
from unmask.models.config import ModelConfig

LINE, PAGE = 64, 4096
BUILDS = ("_forward_vnni", "_forward_avx2")
PARTS = ("qkv", "out", "gate_up", "down", "adapter_down", "adapter_up")
DTYPES = {"i": np.int32, "f": np.float32}


@cache
def library() -> ctypes.CDLL | None:
    """The build for this CPU, the fastest first; None where the package was installed without a C compiler."""
    for name in BUILDS:
        spec = find_spec(f"unmask.backends.native.{name}")
        try:
            build = None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)
        except OSError:  # a library that it needs is missing
            continue
        if build is not None and build.unmask_supported():
            return build
    return None


def threads() -> int:
    """Cores that this process may use, or what OMP_NUM_THREADS says."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(asked) if asked.isdecimal() and int(asked) > 0 else have


class Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "columns", "bits", "unused")),
        ("blocks", ctypes.c_void_p),
    ]


class Layer(ctypes.Structure):
    _fields_ = [*((part, Matrix) for part in PARTS), ("norm1", ctypes.c_void_p), ("norm2", ctypes.c_void_p)]


class Network(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "inner", "adapter", "mask_id")
        ),
        *((name, ctypes.c_float) for name in ("eps", "unused")),
        ("head", Matrix),
        *((part, Matrix) for part in ("draft_head", "chain_in", "chain_out")),
        *((name, ctypes.c_void_p) for name in ("norm", "mask_embedding", "cos", "sin")),
        ("layer", ctypes.POINTER(Layer)),
    ]


COUNTS = ("columns", "text_rows", "draft_rows", "slot_rows", "places", "blocks", "threads")
ARRAYS = ("id", "position", "place", "seen", "first", "last", "drafts", "text", "draft", "slot")
BUFFERS = ("keys", "values", "text_logits", "draft_logits", "text_states", "slot_states")


class Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in (*ARRAYS, *BUFFERS)),
    ]


def packed_weights(
    config: ModelConfig, weight: Callable[[str], Array], draft_vocabulary: Array | None
) -> dict[str, Array]:
    """Everything that the forward reads of a network, by name, as it is kept on disk; `weight` gives a parameter.
    What only drafts pass through is rounded to 4 bits: no fewer of them hold, and a pass reads 10 MB less."""
    out: dict[str, Array] = {}

    def put(name: str, matrix: Array, rough: bool = False) -> None:
        packed = pack(matrix, rough)
        out[f"{name}.blocks"] = packed.blocks
        out[f"{name}.shape"] = np.array([packed.rows, packed.columns, packed.bits], np.int32)

    for i in range(config.num_layers):
        block, own = f"blocks.{i}.", f"layer.{i}."
        put(own + "qkv", np.concatenate([weight(f"{block}mixer.{p}_proj.weight") for p in "qkv"]))
        put(own + "out", weight(block + "mixer.o_proj.weight"))
        put(own + "gate_up", paired(weight(block + "mlp.gate_proj.weight"), weight(block + "mlp.up_proj.weight")))
        put(own + "down", weight(block + "mlp.down_proj.weight"))
        if config.adapter_width:
            put(own + "adapter_down", weight(block + "adapter.down"), rough=True)
            put(own + "adapter_up", weight(block + "adapter.up"), rough=True)
        for norm in ("norm1", "norm2"):
            out[own + norm] = weight(f"{block}{norm}.weight").astype(np.float32)
    head = weight("embedding.weight")
    put("head", head)
    out["norm"] = weight("norm.weight").astype(np.float32)
    if draft_vocabulary is not None:
        put("draft_head", head[draft_vocabulary], rough=True)
        out["mask_embedding"] = weight("mask_embedding").astype(np.float32)
        out["vocabulary"] = draft_vocabulary.astype(np.int64)
    if config.chain_width:
        put("chain_in", paired(weight("chain.gate"), weight("chain.inner")), rough=True)
        put("chain_out", weight("chain.out"), rough=True)
    return out


def aligned(arrays: dict[str, Array]) -> dict[str, Array]:
    """Copies in one piece of memory, each from a cache line's start."""
    sizes = [-(-a.nbytes // LINE) * LINE for a in arrays.values()]
    room = np.empty(sum(sizes) + 2 * PAGE, np.uint8)
    at = -room.ctypes.data % PAGE
    out = {}
    for (name, array), size in zip(arrays.items(), sizes, strict=True):
        out[name] = room[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        out[name][...] = array
        at += size
    return out


class CompiledNetwork:
    """A network in the forward's own form, and its two functions."""

    def __init__(self, config: ModelConfig, weights: dict[str, Array]) -> None:
        lib = library()
        assert lib is not None
        self.lib, self.config, self.weights, self.threads = lib, config, aligned(weights), threads()
        weights = self.weights
        self.vocabulary: Array | None = weights.get("vocabulary")
        c = config
        frequency = c.rope_theta ** (-np.arange(0, c.head_dim, 2, dtype=np.float64) / c.head_dim)
        angle = np.arange(c.max_length)[:, None] * frequency
        weights["cos"], weights["sin"] = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        self.layers = (Layer * c.num_layers)()
        for i, layer in enumerate(self.layers):
            for part in PARTS:
                setattr(layer, part, self._matrix(f"layer.{i}.{part}"))
            layer.norm1, layer.norm2 = (self._at(f"layer.{i}.{norm}") for norm in ("norm1", "norm2"))
        mask = -1 if c.mask_token_id is None else c.mask_token_id
        adapter = c.adapter_width if self.vocabulary is not None else 0
        sizes = (c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.intermediate_size, adapter)
        heads = [self._matrix(name) for name in ("head", "draft_head", "chain_in", "chain_out")]
        tables = [self._at(name) for name in ("norm", "mask_embedding", "cos", "sin")]
        self.network = Network(*sizes, mask, c.norm_eps, 0.0, *heads, *tables, self.layers)

    def _at(self, name: str) -> int | None:
        array = self.weights.get(name)
        return None if array is None else array.ctypes.data

    def _matrix(self, name: str) -> Matrix:
        if f"{name}.shape" not in self.weights:
            return Matrix()
        rows, columns, bits = self.weights[f"{name}.shape"].tolist()
        return Matrix(rows, columns, bits, 0, self._at(f"{name}.blocks"))

    @property
    def text_bytes(self) -> int:
        """Bytes of weights that a forward of text reads."""
        own = (a.nbytes for name, a in self.weights.items() if name.endswith(".blocks"))
        of_drafts = ("adapter", "draft", "chain")
        drafts = (
            a.nbytes for n, a in self.weights.items() if n.endswith(".blocks") and any(part in n for part in of_drafts)
        )
        return sum(own) - sum(drafts)

    @property
    def proposed(self) -> int:
        """How many tokens drafts may be."""
        return 0 if self.vocabulary is None else len(self.vocabulary)

    def forward(
        self, columns: dict[str, Array], keys: Array, values: Array, room: Array | None = None
    ) -> tuple[Array, ...]:
        """Logits float32 of the columns `text` [n, V] and `draft` [m, V'], final states of `text` [n, D] and of `slot`;
        writes text's keys and values, float16, into `keys` [L, places, G, blocks, K, 16] and `values` [L, places, G,
        16 * blocks, K]. The rest of `columns` are int32 [T]: see Batch in forward.c. The logits of text are put into
        `room` [n or more, V] where it is given."""
        arrays = {name: np.ascontiguousarray(columns[name], np.int32) for name in ARRAYS}
        rows = [len(arrays[name]) for name in ("text", "draft", "slot")]
        widths = ((rows[0], self.config.vocab_size), (rows[1], self.proposed))
        out = [np.empty(shape, np.float32) for shape in (widths if room is None else widths[1:])]
        out = out if room is None else [room[: rows[0]], *out]
        out += [np.empty((count, self.config.hidden_size), np.float32) for count in (rows[0], rows[2])]
        counts = (len(arrays["id"]), *rows, keys.shape[1], keys.shape[3], self.threads)
        pointers = [arrays[name].ctypes.data for name in ARRAYS]
        batch = Batch(*counts, *pointers, *(a.ctypes.data for a in (keys, values, *out)))
        if self.lib.unmask_forward(ctypes.byref(self.network), ctypes.byref(batch)):
            raise MemoryError(f"no memory for a forward of {counts[0]} columns")
        return tuple(out)

    def draft_head(self, state: Array, before: Array, token: Array, room: Array | None = None) -> tuple[Array, Array]:
        """States [n, D] and logits float32 [n, V'] of slots whose own are `state` [n, D], told `token` [n] and the
        states `before` [n, D] that it was chosen by; the logits are put into `room` where it has that many rows."""
        state, before = (np.ascontiguousarray(a, np.float32) for a in (state, before))
        token = np.ascontiguousarray(token, np.int32)
        told, fits = np.empty_like(state), room is not None and len(state) <= len(room)
        logits = room[: len(state)] if room is not None and fits else np.empty((len(state), self.proposed), np.float32)
        at = [ctypes.c_void_p(a.ctypes.data) for a in (state, before, token, told, logits)]
        if self.lib.unmask_chain(ctypes.byref(self.network), len(state), self.threads, *at):
            raise MemoryError(f"no memory for {len(state)} drafts")
        return told, logits

    def summarise(self, logits_NV: Array) -> tuple[Array, ...]:
        """Of each row: the best token, its probability, the entropy in nats, and how far the second best token's
        probability is below, [N] each."""
        rows, size = logits_NV.shape
        token, values = np.empty(rows, np.int64), np.empty((3, rows))
        at = [ctypes.c_void_p(a.ctypes.data) for a in (token, *values)]
        self.lib.unmask_summarise(ctypes.c_void_p(logits_NV.ctypes.data), rows, size, self.threads, *at)
        return (token, *values)
