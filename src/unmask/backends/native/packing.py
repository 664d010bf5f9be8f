"""Weights as `forward.c` reads them: groups of 32 along the input with a scale each, 16 outputs interleaved.

Values that stand on a grid of 16 steps in every group, as Q4_1 stores them, take 4 bits and lose nothing; all others
take 8 as in Q8_0, or 4 where that is asked for. Blocks of a GGUF file that are such groups stay what they are. Small
networks of floats take 8 with one scale for each output (`by_row`). An exact network keeps float32.
Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from unmask.backends import Progress
from unmask.backends.native import modulation
from unmask.backends.native.packed_file import PackedFile
from unmask.canvas import Array
from unmask.checkpoints.rows import GROUP, NATIVE_BITS, Groups, Held, Matrix
from unmask.models.config import ModelConfig

LANES = 16
CHUNK = 2**18  # values that are read and rounded at once: they stay in a core's cache, and little memory is enough
STEP = 64  # inputs that a tile of AMX takes
BY_ROW = 50_000_000  # weights up to which a network of floats has a scale for each output
WIDEST = 8192  # inputs whose sums of codes times codes fit 32 bits
FLOATS = ("F32", "F16", "BF16")
GATED = ("swiglu", "geglu_tanh")
T = TypeVar("T")
NORMS = {"norm1": "norm1", "norm2": "norm2", "q_norm": "mixer.q_norm", "k_norm": "mixer.k_norm"}


def _groups(weight_NK: Array) -> Array:
    rows, columns = weight_NK.shape
    if columns % GROUP:
        raise ValueError(f"{columns} inputs are not a multiple of {GROUP}")
    return weight_NK.astype(np.float32).reshape(rows, columns // GROUP, GROUP)


def four_bit(weight_NK: Array, rough: bool = False) -> Groups | None:
    """Groups of codes 0..15 that give the weights back to the bit (up to the float32 rounding of
    scale * code + minimum); None where there are none, unless the nearest will do."""
    w = _groups(weight_NK)
    least = w.min(-1)
    scale = ((w.max(-1) - least) / 15).astype(np.float16)
    minimum = least.astype(np.float16)
    step = np.where(scale > 0, scale, 1).astype(np.float32)[..., None]
    codes = np.clip(np.rint((w - minimum.astype(np.float32)[..., None]) / step), 0, 15)
    if not rough:
        back = codes * scale.astype(np.float32)[..., None] + minimum.astype(np.float32)[..., None]
        if (np.abs(back - w) > 1e-6 * np.abs(w).max(initial=0)).any():
            return None
    return Groups(codes.astype(np.uint8).reshape(weight_NK.shape), scale, minimum)


def eight_bit(weight_NK: Array) -> Groups:
    """Groups of codes 1..255; half a step off at most."""
    w = _groups(weight_NK)
    most = np.abs(w).max(-1)
    scale = (most / 127).astype(np.float16)
    scale = np.where(scale.astype(np.float32) * 127.4 < most, np.nextafter(scale, np.float16(np.inf)), scale)
    step = np.where(scale > 0, scale, 1).astype(np.float32)[..., None]
    codes = np.clip(np.rint(w / step), -127, 127) + 128
    return Groups(codes.astype(np.uint8).reshape(weight_NK.shape), scale)


def row_codes(weight_NK: Array) -> tuple[Array, Array]:
    """Signed codes -127..127 [N, K] and a float32 scale for each output [N]; half a step off at most."""
    w = weight_NK.astype(np.float32)
    scale = np.abs(w).max(-1) / np.float32(127)
    step = np.where(scale > 0, scale, 1)[:, None]
    return np.clip(np.rint(w / step), -127, 127).astype(np.int8), scale


def row_blocks(weight_NK: Array) -> Array:
    """uint8 [tiles of 32 outputs, bytes]: codes [K / 64, halves of the tile, fours of inputs, 16 outputs, 4], K padded
    with 0; then float32 scales and the sums of the codes, int32, of the 32 outputs."""
    codes, scale = row_codes(_padded(weight_NK))
    tiles = len(codes) // GROUP
    sums = codes.sum(-1, dtype=np.int32)
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % STEP)))
    fours = codes.reshape(tiles, 2, LANES, -1, STEP // 4, 4).transpose(0, 3, 1, 4, 2, 5)
    parts = (np.ascontiguousarray(fours), scale, sums)
    return np.concatenate([part.reshape(tiles, -1).view(np.uint8) for part in parts], -1)


def _padded(values: Array) -> Array:
    """Rows up to a whole number of tiles."""
    return np.pad(values, ((0, -len(values) % GROUP), *[(0, 0)] * (values.ndim - 1)))


def blocks(groups: Groups) -> Array:
    """uint8 [tiles of 32 outputs, K / 32, bytes]: codes of 16 outputs, of the 16 after them, then float16 scales of
    both; of 4 bits the minima stand after the scales of each 16. Rows that are added are 0."""
    codes = _padded(groups.codes)
    shape = (len(codes) // GROUP, 2, LANES, codes.shape[1] // GROUP)
    # [tiles, groups, halves of the tile, fours of inputs, outputs, 4]
    fours = codes.reshape(*shape, 8, 4).transpose(0, 3, 1, 4, 2, 5)
    scales = [groups.scale]
    if groups.minimum is not None:
        fours = fours[:, :, :, :4] | (fours[:, :, :, 4:] << 4)
        scales.append(groups.minimum)
    laid = [_padded(s).reshape(shape).transpose(0, 3, 1, 2) for s in scales]
    ends = np.ascontiguousarray(np.concatenate(laid, -1)).view(np.uint8)
    return np.concatenate([part.reshape(shape[0], shape[3], -1) for part in (fours, ends)], -1)


def exact_blocks(weight_NK: Array) -> Array:
    """float32 [tiles of 32 outputs, K, 32]."""
    return _padded(weight_NK.astype(np.float32)).reshape(-1, GROUP, weight_NK.shape[1]).transpose(0, 2, 1)


def interleaved(parts: list[Array]) -> Array:
    """Rows of one or two projections whose outputs are multiplied, 32 of one and 32 of the other in turn; each is
    padded to whole groups: what is added is 0 and stays 0."""
    both = np.stack([_padded(x).reshape(-1, GROUP, *x.shape[1:]) for x in parts], 1)
    return both.reshape(-1, *both.shape[3:])


@dataclass(frozen=True)
class Widened:
    """A matrix whose rows are padded with zeros to whole groups of inputs."""

    part: Matrix
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.part.shape
        return rows, -(-columns // GROUP) * GROUP

    def values(self, first: int = 0, last: int | None = None) -> Array:
        return np.ascontiguousarray(_padded(self.part.values(first, last).T).T)

    def groups(self, first: int, last: int) -> Groups:
        raise ValueError("padded values have no codes")


@dataclass(frozen=True)
class Product:
    """The weights of one product, values finite and below 6e4: parameters joined by rows, or interleaved; or those of
    several products, as many parts each, that follow each other: a layer's experts."""

    name: str
    parts: list[Matrix]
    bits: int  # 4, 8, or 32 for float32; of all parts
    biases: list[Array]
    interleaved: bool = False
    by_row: bool = False
    experts: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Of the first expert's, like that of the others."""
        rows = [part.shape[0] for part in self._of_experts(self.parts)[0]]
        return sum(-(-n // GROUP) * GROUP for n in rows) if self.interleaved else sum(rows), self.parts[0].shape[1]

    @property
    def size(self) -> int:
        """Bytes of its blocks."""
        rows, columns = self.shape
        tiles = -(-rows // GROUP) * self.experts
        if self.by_row:
            return tiles * (-(-columns // STEP) * STEP * GROUP + 8 * GROUP)
        return tiles * columns * {4: 20, 8: 34, 32: 128}[self.bits]

    @property
    def bias(self) -> Array:
        return np.concatenate([_padded(self._join(own)) for own in self._of_experts(self.biases)]).astype(np.float32)

    def packed(self) -> Iterator[Array]:
        """Its blocks from the first tile on; a matrix by itself is read piece by piece."""
        for parts in self._of_experts(self.parts):
            pieces = _pieces(parts[0]) if len(parts) == 1 else [(0, None)]
            for first, last in pieces:
                yield self._blocks(parts, first, last)

    def _of_experts(self, parts: list[T]) -> list[list[T]]:
        count = len(parts) // self.experts
        return [parts[first : first + count] for first in range(0, len(parts), count)]

    def _join(self, parts: list[Array]) -> Array:
        return interleaved(parts) if self.interleaved else np.concatenate(parts)

    def _blocks(self, parts: list[Matrix], first: int, last: int | None) -> Array:
        if self.bits == 32 or self.by_row:
            values = self._join([part.values(first, last) for part in parts])
            return row_blocks(values) if self.by_row else exact_blocks(values)
        return blocks(_by_field([_quantised(part, first, last, self.bits) for part in parts], self._join))


def _pieces(part: Matrix, first: int = 0, last: int | None = None) -> list[tuple[int, int]]:
    """Ranges of rows that are read at once."""
    last = part.shape[0] if last is None else last
    step = max(1, CHUNK // part.shape[1] // GROUP) * GROUP
    return [(low, min(low + step, last)) for low in range(first, last, step)]


def _quantised(part: Matrix, first: int, last: int | None, bits: int) -> Groups:
    made: list[Groups] = []
    for low, high in _pieces(part, first, last):
        if NATIVE_BITS.get(part.kind) == bits:
            made.append(part.groups(low, high))
        else:
            values = part.values(low, high)
            made.append(eight_bit(values) if bits == 8 else cast(Groups, four_bit(values, rough=True)))
    return _by_field(made, np.concatenate)


def _by_field(groups: Sequence[Groups], join: Callable[[list[Array]], Array]) -> Groups:
    minima = [group.minimum for group in groups if group.minimum is not None]
    codes = join([group.codes for group in groups])
    return Groups(codes, join([group.scale for group in groups]), join(minima) if minima else None)


def stored_bits(part: Matrix) -> int:
    """4 or 8, whichever the values are in already, to the bit or nearly so."""
    if part.kind not in FLOATS:
        return NATIVE_BITS.get(part.kind, 8)
    pieces = (part.values(*piece) for piece in _pieces(part))
    return 4 if all(four_bit(piece[:GROUP]) and four_bit(piece) for piece in pieces) else 8


def by_row(weights: Mapping[str, Matrix]) -> bool:
    """Whether a network's weights take one scale for each output: those of a small one, all of them floats, no matrix
    of which stands on 16 steps. What only drafts pass through does not count."""
    matrices = [
        part
        for name, part in weights.items()
        if len(part.shape) == 2 and ".adapter." not in name and not name.startswith("chain.")
    ]
    return (
        sum(part.shape[0] * part.shape[1] for part in matrices) <= BY_ROW
        and all(part.kind in FLOATS and part.shape[1] <= WIDEST for part in matrices)
        and all(part.shape[1] % GROUP or stored_bits(part) == 8 for part in matrices)
    )


class Plan:
    """What the forward reads of a network: `products`, and `small` arrays that are kept as they are.

    weights: parameters by their name in the torch network. vocabulary: the tokens that drafts may be. bits: 32 for
    float32; 8, but 4 where that loses nothing; 4, but 8 for the head. rows_pay: whether a small network may have
    `by_row`, 8 with a scale for each output. What only drafts pass through is rounded to 4: no fewer of them hold, and
    a pass reads 10 MB less.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Matrix],
        vocabulary: Array | None,
        bits: int,
        rows_pay: bool = True,
    ) -> None:
        self.weights = weights
        self.bits = bits
        self.by_row = rows_pay and bits == 8 and by_row(weights)
        self.products: list[Product] = []
        self.small: dict[str, Array] = {}
        adapted = config.adapter_width and vocabulary is not None
        for i in range(config.num_layers):
            block = f"blocks.{i}."
            own = f"layer.{i}."
            self._put(own + "qkv", [f"{block}mixer.{part}_proj" for part in "qkv"])
            self._put(own + "out", [block + "mixer.o_proj"])
            if config.num_experts and i >= config.first_dense_layers:
                self._experts(own, f"{block}mlp.", config)
            else:
                self._mlp(own, f"{block}mlp.", config)
            for half in ("down", "up") if adapted else ():
                self._add(f"{own}adapter_{half}", [weights[f"{block}adapter.{half}"]], rough=True)
            for norm, source in NORMS.items():
                self._norm(own + norm, block + source)
        head = "embedding" if config.tie_embeddings else "head"
        bias = [weights["head.bias"].values()] if "head.bias" in weights else []
        self._add("head", [weights[f"{head}.weight"]], bias, bits=max(bits, 8))
        if not config.tie_embeddings:
            self._put("embedding", ["embedding"])
        self._norm("norm", "norm")
        if config.time_condition_size:
            self.small |= modulation.stored(weights, config.num_layers)
        if config.learned_positions:
            self._keep("positions", "position_embedding.weight")
        if config.grid:
            from unmask.models.grid import relations

            found_RLL = relations(*config.grid).numpy().astype(np.float32)
            self.small["grid"] = np.einsum("hr,rij->hij", weights["grid_bias.weight"].values(), found_RLL)
        if vocabulary is not None:
            self._add("draft_head", [Held(weights[f"{head}.weight"].values()[vocabulary])], rough=True)
            self._keep("mask_embedding", "mask_embedding")
            self.small["vocabulary"] = vocabulary.astype(np.int64)
        if vocabulary is not None and config.chain_width:
            self._add("chain_in", [weights["chain.gate"], weights["chain.inner"]], rough=True, joined=True)
            self._add("chain_out", [weights["chain.out"]], rough=True)

    def write(self, file: PackedFile, progress: Progress = lambda done, total: None) -> None:
        """Writes all, a matrix or a piece of one at a time; progress: called with the bytes written, and in all."""
        total = sum(product.size for product in self.products)
        done = 0

        def counted(parts: Iterator[Array]) -> Iterator[Array]:
            nonlocal done
            for part in parts:
                yield part
                done += part.nbytes
                progress(done, total)

        for product in self.products:
            file.add(f"{product.name}.blocks", counted(product.packed()))
            self.small[f"{product.name}.shape"] = np.array([*product.shape, product.bits, product.by_row], np.int32)
            if product.biases:
                self.small[f"{product.name}.bias"] = product.bias
        for name, values in self.small.items():
            file.add(name, [values])

    def _mlp(self, own: str, block: str, config: ModelConfig, experts: int = 0) -> None:
        """An MLP whose parameters' names begin with `block`, or those of experts, by number."""
        blocks = [block.format(number) for number in range(experts)] or [block]
        up = ["gate_proj", "up_proj"] if config.activation in GATED else ["up_proj"]
        self._put(
            own + "gate_up", [before + part for before in blocks for part in up], joined=True, experts=len(blocks)
        )
        self._put(own + "down", [before + "down_proj" for before in blocks], experts=len(blocks))

    def _experts(self, own: str, block: str, config: ModelConfig) -> None:
        """A router, whose choice is not to be moved by rounding, its experts, and the one that all columns pass."""
        self.products.append(Product(own + "router", [self.weights[f"{block}router.weight"]], 32, []))
        self._keep(own + "router_bias", f"{block}router.bias")
        self._mlp(f"{own}expert_", f"{block}experts.{{}}.", config, config.num_experts)
        if config.shared_expert_size:
            self._mlp(own, f"{block}shared.", config)

    def _put(self, name: str, sources: list[str], joined: bool = False, experts: int = 1) -> None:
        """Weights and biases of projections that read the same input, of each expert where there are several."""
        parts = [self.weights[f"{source}.weight"] for source in sources]
        if parts[0].shape[1] % GROUP and name.endswith("down"):  # of the rows that an MLP's rows were padded by
            parts = [Widened(part) for part in parts]
        biases = [self.weights[f"{s}.bias"].values() for s in sources if f"{s}.bias" in self.weights]
        self._add(name, parts, biases, joined=joined, experts=experts)

    def _add(
        self,
        name: str,
        parts: list[Matrix],
        biases: Sequence[Array] = (),
        rough: bool = False,
        joined: bool = False,
        bits: int | None = None,
        experts: int = 1,
    ) -> None:
        bits = self.bits if bits is None else bits
        if bits < 32 and rough:
            bits = 4
        elif bits == 8 and not self.by_row:
            bits = 8 if any(stored_bits(part) == 8 for part in parts) else 4
        of_rows = self.by_row and not rough
        self.products.append(Product(name, parts, bits, list(biases), joined, of_rows, experts))

    def _keep(self, name: str, source: str) -> None:
        if source in self.weights:
            self.small[name] = self.weights[source].values().astype(np.float32)

    def _norm(self, name: str, source: str) -> None:
        for part, leaf in (("scale", "weight"), ("shift", "bias")):
            self._keep(f"{name}.{part}", f"{source}.{leaf}")
