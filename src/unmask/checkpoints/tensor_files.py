"""Reading the tensors of safetensors files, one at a time, each straight into its own memory.

Files are read, not mapped: a mapped file counts as memory of the process for as long as one of its tensors lives,
and a mapped file that changes on disk changes the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unmask.checkpoints.folder import CONFIG, INDEX, WEIGHTS, read_json
from unmask.checkpoints.safetensors_file import Stored, read_header
from unmask.errors import UnmaskError

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
CHUNK = 2**24  # bytes read at a time where values are converted
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
HOW = (
    'convert it where you trust it: python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() '
    "for k, v in torch.load('FILE', weights_only=True).items()}, 'model.safetensors')\""
)


class Tensors(Protocol):
    """Where weights come from: shapes without reading them, then one tensor at a time."""

    source: Path

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def bytes_by_dtype(self) -> dict[str, int]: ...

    def tensors(self, dtype: torch.dtype | None, transposed: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]: ...


def read(file: FileIO, stored: Stored, dtype: torch.dtype | None, buffer: Tensor, transposed: bool = False) -> Tensor:
    """One tensor of an open file, in its own memory; floating-point values in `dtype` (None: the file's).

    buffer: bytes [CHUNK] that values pass which are converted or transposed. It is the caller's, for all tensors:
    one of its own beside every tensor would leave holes in the heap as large as the weights.
    """
    own = DTYPES[stored.kind]
    target = own if dtype is None or not own.is_floating_point else dtype
    file.seek(stored.start)
    if target == own and not transposed:
        flat = torch.empty(stored.size, dtype=torch.uint8)
        _fill(file, flat, stored)
        return flat.view(own).view(stored.shape)
    out = torch.empty(stored.shape[::-1] if transposed else stored.shape, dtype=target)
    rows = out.T if transposed else out.view(-1, 1)
    size = rows.shape[1] * own.itemsize
    buffer = buffer if size <= len(buffer) else torch.empty(size, dtype=torch.uint8)
    step = len(buffer) // max(size, 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        data = buffer[: len(part) * size]
        _fill(file, data, stored)
        part.copy_(data.view(own).view(part.shape))
    return out


def _fill(file: FileIO, flat: Tensor, stored: Stored) -> None:
    """Reads as many bytes as `flat` [n] has."""
    values: Any = flat.numpy()
    view = memoryview(values)
    while len(view):
        count = file.readinto(view)
        if not count:  # cut since the header was read
            raise UnmaskError(f"{stored.path} ends inside {stored.name!r:.80}; copy or download it again")
        view = view[count:]


def read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a missing, cut or hostile file raises UnmaskError."""
    if not path.is_file():
        raise UnmaskError(f"{path} does not exist; a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    header = read_header(path)
    try:
        with path.open("rb", buffering=0) as file:
            return {name: read(file, stored, None, torch.empty(0)) for name, stored in header.items()}
    except OSError as error:
        raise UnmaskError(f"{path} cannot be read ({error.strerror or error})") from None


class TensorFiles:
    """The safetensors files of a folder, one or sharded."""

    def __init__(self, folder: Path) -> None:
        self.source = folder
        index, single = folder / INDEX, folder / WEIGHTS
        listed: dict[str, str] = {}
        if single.is_file():
            shards = [single]
        elif index.is_file():
            listed = self._indexed(index)
            shards = sorted({folder / shard for shard in listed.values()})
        else:
            raise self._none()
        self.stored: dict[str, Stored] = {}
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

    def _indexed(self, index: Path) -> dict[str, str]:
        """The index's weight_map, with every shard there."""
        mapping = read_json(index).get("weight_map")
        names = list(mapping.values()) if isinstance(mapping, dict) and mapping else [None]
        for name in {n if isinstance(n, str) else repr(n): n for n in names}.values():
            if (
                not isinstance(name, str)
                or not name.isprintable()
                or Path(name).name != name
                or not name.endswith(".safetensors")
            ):
                raise UnmaskError(f"{index} names {name!r:.120}, which is not a safetensors file of this folder")
            try:
                there = (self.source / name).is_file()
            except OSError:  # the name is too long to be one
                there = False
            if not there:
                raise UnmaskError(f"{self.source / name} is missing; {index.name} asks for it, download it again")
        assert isinstance(mapping, dict)
        return mapping

    def _none(self) -> UnmaskError:
        """What to say of a folder without weights that can be read."""
        try:
            files = sorted(path.name for path in self.source.iterdir())
        except OSError:
            files = []
        pickles = [name for name in files if name.endswith(PICKLES)]
        if pickles:
            return UnmaskError(f"{self.source / pickles[0]} is a pickle, which can run code; {HOW}")
        shards = [name for name in files if re.fullmatch(r".*-\d+-of-\d+\.safetensors", name)]
        if shards:
            return UnmaskError(
                f"{self.source / shards[0]} is one of several, and {INDEX} is missing; download it again"
            )
        return UnmaskError(f"{self.source / WEIGHTS} does not exist; a checkpoint folder holds {CONFIG} and {WEIGHTS}")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, from the headers alone."""
        return {name: stored.shape for name, stored in self.stored.items()}

    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of all tensors of each type, by the format's own names."""
        out: dict[str, int] = {}
        for stored in self.stored.values():
            out[stored.kind] = out.get(stored.kind, 0) + stored.size
        return out

    def tensors(self, dtype: torch.dtype | None, transposed: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in the order of the files; only one is held here at a time.

        dtype: of floating-point values, None: the file's. transposed: ends of names of tensors that are stored
        [in, out] and given [out, in].
        """
        buffer = torch.empty(CHUNK, dtype=torch.uint8)
        path, file = None, None
        try:
            for name, stored in self.stored.items():
                if stored.path != path:
                    if file is not None:
                        file.close()
                    path, file = stored.path, stored.path.open("rb", buffering=0)
                assert file is not None
                yield name, read(file, stored, dtype, buffer, name.endswith(transposed))
        except OSError as error:
            raise UnmaskError(f"{path} cannot be read ({error.strerror or error}); download it again") from None
        finally:
            if file is not None:
                file.close()
