"""The compiled forward (`forward.c`) from Python: which build of it this CPU runs, and its structures."""

from __future__ import annotations

import ctypes
import json
from contextlib import suppress
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from unmask.backends.native.modulation import Modulation
from unmask.backends.native.packing import GATED, NORMS
from unmask.canvas import Array
from unmask.decoding.prefixes import Prefixes
from unmask.errors import UnmaskError
from unmask.files import read_json, write_text
from unmask.models.config import ModelConfig
from unmask.models.rope import frequencies

LINE = 64
SLOTS = 16  # of the cache stand together
PAGE = 4096
MAPPED = 1 << 28  # bytes from which on weights stay where they are mapped: copies have larger pages, some 6% faster
INTERFACE = 9  # of the structures below; a build of another is not used
BUILDS = ("_forward_amx", "_forward_vnni", "_forward_avx2", "_forward_neon", "_forward_plain")
MATRICES = ("qkv", "out", "gate_up", "down", "adapter_down", "adapter_up", "router", "expert_gate_up", "expert_down")
ACTIVATIONS = {"swiglu": 0, "gelu": 1, "gelu_tanh": 2, "geglu_tanh": 2}
ROUTERS = {"softmax": 0, "sigmoid": 1}
Address = ctypes.c_void_p


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Matrix(ctypes.Structure):
    _fields_ = fields(ctypes.c_int32, "rows columns bits by_row") + fields(Address, "blocks bias")


class Norm(ctypes.Structure):
    _fields_ = fields(Address, "scale shift")


class Layer(ctypes.Structure):
    _fields_ = [
        *[(name, Matrix) for name in MATRICES],
        *[(name, Norm) for name in NORMS],
        ("router_bias", Address),
    ]


class Experts(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_int32, "count per_column inner groups groups_kept scores normalised"),
        ("scale", ctypes.c_float),
    ]


class Network(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_int32, "layers hidden heads kv_heads head_dim inner adapter mask_id"),
        *fields(ctypes.c_int32, "rotated centred qk_norm gated activation exact by_row loops cells"),
        *fields(ctypes.c_float, "eps cap"),
        *fields(Matrix, "embedding head draft_head chain_in chain_out"),
        ("experts", Experts),
        ("norm", Norm),
        *fields(Address, "mask_embedding positions cos sin grid"),
        ("layer", ctypes.POINTER(Layer)),
        *fields(Address, "query"),
    ]


class Batch(ctypes.Structure):
    """One forward; see `forward.c`."""

    _fields_ = [
        *fields(ctypes.c_int32, "columns text_rows draft_rows slot_rows places blocks threads"),
        *fields(Address, "id position place seen after until first last drafts told text draft slot"),
        *fields(Address, "keys values text_logits draft_logits text_states slot_states modulation room"),
        ("room_size", ctypes.c_int64),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The build for this CPU, the fastest first; None where the package was installed without a C compiler."""
    for name in BUILDS:
        spec = find_spec(f"unmask.backends.native.{name}")
        try:
            build = None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)
        except OSError:  # a library that it needs is missing
            continue
        if build is not None and hasattr(build, "unmask_interface") and build.unmask_interface() == INTERFACE:
            build.unmask_forward.restype = build.unmask_chain.restype = ctypes.c_int64
            if build.unmask_supported():
                return build
    return None


def needed_library() -> ctypes.CDLL:
    """The build for this CPU; raises UnmaskError without one."""
    build = library()
    if build is None:
        raise UnmaskError("backend 'native' cannot run here; use backend='torch'")
    return build


def rows_pay() -> bool:
    """Whether one scale an output makes passes faster here: by tiles, and on AVX2. VNNI takes groups faster."""
    build = library()
    return build is not None and ("_amx." in build._name or "_avx2." in build._name)


@cache
def cpu() -> str:
    """The CPU's name."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
    return ""


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
    """A network in the forward's own form."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, Array], exact: bool = False, kept: Path | None = None
    ) -> None:
        """weights: what `packing` made, each array from a cache line's start; kept: the file of what passes cost."""
        c = config
        self.kept = kept
        self.prefixes = Prefixes(SLOTS)
        self.costs: dict[str, dict[int, float]] = {}  # seconds by columns, of a CPU and so many threads
        if kept is not None and kept.is_file():
            self.costs = {kind: {int(w): s for w, s in own.items()} for kind, own in read_json(kept).items()}
        self.config = c
        self.exact = exact
        frequency = np.array(frequencies(c.rope_theta, c.rotary_size)) / (c.rope_factors or 1.0)
        angle = np.arange(c.max_length)[:, None] * frequency
        tables = {"cos": np.cos(angle) * c.rope_scale, "sin": np.sin(angle) * c.rope_scale}
        if c.query_beta:
            tables["query"] = 1 + c.query_beta * np.log1p(np.arange(c.max_length) // c.query_length)
        few = sum(array.nbytes for array in weights.values()) < MAPPED
        self.weights = (aligned(weights) if few else weights) | aligned(
            {name: table.astype(np.float32) for name, table in tables.items()}
        )
        self.vocabulary: Array | None = self.weights.get("vocabulary")
        self.modulation = Modulation(self.weights) if c.time_condition_size else None
        self.layers = (Layer * c.num_layers)()
        for i, layer in enumerate(self.layers):
            for name in MATRICES:
                setattr(layer, name, self._matrix(f"layer.{i}.{name}"))
            for name in NORMS:
                setattr(layer, name, self._norm(f"layer.{i}.{name}"))
            layer.router_bias = self._at(f"layer.{i}.router_bias")
        heads = {name: self._matrix(name) for name in ("embedding", "head", "draft_head", "chain_in", "chain_out")}
        if c.tie_embeddings:
            heads["embedding"] = heads["head"]
        self.struct = Network(
            layers=c.num_layers,
            hidden=c.hidden_size,
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            inner=max(layer.down.columns for layer in self.layers),
            adapter=0 if self.vocabulary is None or c.time_condition_size else c.adapter_width,
            mask_id=-1 if c.mask_token_id is None else c.mask_token_id,
            rotated=c.rotary_size,
            centred=c.norm == "layer",
            qk_norm=c.qk_norm,
            gated=c.activation in GATED,
            activation=ACTIVATIONS[c.activation],
            exact=exact,
            by_row=self.layers[0].qkv.by_row,
            loops=c.loops,
            cells=c.grid[0] * c.grid[1] if c.grid else 0,
            eps=c.norm_eps,
            cap=c.logit_softcap,
            experts=self._experts(),
            norm=self._norm("norm"),
            layer=self.layers,
            **heads,
            **{name: self._at(name) for name in ("mask_embedding", "positions", "cos", "sin", "grid", "query")},
        )

    def _experts(self) -> Experts:
        c = self.config
        if not c.num_experts:
            return Experts()
        return Experts(
            count=c.num_experts,
            per_column=c.experts_per_token,
            inner=max(layer.expert_down.columns for layer in self.layers),
            groups=c.expert_groups,
            groups_kept=c.expert_groups_kept,
            scores=ROUTERS[c.router],
            normalised=c.router_normalise,
            scale=c.router_scale,
        )

    def keep_costs(self, kind: str, seconds: dict[int, float]) -> None:
        self.costs[kind] = seconds
        if self.kept is not None:
            with suppress(UnmaskError):  # then they are measured again at the next start
                write_text(self.kept, json.dumps(self.costs))

    def _at(self, name: str) -> int | None:
        array = self.weights.get(name)
        return None if array is None else array.ctypes.data

    def _norm(self, name: str) -> Norm:
        return Norm(self._at(f"{name}.scale"), self._at(f"{name}.shift"))

    def _matrix(self, name: str) -> Matrix:
        if f"{name}.shape" not in self.weights:
            return Matrix()
        return Matrix(*self.weights[f"{name}.shape"].tolist(), self._at(f"{name}.blocks"), self._at(f"{name}.bias"))

    @cached_property
    def text_bytes(self) -> int:
        """Bytes of weights that a forward of one column of text reads."""
        return self.bytes_read(1)

    def bytes_read(self, columns: int) -> int:
        """Bytes of weights that a forward of so many columns of text reads, each asking experts by chance."""
        left_out = ("adapter", "draft", "chain", "embedding")  # of drafts; a few rows
        blocks = {name: a.nbytes for name, a in self.weights.items() if name.endswith(".blocks")}
        asked = self.config.experts_per_token / max(1, self.config.num_experts)
        share = 1 - (1 - asked) ** columns
        return sum(
            int(size * share) if ".expert_" in name else size
            for name, size in blocks.items()
            if not any(part in name for part in left_out)
        )
