"""Checkpoints: a folder with config.json, model.safetensors and tokenizer.json. No pickle is ever read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.files import replacing, write_text
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a missing, cut or hostile file raises UnmaskError."""
    if not path.is_file():
        raise UnmaskError(f"{path} does not exist; a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UnmaskError(f"{path} is not a readable safetensors file ({error}); copy or download it again") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, str(temporary), metadata=metadata)
        except SafetensorError as error:  # the library reports a full disk as its own error
            raise OSError(str(error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else raises UnmaskError."""
    if not path.is_file():
        raise UnmaskError(f"{path} does not exist; a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnmaskError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UnmaskError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def load_weights(model: Transformer, tensors: dict[str, Tensor], source: str) -> None:
    """Copies tensors into the network; a missing, extra or misshapen one raises UnmaskError naming it."""
    wanted = model.state_dict()
    if model.config.tie_embeddings:
        wanted.pop("head.weight")
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    for what, names in (("lacks tensor", missing), ("has an unknown tensor", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UnmaskError(f"{source} {what} '{names[0]}'{more}; it does not fit its {CONFIG}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            found, expected = list(tensor.shape), list(wanted[name].shape)
            raise UnmaskError(f"{source}: tensor '{name}' has shape {found}, {CONFIG} asks for {expected}")
        if not tensor.is_floating_point():
            raise UnmaskError(f"{source}: tensor '{name}' has dtype {tensor.dtype}, expected floating point")
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)


def load(folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """The network of a checkpoint folder, in evaluation mode."""
    config = ModelConfig.from_dict(read_json(folder / CONFIG), str(folder / CONFIG))
    tensors = read_tensors(folder / WEIGHTS)
    values = sum(t.numel() for t in tensors.values())
    if (config.vocab_size + config.num_layers * config.intermediate_size) * config.hidden_size > 4 * values + 2**20:
        raise UnmaskError(
            f"{folder / CONFIG} describes a network far larger than {WEIGHTS} holds; they do not belong together"
        )
    model = Transformer(config)
    load_weights(model, tensors, str(folder / WEIGHTS))
    return model.to(device=device, dtype=dtype).eval()


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer, or None where there is none (ids go in and come out)."""
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UnmaskError(f"{path} is not a readable tokenizer ({error})") from None


def save(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a checkpoint folder's files, each whole or not at all."""
    weights = {k: v for k, v in weights.items() if not (config.tie_embeddings and k == "head.weight")}
    write_tensors(folder / WEIGHTS, weights, metadata)
    if tokenizer is not None:
        write_text(folder / TOKENIZER, tokenizer.to_str(pretty=False))
    write_text(folder / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")
