"""Checkpoints: a folder with config.json, model.safetensors and tokenizer.json, or a GGUF file. No pickle is read."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from unmask.checkpoints import gguf as gguf_file
from unmask.checkpoints import memory, recognition
from unmask.checkpoints.family import Family, Table
from unmask.checkpoints.fit import Fit, Shape, compare
from unmask.checkpoints.folder import CONFIG, TOKENIZER, WEIGHTS, gguf_of
from unmask.checkpoints.tensor_files import DTYPES, TensorFiles, Tensors, read_file
from unmask.errors import UnmaskError
from unmask.files import replacing, write_text
from unmask.models.config import ModelConfig
from unmask.models.diffusion_gemma import DiffusionGemma
from unmask.models.transformer import Transformer
from unmask.models.unfilled import unfilled


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a missing, cut or hostile file raises UnmaskError."""
    return read_file(path)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, str(temporary), metadata=metadata)
            temporary.chmod(0o644)  # the library makes files that only their owner can read
        except SafetensorError as error:  # the library reports a full disk as its own error
            raise OSError(str(error)) from None


def open_weights(source: Path) -> Tensors:
    """The weights of a folder or a GGUF file, their headers read and checked."""
    gguf = gguf_of(source)
    return TensorFiles(source) if gguf is None else gguf_file.read(gguf)


def build(config: ModelConfig, weights: Tensors, source: str) -> Transformer:
    """A network on the meta device; a config that no such weights can be of raises UnmaskError before it is built."""
    shapes = weights.shapes()
    values = sum(math.prod(shape) for shape in shapes.values())
    layer = config.hidden_size * (config.num_heads * config.head_dim + config.intermediate_size)
    positions = config.max_length * config.hidden_size if config.learned_positions else 0
    tensors = config.num_layers * max(1, config.num_experts)
    if (
        config.vocab_size * config.hidden_size + config.num_layers * layer * (config.num_experts == 0) + positions
        > 2 * values + 2**20
        or tensors > 2 * len(shapes) + 2**10
    ):
        raise UnmaskError(f"{source} describes a network far larger than the weights beside it")
    with unfilled():
        return DiffusionGemma(config) if config.layout == "canvas" else Transformer(config)


def weight_table(model: Transformer, family: Family | None) -> Table:
    """Names in the file and ours; the same ones in our own layout."""
    if family is not None:
        return family.table(model.config)
    return {name: [name] for name, _ in model.named_parameters()}  # a tied head is listed once, as the embedding


def expected_shapes(model: Transformer, family: Family | None) -> dict[str, Shape]:
    """Their tensors' shapes by the config: ours joined along the first axis, then transposed where they are."""
    out = {}
    for theirs, ours in weight_table(model, family).items():
        parts = [model.get_parameter(name).shape for name in ours]
        shape = (sum(part[0] for part in parts), *parts[0][1:])
        out[theirs] = shape[::-1] if _transposed(theirs, family) else shape
    return out


def unread(weights: Tensors, family: Family) -> list[str]:
    """The tensors of a checkpoint that its family leaves out (a vision tower's)."""
    return [name for name in weights.shapes() if name.startswith(family.unread)]


def fit(model: Transformer, weights: Tensors, family: Family | None, raw: dict[str, Any]) -> Fit:
    """How a checkpoint's tensors compare with those of a network."""
    shapes, allowed = weights.shapes(), set()
    if family is not None:
        allowed = {name for name in shapes if name.endswith(family.ignored)}
        allowed |= {*family.constants(model.config, raw), *unread(weights, family)}
    return compare(shapes, expected_shapes(model, family), allowed)


def needed_bytes(model: Transformer, weights: Tensors, names: Collection[str], dtype: torch.dtype | None) -> int:
    """Bytes of a network in memory: parameters in a dtype (None: the file's) and tables of rotation."""
    shapes = weights.shapes()
    stored = weights.stored if isinstance(weights, TensorFiles) else {}
    total = 0 if model.config.attention else 2 * model.config.max_length * (model.config.rotary_size // 2) * 4
    for name in names:
        own = DTYPES[stored[name].kind] if name in stored else torch.float32
        total += math.prod(shapes[name]) * (own if dtype is None else dtype).itemsize
    return total


def load_weights(
    model: Transformer, weights: Tensors, family: Family | None, dtype: torch.dtype | None, device: torch.device
) -> None:
    """Puts a checkpoint's tensors into a network built on the meta device, one at a time, each onto its device."""
    table = weight_table(model, family)
    for name, tensor in weights.tensors(dtype, family.transposed if family is not None else ()):
        if name not in table:
            continue
        if not tensor.is_floating_point():
            raise UnmaskError(f"{weights.source}: tensor {name!r} has dtype {tensor.dtype}, expected floating point")
        tensor = tensor.to(device)
        sizes = [model.get_parameter(ours).shape[0] for ours in table[name]]
        for ours, piece in zip(table[name], torch.split(tensor, sizes) if len(sizes) > 1 else [tensor], strict=True):
            module, _, leaf = ours.rpartition(".")
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(piece))
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight


def weights_to_save(model: Transformer, family: Family | None, raw: dict[str, Any]) -> dict[str, Tensor]:
    """The network's tensors under the names of the layout, joined and transposed as it has them."""
    state = model.state_dict()
    out = {}
    for theirs, ours in weight_table(model, family).items():
        joined = state[ours[0]] if len(ours) == 1 else torch.cat([state[name] for name in ours])
        out[theirs] = joined.T if _transposed(theirs, family) else joined
    return out if family is None else {**out, **family.constants(model.config, raw)}


def _transposed(name: str, family: Family | None) -> bool:
    return family is not None and name.endswith(family.transposed)


def load(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32
) -> tuple[Transformer, Family | None]:
    """The network of a checkpoint (a folder or a GGUF file) in evaluation mode, and its family (None: our own
    layout). dtype None keeps the file's; a GGUF file's blocks become float32.

    Peak memory is near the size of the weights: the network is built on the meta device and every parameter is
    replaced by its tensor as it is read. Missing, unknown and misshapen tensors, and weights that the free memory
    has no room for, raise UnmaskError before any tensor is read.
    """
    found, device = recognition.recognise(folder), torch.device(device)
    recognition.say(found)
    weights = open_weights(folder)
    model = build(found.config, weights, found.source)
    fit(model, weights, found.family, found.raw).check(str(weights.source), CONFIG)
    needed = needed_bytes(model, weights, weight_table(model, found.family), dtype)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    half = "" if dtype is not None and dtype.itemsize <= 2 else "take dtype bfloat16, or "
    memory.require(needed, str(folder), f"{half}free some, or use a machine with more", free)
    load_weights(model, weights, found.family, dtype, device)
    model.make_rotary_tables()
    return model.to(device).eval(), found.family


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
