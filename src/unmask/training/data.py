"""From files to training rows: read with `datasets`, tokenise, pack with document isolation."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from unmask.errors import UnmaskError
from unmask.layout import PADDING
from unmask.objectives.masked import EosPolicy, Rows
from unmask.training.tokenizer import EOS, MASK, TokenizerKind


@dataclass(frozen=True)
class DataConfig:
    """Where the text is and how it becomes rows.

    files are globs; text files are one document each unless `split` (a regular expression) says where
    new documents begin; `dialogues` are shards of token ids that `unmask adapt` writes. JSONL and Parquet
    rows hold `text`, or `prompt` and `response` (the prompt is given, the response learned). cut: share of
    rows cut in two documents at a random place, so that short canvases are familiar too. packed: false gives
    every document rows of its own, padded.
    """

    files: tuple[str, ...]
    validation: tuple[str, ...] = ()
    format: Literal["text", "jsonl", "parquet", "dialogues"] = "text"
    split: str = ""
    tokenizer: TokenizerKind = "bpe"
    tokenizer_file: str = ""  # take this tokenizer.json instead of making one
    vocab_size: int = 4096
    length: int = 512
    packed: bool = True
    cut: float = 0.0


@dataclass(frozen=True)
class Document:
    """A text and, before it, a prompt that is given and not learned."""

    text: str
    prompt: str = ""


def read_documents(patterns: tuple[str, ...], config: DataConfig) -> list[Document]:
    """All documents of the files; a missing, empty or undecodable corpus raises UnmaskError."""
    import datasets

    paths = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise UnmaskError(f"corpus '{pattern}': no such file; check `data.files` in the recipe")
        paths += found
    for path in paths:
        if config.format != "parquet":
            _check_text(Path(path))
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    kinds = {"text": ("text", {"sample_by": "document"}), "jsonl": ("json", {}), "parquet": ("parquet", {})}
    builder, options = kinds[config.format]
    documents = []
    for path in paths:
        try:
            table: Any = datasets.load_dataset(builder, data_files=glob.escape(path), split="train", **options)
        except Exception as error:  # datasets wraps every parser's own exceptions
            reason = [*str(error.__cause__ or error).splitlines(), "no rows in it"][0]
            raise UnmaskError(f"corpus {path}: not readable as {config.format} ({reason})") from None
        documents += [d for record in table for d in _documents(record, config, path)]
    if not any(d.text.strip() for d in documents):
        raise UnmaskError(f"corpus {', '.join(paths)}: no text in it; an empty corpus cannot be trained on")
    return documents


def _check_text(path: Path) -> None:
    if path.is_dir():
        raise UnmaskError(f"corpus {path}: is a folder; name its files, for example '{path}/*.txt'")
    with path.open("rb") as file:
        head = file.read(65536)
    try:
        head[: len(head) - 4].decode("utf-8") if len(head) > 4 else head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) - 8:
            raise UnmaskError(f"corpus {path}: not UTF-8 text (byte {error.start}); convert it first") from None
    if b"\0" in head:
        raise UnmaskError(f"corpus {path}: holds zero bytes, so it is not text")


def _documents(record: dict[str, Any], config: DataConfig, source: str) -> Iterator[Document]:
    if isinstance(record.get("text"), str):
        yield from (Document(piece.strip()) for piece in _split(record["text"], config.split) if piece.strip())
    elif isinstance(record.get("prompt"), str) and isinstance(record.get("response"), str):
        yield Document(record["response"], record["prompt"])
    else:
        raise UnmaskError(f"corpus {source}: a row needs 'text', or 'prompt' and 'response'; found {sorted(record)}")


def _split(text: str, pattern: str) -> list[str]:
    """The text cut before every line-anchored match of the pattern."""
    try:
        starts = [m.start() for m in re.finditer(pattern, text, re.MULTILINE)] if pattern else []
    except re.error as error:
        raise UnmaskError(f"data.split '{pattern}' is not a regular expression ({error})") from None
    return [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]


class Corpus:
    """Tokens as one long ring, cut into rows anew each epoch, or documents padded to rows.

    Which row comes when is a function of (seed, index) alone, so a resumed run goes on where it was.
    """

    def __init__(self, documents: list[Document], tokenizer: Tokenizer, config: DataConfig, seed: int, eos: EosPolicy):
        self.config, self.seed, self.eos_policy = config, seed, eos
        self.epoch: tuple[int, np.ndarray, int] = (-1, np.empty(0, np.int64), 0)
        self.eos = tokenizer.token_to_id(EOS)
        if self.eos is None:
            raise UnmaskError(f"the tokenizer has no '{EOS}' token to end documents with")
        texts = tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False)
        prompts = tokenizer.encode_batch([d.prompt for d in documents], add_special_tokens=False)
        self.characters = sum(len(d.text) for d in documents)
        pieces = [[self.eos, *p.ids, *t.ids, self.eos] for p, t in zip(prompts, texts, strict=True)]
        given = [len(p.ids) + (1 if p.ids else 0) for p in prompts]
        self.starts = np.cumsum([0] + [len(p) for p in pieces])
        self.tokens = np.concatenate([np.asarray(p, np.int32) for p in pieces])
        self.document = np.repeat(np.arange(len(pieces), dtype=np.int32), [len(p) for p in pieces])
        mask = tokenizer.token_to_id(MASK)
        if mask is not None and (self.tokens == mask).any():
            raise UnmaskError(f"the corpus holds the text '{MASK}', which is the mask token; take it out")
        self.supervised = np.ones(len(self.tokens), bool)
        for start, length in zip(self.starts, given, strict=False):
            self.supervised[start : start + length] = False
        if config.packed and len(self.tokens) < config.length:
            raise UnmaskError(
                f"the corpus has {len(self.tokens)} tokens, less than a row of {config.length}; lower data.length"
            )

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return -(-len(self.tokens) // self.config.length) if self.config.packed else len(self.starts) - 1

    def rows(self, first: int, count: int) -> Rows:
        """Rows number first .. first + count of the endless shuffled stream."""
        picked = [self._row(index) for index in range(first, first + count)]
        ids, document, supervised = (np.stack(x) for x in zip(*picked, strict=True))
        return Rows.of(torch.from_numpy(ids).long(), torch.from_numpy(document).long(), torch.from_numpy(supervised))

    def _row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, place = divmod(index, self.num_rows)
        if self.epoch[0] != epoch:  # a new order and a new place to begin cutting
            rng = np.random.default_rng([self.seed, epoch])
            self.epoch = (epoch, rng.permutation(self.num_rows), int(rng.integers(self.config.length)))
        _, order, offset = self.epoch
        row, length = int(order[place]), self.config.length
        if not self.config.packed:
            return self._padded(row)
        turn, where = np.divmod(offset + row * length + np.arange(length), len(self.tokens))
        document = self.document[where] + turn.astype(np.int32) * len(self.starts)  # its end never sees its start
        own = np.random.default_rng([self.seed, epoch, row])
        if own.random() < self.config.cut:
            document[own.integers(1, length) :] += len(self.starts)  # same text, no longer in sight
        return self.tokens[where], document, self.supervised[where]

    def _padded(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        length, piece = self.config.length, slice(self.starts[number], self.starts[number + 1])
        ids, document = np.full(length, self.eos, np.int32), np.full(length, PADDING, np.int32)
        supervised = np.zeros(length, bool)
        used = min(length, piece.stop - piece.start)
        ids[:used], document[:used] = self.tokens[piece][:used], 0
        supervised[:used] = self.supervised[piece][:used]
        if self.eos_policy == "learn":  # padding is EOS, attended and learned (LLaDA)
            document[:], supervised[used:] = 0, True
        return ids, document, supervised
