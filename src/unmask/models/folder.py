"""The small files of a checkpoint folder: config, tokenizer, chat template. Read without torch."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError
from unmask.models import gguf_file
from unmask.models.families import registry
from unmask.models.special_tokens import free_token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, TOKENIZER, TEMPLATE, ADAPTER = "config.json", "tokenizer.json", "chat_template.jinja", "adapter.json"


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


def gguf_of(source: Path) -> Path | None:
    """The GGUF file of a path, None where the weights are safetensors."""
    return None if any((source / name).is_file() for name in (WEIGHTS, INDEX)) else gguf_file.find(source)


def read_config(source: Path) -> dict[str, Any]:
    """config.json of a folder, else what its GGUF file says; a mask is found where the layout names none."""
    path, gguf = source / CONFIG, gguf_of(source)
    if gguf is not None and not path.is_file():
        return gguf_file.read(gguf).config()
    raw = read_json(path)
    family = registry.recognise(raw, str(path))
    if family is None or not family.borrows_mask or raw.get("mask_token_id") is not None:
        return raw
    tokenizer, template = load_tokenizer(source), load_template(source)
    if tokenizer is not None:
        added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        used = [raw.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
        flat = [i for ids in used for i in (ids if isinstance(ids, list) else [ids])]
        with suppress(UnmaskError, UnicodeDecodeError):  # it can score text without a mask, if not write
            raw = {**raw, "mask_token_id": free_token(added, flat, template, str(source))}
    return raw


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """The checkpoint's tokenizer, or None where there is none (ids go in and come out)."""
    path, gguf = folder / TOKENIZER, gguf_of(folder)
    if gguf is not None and not path.is_file():
        return gguf_file.read(gguf).tokenizer()
    return read_tokenizer(path) if path.is_file() else None


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json of any name; one that is missing or broken raises UnmaskError."""
    if not path.is_file():
        raise UnmaskError(f"tokenizer {path} does not exist")
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UnmaskError(f"{path} is not a readable tokenizer ({error})") from None


def load_template(folder: Path) -> str | None:
    """The checkpoint's chat template (Jinja), or None where it has none."""
    path, gguf = folder / TEMPLATE, gguf_of(folder)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return None if gguf is None else gguf_file.read(gguf).chat_template()


def base_of(folder: Path) -> str | None:
    """The base that the adapter in a folder was made for; None where the folder holds no adapter."""
    path = folder / ADAPTER
    if not path.is_file():
        return None
    base = read_json(path).get("base")
    if not isinstance(base, str):
        raise UnmaskError(f"{path} names no base model")
    return base
