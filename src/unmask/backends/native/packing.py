"""Weights as `forward.c` reads them: groups of 32 along the input with a scale each, 16 outputs interleaved.

Values that stand on a grid of 16 steps in every group, as Q4_1 stores them, take 4 bits and lose nothing; all others
take 8 as in Q8_0. An exact network keeps float32. Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from unmask.canvas import Array
from unmask.models.config import ModelConfig

LANES = 16
GROUP = 32
GATED = ("swiglu", "geglu_tanh")
NORMS = {"norm1": "norm1", "norm2": "norm2", "q_norm": "mixer.q_norm", "k_norm": "mixer.k_norm"}


@dataclass(frozen=True)
class Packed:
    """blocks uint8 [tiles of 32 outputs, groups, bytes]: codes of 16 outputs, of the 16 after them, then float16
    scales of both; of 4 bits the minima stand after the scales of each 16. Of 32 bits float32 [tiles, K, 32]."""

    rows: int
    columns: int
    bits: int
    blocks: Array


def _groups(weight_NK: Array) -> Array:
    rows, columns = weight_NK.shape
    if columns % GROUP:
        raise ValueError(f"{columns} inputs are not a multiple of {GROUP}")
    return weight_NK.astype(np.float32).reshape(rows, columns // GROUP, GROUP)


def four_bit(weight_NK: Array, rough: bool = False) -> tuple[Array, Array, Array] | None:
    """Codes [N, K] of 0..15, scales and minima float16 [N, K / 32] that give the weights back to the bit (up to the
    float32 rounding of scale * code + minimum); None where there are none, unless the nearest will do."""
    w = _groups(weight_NK)
    least = w.min(-1)
    scale = ((w.max(-1) - least) / 15).astype(np.float16)
    minimum = least.astype(np.float16)
    step = np.where(scale > 0, scale, 1).astype(np.float32)[..., None]
    codes = np.clip(np.rint((w - minimum.astype(np.float32)[..., None]) / step), 0, 15)
    back = codes * scale.astype(np.float32)[..., None] + minimum.astype(np.float32)[..., None]
    if not rough and (np.abs(back - w) > 1e-6 * np.abs(w).max(initial=0)).any():
        return None
    return codes.astype(np.uint8).reshape(weight_NK.shape), scale, minimum


def eight_bit(weight_NK: Array) -> tuple[Array, Array]:
    """Codes [N, K] of 1..255, 128 standing for 0, and scales float16 [N, K / 32]; half a step off at most."""
    w = _groups(weight_NK)
    most = np.abs(w).max(-1)
    scale = (most / 127).astype(np.float16)
    scale = np.where(scale.astype(np.float32) * 127.4 < most, np.nextafter(scale, np.float16(np.inf)), scale)
    step = np.where(scale > 0, scale, 1).astype(np.float32)[..., None]
    codes = np.clip(np.rint(w / step), -127, 127) + 128
    return codes.astype(np.uint8).reshape(weight_NK.shape), scale


def _padded(values: Array, fill: int = 0) -> Array:
    """Rows up to a whole number of tiles."""
    more = -len(values) % GROUP
    return np.pad(values, ((0, more), *[(0, 0)] * (values.ndim - 1)), constant_values=fill)


def pack(weight_NK: Array, rough: bool = False, exact: bool = False) -> Packed:
    """Weights of one product, in 4 bits where that loses nothing or a rough copy will do; exact: in float32.
    Values must be finite and below 6e4."""
    rows, columns = weight_NK.shape
    if exact:
        tiles = _padded(weight_NK.astype(np.float32)).reshape(-1, GROUP, columns)
        return Packed(rows, columns, 32, np.ascontiguousarray(tiles.transpose(0, 2, 1)))
    small = four_bit(weight_NK, rough)
    bits = 8 if small is None else 4
    codes, *scales = eight_bit(weight_NK) if small is None else small
    codes = _padded(codes, 128 if bits == 8 else 0)
    shape = (len(codes) // GROUP, 2, LANES, columns // GROUP)
    # [tiles, groups, halves of the tile, fours of inputs, outputs, 4]
    fours = codes.reshape(*shape, 8, 4).transpose(0, 3, 1, 4, 2, 5)
    if bits == 4:
        fours = fours[:, :, :, :4] | (fours[:, :, :, 4:] << 4)
    laid = [_padded(s).reshape(shape).transpose(0, 3, 1, 2) for s in scales]
    ends = np.ascontiguousarray(np.concatenate(laid, -1)).view(np.uint8)
    blocks = np.concatenate([part.reshape(shape[0], shape[3], -1) for part in (fours, ends)], -1)
    return Packed(rows, columns, bits, blocks)


def paired(gate_NK: Array, up_NK: Array) -> Array:
    """Rows of two projections whose outputs are multiplied, 32 of one and 32 of the other in turn."""
    both = np.stack([x.reshape(-1, GROUP, *x.shape[1:]) for x in (gate_NK, up_NK)], 1)
    return both.reshape(-1, *gate_NK.shape[1:])


def _inner(parts: list[Array]) -> Array:
    """An MLP's rows, as many as make whole groups: those added are 0 and stay 0."""
    return _padded(parts[0]) if len(parts) == 1 else paired(*map(_padded, parts))


def packed_weights(
    config: ModelConfig,
    weights: Mapping[str, Callable[[], Array]],
    vocabulary: Array | None,
    exact: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Array]:
    """Everything that the forward reads of a network, by name, as it is kept on disk.

    weights: what gives a parameter as float32, by its name in the torch network. vocabulary: the tokens that drafts may
    be. exact: in float32; else what only drafts pass through is rounded to 4 bits: no fewer of them hold, and a pass
    reads 10 MB less. progress: called with the number of weights that were packed.
    """
    out: dict[str, Array] = {}

    def given(name: str) -> Array | None:
        return weights[name]() if name in weights else None

    def put(name: str, matrix: Array, bias: Array | None = None, rough: bool = False) -> None:
        packed = pack(matrix, rough, exact)
        out[f"{name}.blocks"] = packed.blocks
        out[f"{name}.shape"] = np.array([packed.rows, packed.columns, packed.bits], np.int32)
        if bias is not None:
            out[f"{name}.bias"] = _padded(bias.astype(np.float32))
        progress(matrix.size)

    def put_norm(name: str, source: str) -> None:
        for part, field in (("scale", "weight"), ("shift", "bias")):
            if (values := given(f"{source}.{field}")) is not None:
                out[f"{name}.{part}"] = values.astype(np.float32)

    def joined(names: list[str], join: Callable[[list[Array]], Array]) -> tuple[Array, Array | None]:
        """Weights and biases of projections that read the same input."""
        biases = [b for name in names if (b := given(f"{name}.bias")) is not None]
        return join([weights[f"{name}.weight"]() for name in names]), join(biases) if biases else None

    up = ["gate_proj", "up_proj"] if config.activation in GATED else ["up_proj"]
    for i in range(config.num_layers):
        block = f"blocks.{i}."
        own = f"layer.{i}."
        put(own + "qkv", *joined([f"{block}mixer.{part}_proj" for part in "qkv"], np.concatenate))
        put(own + "out", weights[block + "mixer.o_proj.weight"](), given(block + "mixer.o_proj.bias"))
        put(own + "gate_up", *joined([f"{block}mlp.{part}" for part in up], _inner))
        put(own + "down", _padded(weights[block + "mlp.down_proj.weight"]().T).T, given(block + "mlp.down_proj.bias"))
        for half in ("down", "up") if config.adapter_width and vocabulary is not None else ():
            put(f"{own}adapter_{half}", weights[f"{block}adapter.{half}"](), rough=True)
        for norm, source in NORMS.items():
            put_norm(own + norm, block + source)
    head = weights["embedding.weight" if config.tie_embeddings else "head.weight"]()
    put("head", head, given("head.bias"))
    if not config.tie_embeddings:
        put("embedding", weights["embedding.weight"]())
    put_norm("norm", "norm")
    if config.learned_positions:
        out["positions"] = weights["position_embedding.weight"]().astype(np.float32)
    if vocabulary is not None:
        put("draft_head", head[vocabulary], rough=True)
        out["mask_embedding"] = weights["mask_embedding"]().astype(np.float32)
        out["vocabulary"] = vocabulary.astype(np.int64)
    if vocabulary is not None and config.chain_width:
        put("chain_in", paired(weights["chain.gate"](), weights["chain.inner"]()), rough=True)
        put("chain_out", weights["chain.out"](), rough=True)
    return out
