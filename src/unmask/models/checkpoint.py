"""Checkpoints: a folder with config.json, model.safetensors and tokenizer.json, or a GGUF file. No pickle is read."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.files import replacing, write_text
from unmask.models import gguf_file
from unmask.models.config import ModelConfig
from unmask.models.families import registry
from unmask.models.family import Family, Table
from unmask.models.folder import CONFIG, INDEX, TOKENIZER, WEIGHTS, gguf_of, read_config, read_json
from unmask.models.gemma import DiffusionGemma
from unmask.models.transformer import Transformer


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a missing, cut or hostile file raises UnmaskError."""
    if not path.is_file():
        raise UnmaskError(f"{path} does not exist; a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    with _reading(path), safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what safetensors raises on a cut or hostile file into one clear line."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UnmaskError(f"{path} is not a readable safetensors file ({error}); copy or download it again") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, str(temporary), metadata=metadata)
            temporary.chmod(0o644)  # the library makes files that only their owner can read
        except SafetensorError as error:  # the library reports a full disk as its own error
            raise OSError(str(error)) from None


class Tensors(Protocol):
    """Where weights come from: shapes without reading them, then one tensor at a time."""

    source: Path

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]: ...


class TensorFiles:
    """The safetensors files of a folder, one or sharded, read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        self.source = self.folder = folder
        index, single = folder / INDEX, folder / WEIGHTS
        if single.is_file():
            self.shards = [single]
        elif index.is_file():
            self.shards = self._indexed(index)
        else:
            pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
            if pickles:
                raise UnmaskError(f"{folder / pickles[0]} is a pickle, which can run code; convert it to safetensors")
            raise UnmaskError(f"{single} does not exist; a checkpoint folder holds {CONFIG} and {WEIGHTS}")

    def _indexed(self, index: Path) -> list[Path]:
        shards = read_json(index).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) and shards else [None]
        for name in names:
            if (
                not isinstance(name, str)
                or not name.isprintable()
                or Path(name).name != name
                or not name.endswith(".safetensors")
            ):
                raise UnmaskError(f"{index} names {name!r}, which is not a safetensors file of this folder")
            if not (self.folder / name).is_file():
                raise UnmaskError(f"{self.folder / name} is missing; {index.name} asks for it, download it again")
        return sorted({self.folder / str(name) for name in names})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, from the headers alone."""
        out: dict[str, tuple[int, ...]] = {}
        for shard in self.shards:
            with _reading(shard), safe_open(str(shard), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    out[name] = tuple(file.get_slice(name).get_shape())
        return out

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in turn; only one is held here at a time."""
        for shard in self.shards:
            with _reading(shard), safe_open(str(shard), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    yield name, file.get_tensor(name)


def unread(files: Tensors, family: Family) -> list[str]:
    """The tensors of a checkpoint that its family leaves out (a vision tower's)."""
    return [name for name in files.shapes() if name.startswith(family.unread)]


def load_weights(
    model: Transformer, files: Tensors, table: Table, others: Collection[str], dtype: torch.dtype | None
) -> None:
    """Puts a checkpoint's tensors into a network built on the meta device, one at a time.

    A missing, extra or misshapen tensor raises UnmaskError naming it before any is read. `others` are
    tensors that may be in the file and are not read.
    """
    source, shapes = files.source, files.shapes()
    parts = {theirs: [model.get_parameter(name).shape for name in ours] for theirs, ours in table.items()}
    missing, extra = sorted(table.keys() - shapes.keys()), sorted(shapes.keys() - table.keys() - set(others))
    for what, names in (("lacks tensor", missing), ("has an unknown tensor", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UnmaskError(f"{source} {what} {names[0]!r}{more}; it does not fit its {CONFIG}")
    for name, split in parts.items():
        expected = (sum(shape[0] for shape in split), *split[0][1:])
        if shapes[name] != expected:
            found = list(shapes[name])
            raise UnmaskError(f"{source}: tensor {name!r} has shape {found}, {CONFIG} asks for {list(expected)}")
    for name, tensor in files.tensors():
        if name not in table:
            continue
        if not tensor.is_floating_point():
            raise UnmaskError(f"{source}: tensor {name!r} has dtype {tensor.dtype}, expected floating point")
        tensor = tensor if dtype is None else tensor.to(dtype)
        pieces = torch.split(tensor, [shape[0] for shape in parts[name]]) if len(parts[name]) > 1 else [tensor]
        for ours, piece in zip(table[name], pieces, strict=True):
            module, _, leaf = ours.rpartition(".")
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(piece))
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight


def weight_table(model: Transformer, family: Family | None) -> Table:
    """Names in the file and ours; the same ones in our own layout."""
    if family is not None:
        return family.table(model.config)
    return {name: [name] for name, _ in model.named_parameters()}  # a tied head is listed once, as the embedding


def weights_to_save(model: Transformer, family: Family | None, raw: dict[str, Any]) -> dict[str, Tensor]:
    """The network's tensors under the names of the layout, joined as it joins them."""
    state = model.state_dict()
    out = {}
    for theirs, ours in weight_table(model, family).items():
        out[theirs] = state[ours[0]] if len(ours) == 1 else torch.cat([state[name] for name in ours])
    return out if family is None else {**out, **family.constants(model.config, raw)}


def load(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32
) -> tuple[Transformer, Family | None]:
    """The network of a checkpoint (a folder or a GGUF file) in evaluation mode, and its family (None: our own
    layout). dtype None keeps the file's; a GGUF file's blocks become float32.

    Peak memory is near the size of the weights: the network is built on the meta device and every
    parameter is replaced by its tensor as it is read.
    """
    gguf = gguf_of(folder)
    source = str(folder / CONFIG if gguf is None else gguf)
    raw = read_config(folder)
    family = registry.recognise(raw, source)
    config = ModelConfig.from_dict(raw, source) if family is None else family.config(raw, source)
    files: Tensors = TensorFiles(folder) if gguf is None else gguf_file.read(gguf)
    values = sum(math.prod(shape) for shape in files.shapes().values())
    layer = config.hidden_size * (config.num_heads * config.head_dim + config.intermediate_size)
    if config.vocab_size * config.hidden_size + config.num_layers * layer > 2 * values + 2**20:
        raise UnmaskError(f"{source} describes a network far larger than the weights beside it")
    with torch.device("meta"):
        model = DiffusionGemma(config) if config.layout == "canvas" else Transformer(config)
    others = [] if family is None else [*family.constants(config, raw), *unread(files, family)]
    load_weights(model, files, weight_table(model, family), others, dtype)
    model.make_rotary_tables()
    return model.to(device).eval(), family


def save(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a checkpoint folder's files, each whole or not at all; names and config as the layout has them."""
    write_tensors(folder / WEIGHTS, weights, metadata)
    if tokenizer is not None:
        write_text(folder / TOKENIZER, tokenizer.to_str(pretty=False))
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
