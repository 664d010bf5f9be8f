"""The small files of a checkpoint folder: config, tokenizer, chat template. Read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.checkpoints import gguf as gguf_file
from unmask.checkpoints.special_tokens import TokenFiles
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, TOKENIZER, TEMPLATE, ADAPTER = "config.json", "tokenizer.json", "chat_template.jinja", "adapter.json"
TOKENS, GENERATION = "tokenizer_config.json", "generation_config.json"
LARGEST_JSON = 2**28  # bytes; the largest tokenizers have a tenth of it


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else raises UnmaskError."""
    if not path.is_file():
        raise UnmaskError(f"{path} does not exist; a checkpoint folder holds {CONFIG} and {WEIGHTS}")
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UnmaskError(f"{path} has {path.stat().st_size} bytes, which no such file has; download it again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnmaskError(f"{path} is not valid JSON ({error})") from None
    except OSError as error:
        raise UnmaskError(f"{path} cannot be read ({error.strerror or error})") from None
    if not isinstance(value, dict):
        raise UnmaskError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def gguf_of(source: Path) -> Path | None:
    """The GGUF file of a path, None where the weights are safetensors."""
    return None if any((source / name).is_file() for name in (WEIGHTS, INDEX)) else gguf_file.find(source)


def read_config(source: Path) -> dict[str, Any]:
    """config.json of a folder, else what its GGUF file says."""
    path, gguf = source / CONFIG, gguf_of(source)
    if gguf is not None and not path.is_file():
        return gguf_file.read(gguf).config()
    return read_json(path)


def token_files(source: Path) -> TokenFiles:
    """What tokenizer.json, tokenizer_config.json and generation_config.json of a folder say of special tokens."""
    names = (TOKENIZER, TOKENS, GENERATION, "added_tokens.json", "special_tokens_map.json")
    tokenizer, own, generation, added_file, roles = (
        read_json(source / name) if (source / name).is_file() else {} for name in names
    )
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    ids = {name: i for name, i in ids.items() if isinstance(i, int)}
    size = len(vocabulary) if isinstance(vocabulary, dict | list) else 0
    listed = tokenizer.get("added_tokens")
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    entries += [{"content": name, "id": i} for name, i in added_file.items()]
    sound = [e for e in entries if isinstance(e.get("id"), int) and isinstance(e.get("content"), str) and e["id"] >= 0]
    added = {e["id"]: e["content"] for e in sound}
    ids |= {name: i for i, name in added.items()}
    named = {}
    for role in ("mask", "eos", "bos", "pad"):
        for file in (own, roles):
            token = file.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token in ids and role not in named:
                named[role] = ids[token]
    ends = generation.get("eos_token_id")
    ends = [i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int) and not isinstance(i, bool)]
    control = frozenset(e["id"] for e in sound if e.get("special") is True)
    return TokenFiles(added, control, named, tuple(i for i in ends if i >= 0), size)


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
    path, gguf, older = folder / TEMPLATE, gguf_of(folder), folder / TOKENS
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = read_json(older).get("chat_template") if older.is_file() else None
    if isinstance(template, str) and template:
        return template
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
