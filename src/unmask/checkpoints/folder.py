"""A checkpoint as it lies: a folder or a GGUF file, each small file and each header read once, when first asked for."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from unmask.checkpoints import foreign
from unmask.checkpoints import gguf as gguf_file
from unmask.checkpoints.quantised import Quantised, Scheme
from unmask.checkpoints.safetensors import INDEX, WEIGHTS, TensorFiles, Weights
from unmask.errors import UnmaskError
from unmask.files import read_json, write_text

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKEN_NAMES = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
OLDER_TEMPLATE = "chat_template.json"
ADAPTER = "adapter.json"
LORA = "adapter_config.json"  # PEFT's
LORA_WEIGHTS = "adapter_model.safetensors"
ANSWERS = "answer_schema.json"  # a JSON schema that every answer is held to where nothing else is asked for
# what belongs to the text side of a model and is saved again as it was
TEXT_FILES = (TOKENIZER, TOKENIZER_CONFIG, TOKEN_NAMES, ADDED_TOKENS, TEMPLATE, OLDER_TEMPLATE, ANSWERS, "vocab.json",
              "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")  # fmt: skip


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


class Folder:
    """The files of one checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: dict[str, dict[str, Any]] = {}

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; an empty mapping where there is none."""
        if name not in self._read:
            self._read[name] = read_json(self.path / name) if self.has(name) else {}
        return self._read[name]

    @cached_property
    def gguf(self) -> gguf_file.GGUF | None:
        """The GGUF file that holds the weights; None where they are safetensors."""
        if self.has(WEIGHTS) or self.has(INDEX):
            return None
        path = gguf_file.find(self.path)
        return None if path is None else gguf_file.read(path)

    @cached_property
    def weights(self) -> Weights:
        """The weights, their headers read and checked."""
        if self.gguf is not None:
            return self.gguf
        if self.is_lora:
            return TensorFiles(self.path, LORA_WEIGHTS)
        files = TensorFiles(self.path)
        scheme = Scheme.of(self.json(CONFIG))
        return files if scheme is None else Quantised(files, scheme)

    @property
    def source(self) -> str:
        """What to name where the config is wrong."""
        gguf = None if self.has(CONFIG) else self.gguf
        return str(self.path / CONFIG if gguf is None else gguf.source)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, else what the GGUF file says."""
        if self.has(CONFIG):
            return self.json(CONFIG)
        if self.gguf is not None:
            return self.gguf.config()
        if (self.path / CONFIG).exists():
            raise UnmaskError(f"{self.path / CONFIG} is not a file")
        raise foreign.unreadable(self.path, CONFIG)

    @property
    def generation(self) -> dict[str, Any]:
        """generation_config.json, else what the GGUF file says; empty where neither does."""
        gguf = None if self.has(CONFIG) or self.has(GENERATION) else self.gguf
        return self.json(GENERATION) if gguf is None else gguf.generation()

    @cached_property
    def is_lora(self) -> bool:
        """Whether it holds a LoRA adapter in PEFT's layout, and no weights beside it that it would be merged into."""
        return self.has(LORA) and self.has(LORA_WEIGHTS) and not (self.has(WEIGHTS) or self.has(INDEX) or self.gguf)

    @property
    def base(self) -> str | None:
        """The base that the adapter in this folder was made for; None where it holds no adapter."""
        if not self.has(ADAPTER) and not self.is_lora:
            return None
        name, key = (LORA, "base_model_name_or_path") if self.is_lora else (ADAPTER, "base")
        base = self.json(name).get(key)
        if not isinstance(base, str) or not base:
            raise UnmaskError(f"{self.path / name} names no base model")
        return base
