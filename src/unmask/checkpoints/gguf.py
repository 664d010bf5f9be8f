"""GGUF files, whole or split: config, tensors and tokenizer as the Hugging Face folder has them.

The package turns stored blocks into floats; headers are read in `gguf_header`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.checkpoints import gguf_architectures as architectures
from unmask.checkpoints.gguf_header import Header, Values, damaged
from unmask.checkpoints.gguf_text import Text
from unmask.checkpoints.rows import Rows
from unmask.checkpoints.safetensors import Stored, Weights, opened
from unmask.errors import UnmaskError

if TYPE_CHECKING:  # torch takes long to import, and not every use needs it
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

ROPE_FACTORS = "rope_freqs.weight"
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
LONGEST_SPLIT = 1000  # more parts than any model has


class GGUF(Weights):
    """A GGUF file whose header was read and found sound; its tensors have their Hugging Face names."""

    def __init__(self, values: Values, stored: dict[str, Stored], architecture: architectures.Architecture) -> None:
        self.source = values.path
        self.values = values
        self.stored = stored
        self.architecture = architecture
        self._rope_factors = stored.pop(ROPE_FACTORS, None)

    @cached_property
    def text(self) -> Text:
        """Its tokens, as many as the embedding has rows."""
        shape = self.shapes().get(self.architecture.family.theirs("embedding.weight"))
        if shape is None or len(shape) != 2:
            raise self.values.damaged("has no table of embeddings (token_embd.weight)")
        text = Text(self.values, shape[0])
        if text.names and len(text.names) != shape[0]:
            raise self.values.damaged(f"has {len(text.names)} tokens for {shape[0]} embeddings")
        return text

    def config(self) -> dict[str, Any]:
        """What config.json would say; of an AR model with a free control token as mask_token_id.

        Raises UnmaskError for a value that is missing or impossible, and where no control token is free.
        """
        return architectures.config(self.architecture, self.values, self.text, self.stored, self._factors())

    def generation(self) -> dict[str, Any]:
        """What generation_config.json would say."""
        return architectures.generation(self.values)

    def rows(self, name: str) -> Rows:
        heads = self._heads.get(name.split(".")[-2], 0)
        stored = self.stored[name]
        if heads and stored.shape[0] % (2 * heads):
            raise self.values.damaged(f"has {stored.shape[0]} rows for {heads} heads")
        return Rows(stored, heads=heads, added=self.architecture.added if len(stored.shape) == 1 else 0.0)

    @cached_property
    def _heads(self) -> dict[str, int]:
        """Heads of the parts whose rows stand as GGUF rotates them, neighbours; we (and Hugging Face) rotate rows i and
        i + half."""
        if not self.architecture.permuted:
            return {}
        count = self.values.number("attention.head_count")
        return {"q_proj": count, "k_proj": self.values.number("attention.head_count_kv", count)}

    def arrays(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor in turn as float32 by its Hugging Face name, queries and keys in that layout's order."""
        for name in self.stored:
            yield name, self.rows(name).values()

    def tensors(
        self, dtype: torch.dtype | None = None, transposed: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        """As `arrays`, as tensors of a dtype (None: float32); no family that a GGUF file holds is transposed."""
        import torch

        for name, values in self.arrays():
            yield name, torch.from_numpy(values).to(torch.float32 if dtype is None else dtype)

    def side_files(self) -> dict[str, str]:
        """Text of the files that spare the next reader this one's header: configs, tokenizer, chat template."""
        configs = {"config.json": self.config(), "generation_config.json": self.generation()}
        files = {name: json.dumps(config, indent=2) + "\n" for name, config in configs.items() if config}
        with suppress(UnmaskError):  # the model's own may lie there, or the reason is said when it is asked for
            files["tokenizer.json"] = self.text.tokenizer().to_str()
        template = self.text.templates.get("default")
        return files if template is None else {**files, "chat_template.jinja": template}

    def _factors(self) -> list[float]:
        """What each pair's frequency is divided by (Llama 3.1 and later, Gemma 4); empty where nothing is said."""
        if self._rope_factors is None:
            return []
        if len(self._rope_factors.shape) != 1 or self._rope_factors.kind != "F32":
            raise self.values.damaged(f"has rope_freqs of shape {list(self._rope_factors.shape)}")
        factors: list[float] = Rows(self._rope_factors).values().tolist()
        return factors


def find(source: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder, the first of its parts where it is split;
    several raise UnmaskError."""
    if source.suffix == ".gguf" and source.is_file():
        return source
    files = sorted(source.glob("*.gguf"))
    if len({SPLIT.sub("", file.name) for file in files}) > 1:
        raise UnmaskError(f"{source} holds {len(files)} GGUF files; name the one to use, for example {files[0]}")
    return files[0] if files else None


def parts(path: Path) -> list[Path]:
    """All parts of a split file, by one of them; of a whole file that itself."""
    split = SPLIT.search(path.name)
    if split is None or not 1 < int(split[2]) <= LONGEST_SPLIT:
        return [path]
    start = path.name[: split.start()]
    return [path.with_name(f"{start}-{number:05}-of-{split[2]}.gguf") for number in range(1, int(split[2]) + 1)]


def read(path: Path) -> GGUF:
    """Reads the header, of a split file those of all parts. A file that is damaged, in want of a part, of an unknown
    model or of an unknown type raises UnmaskError."""
    files = parts(path)
    for file in files:
        if not file.is_file() and file != path:
            raise UnmaskError(f"{path} is one of {len(files)} parts and {file} is not there; copy or download it too")
    said: dict[str, Any] = {}
    architecture = None
    stored: dict[str, Stored] = {}
    for number, file in enumerate(files):
        with opened(file) as data:
            header = Header(file, data)
            own, count = header.values()
            place = own.all.get("split.no", number)
            places = own.all.get("split.count", 1)
            if place != number or places not in (len(files), 0):
                raise UnmaskError(
                    f"{file} is part {place!r:.20} of {places!r:.20} of a split file; give all parts the names that "
                    "they had: NAME-00001-of-00003.gguf and so on"
                )
            said = own.all | said
            architecture = architecture or architectures.of(Values(path, said))
            for tensor in header.tensors(own, count):
                for part in [tensor] if tensor.name == ROPE_FACTORS else architecture.renamed(tensor):
                    if part.name in stored:
                        raise damaged(file, "has a tensor twice")
                    stored[part.name] = part
    assert architecture is not None
    return GGUF(Values(files[0], said), stored, architecture)
