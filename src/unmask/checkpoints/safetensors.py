"""safetensors files: the header, checked by the library; tensors, read one at a time; writing.

Files are read, not mapped: a mapped file counts as memory of the process for as long as one of its tensors lives, and
changes the network where it changes on disk. Torch is imported where tensors are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.checkpoints.foreign import unreadable
from unmask.errors import UnmaskError
from unmask.files import read_json, replacing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unmask.checkpoints.rows import Rows

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {  # torch's names
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "U16": "uint16",
    "I16": "int16", "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
CHUNK = 2**24  # bytes read at a time where values are converted
MOST_DIMENSIONS = 16
MOST_EXPERTS = 4096
STACKED = ".switch_mlp."  # MLX's name of a layer's experts, each matrix of all of them in one tensor


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: `start` and `size` in bytes, from the file's start."""

    path: Path
    name: str
    kind: str  # of its values, by the format's own name
    shape: tuple[int, ...]
    start: int
    size: int
    read_as: str = "float32"  # torch's name of what its values are read as

    @property
    def dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.read_as)
        return dtype


def slices(stored: Stored, names: list[str]) -> Iterator[Stored]:
    """A tensor under its name, or under several its slices along the first axis."""
    size = stored.size // len(names)
    for number, name in enumerate(names):
        shape = stored.shape if len(names) == 1 else stored.shape[1:]
        yield replace(stored, name=name, shape=shape, start=stored.start + number * size, size=size)


def _experts(stored: Stored) -> list[str]:
    """Names of the experts' tensors in one that MLX stacked; its own name else."""
    count = stored.shape[0] if STACKED in stored.name and stored.shape else 0
    several = range(count) if 1 < count <= MOST_EXPERTS else range(0)
    return [stored.name.replace(STACKED, f".experts.{number}.") for number in several] or [stored.name]


class Weights:
    """A checkpoint's weights: where each tensor lies by name, known without reading one; then one at a time."""

    source: Path
    stored: dict[str, Stored]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.stored.items()}

    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of all tensors of each type, by the format's own names."""
        out: dict[str, int] = {}
        for stored in self.stored.values():
            out[stored.kind] = out.get(stored.kind, 0) + stored.size
        return out

    def rows(self, name: str) -> Rows:
        """A tensor that is read row by row."""
        from unmask.checkpoints.rows import Rows

        return Rows(self.stored[name])

    def tensors(self, dtype: torch.dtype | None, transposed: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in the order of the files; only one is held here at a time.

        dtype: of floating-point values, None: the file's. transposed: ends of names of tensors that are stored
        [in, out] and given [out, in].
        """
        raise NotImplementedError


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A file to read; one that cannot be read raises UnmaskError."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise UnmaskError(f"{path} cannot be read ({reason}); copy or download it again") from None


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of a file by name, in the order of bytes; a missing, cut or hostile file raises UnmaskError."""
    from safetensors import SafetensorError, safe_open

    with opened(path) as file:
        start = file.read(8)
        if start == b"version ":
            raise UnmaskError(f"{path} is only a pointer to a file kept by Git LFS; fetch it with: git lfs pull")
        length = int.from_bytes(start, "little")
        try:
            with safe_open(path, framework="numpy"):  # checks all that the header says against the file's size
                header = json.loads(file.read(length))
        except SafetensorError as error:
            raise UnmaskError(
                f"{path} is not a readable safetensors file, it was damaged, cut or not fully downloaded "
                f"({str(error)!r:.120}); copy or download it again"
            ) from None
    header.pop("__metadata__", None)
    out = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        kind = entry["dtype"]
        shape = tuple(entry["shape"])
        if kind not in DTYPES or len(shape) > MOST_DIMENSIONS or max(shape, default=0) >= 2**63:
            raise UnmaskError(f"{path}: tensor {name!r:.80}, {kind!r:.40} of shape {shape!r:.80}, is not read")
        first, end = entry["data_offsets"]
        out[name] = Stored(path, name, kind, shape, 8 + length + first, end - first, DTYPES[kind])
    return out


def read(
    file: BufferedReader, stored: Stored, dtype: torch.dtype | None, buffer: Tensor, transposed: bool = False
) -> Tensor:
    """One tensor of an open file, in its own memory; floating-point values in `dtype` (None: the file's).

    buffer: bytes [CHUNK] that values pass which are converted or transposed. It is the caller's, for all tensors:
    one of its own beside every tensor would leave holes in the heap as large as the weights.
    """
    import torch

    own = stored.dtype
    target = own if dtype is None or not own.is_floating_point else dtype
    file.seek(stored.start)
    if target == own and not transposed:
        flat = torch.empty(stored.size, dtype=torch.uint8)
        fill(file, flat.numpy(), stored)
        return flat.view(own).view(stored.shape)
    out = torch.empty(stored.shape[::-1] if transposed else stored.shape, dtype=target)
    rows = out.T if transposed else out.view(-1, 1)
    size = rows.shape[1] * own.itemsize
    buffer = buffer if size <= len(buffer) else torch.empty(size, dtype=torch.uint8)
    step = len(buffer) // max(size, 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        data = buffer[: len(part) * size]
        fill(file, data.numpy(), stored)
        part.copy_(data.view(own).view(part.shape))
    return out


def fill(file: BufferedReader, values: Any, stored: Stored) -> None:
    """Reads as many bytes as an array [n] has."""
    if file.readinto(values) < values.nbytes:  # cut since the header was read
        raise UnmaskError(f"{stored.path} ends inside {stored.name!r:.80}; copy or download it again")


def same_bytes(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same values of the same type."""
    if (one.kind, one.shape) != (other.kind, other.shape):
        return False
    with opened(one.path) as first, opened(other.path) as second:
        first.seek(one.start)
        second.seek(other.start)
        sizes = (min(CHUNK, one.size - start) for start in range(0, one.size, CHUNK))
        return all(first.read(size) == second.read(size) for size in sizes)


def stored_tensors(
    stored: Iterable[Stored], dtype: torch.dtype | None = None, transposed: tuple[str, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    import torch

    buffer = torch.empty(CHUNK, dtype=torch.uint8)
    for path, tensors in groupby(stored, key=lambda tensor: tensor.path):
        with opened(path) as file:
            for tensor in tensors:
                yield tensor.name, read(file, tensor, dtype, buffer, tensor.name.endswith(transposed))


def each_tensor(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, one at a time; a missing, cut or hostile file raises UnmaskError."""
    return stored_tensors(read_header(path).values())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a missing, cut or hostile file raises UnmaskError."""
    return dict(each_tensor(path))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, str(temporary), metadata=metadata)
            temporary.chmod(0o644)  # the library makes files that only their owner can read
        except SafetensorError as error:  # the library reports a full disk as its own error
            raise OSError(str(error)) from None


def write_one_by_one(path: Path, described: Mapping[str, Tensor], values: Iterator[Tensor]) -> None:
    """Writes a safetensors file whole or not at all, with one tensor in memory at a time.

    described: tensors of the shape and type of each value, in their order. values: made as they are written; as many
    are taken as are described.
    """
    names = {torch_name: kind for kind, torch_name in DTYPES.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in described.items():
        start = end
        end += tensor.numel() * tensor.element_size()
        kind = names[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in islice(values, len(described)):
            file.write(bytes_of(value))


def bytes_of(tensor: Tensor) -> Any:
    """A tensor's values as an array of bytes."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


class TensorFiles(Weights):
    """The safetensors files of a folder, one of a name or sharded."""

    def __init__(self, folder: Path, name: str = WEIGHTS) -> None:
        self.source = folder
        index = folder / INDEX
        listed: dict[str, str] = {}
        if (folder / name).is_file():
            shards = [folder / name]
        elif index.is_file():
            listed = self._indexed(index)
            shards = sorted({folder / shard for shard in listed.values()})
        else:
            raise unreadable(folder, WEIGHTS)
        self.stored = {}
        for shard in shards:
            header = read_header(shard)
            for name in sorted(header.keys() & self.stored.keys()):
                raise UnmaskError(f"{shard} and {self.stored[name].path.name} both hold tensor {name!r:.80}")
            self.stored |= header
        for name, home in listed.items():
            if name not in self.stored or self.stored[name].path.name != home:
                raise UnmaskError(
                    f"{index} says that {home} holds {name!r:.80}, which it does not; download both again"
                )
        parts = (part for one in self.stored.values() for part in slices(one, _experts(one)))
        self.stored = {part.name: part for part in parts}

    def _indexed(self, index: Path) -> dict[str, str]:
        """The index's weight_map, with every shard there."""
        mapping = read_json(index).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise UnmaskError(f"{index} names no safetensors file of this folder")
        for name in {str(home): home for home in mapping.values()}.values():
            plain = isinstance(name, str) and name.isprintable() and Path(name).name == name
            if not plain or not name.endswith(".safetensors"):
                raise UnmaskError(f"{index} names {name!r:.120}, which is not a safetensors file of this folder")
            try:
                there = (self.source / name).is_file()
            except OSError:  # the name is too long to be one
                there = False
            if not there:
                raise UnmaskError(f"{self.source / name} is missing; {index.name} asks for it, download it again")
        return mapping

    def tensors(self, dtype: torch.dtype | None, transposed: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
        return stored_tensors(self.stored.values(), dtype, transposed)
