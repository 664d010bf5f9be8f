"""From tokens to training rows: packed with document isolation, whole or cut; a row is a function of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from unmask.errors import UnmaskError
from unmask.layout import PADDING
from unmask.objectives.objective import EosPolicy, Rows
from unmask.training.token_file import Tokens
from unmask.training.tokenizer import TokenizerKind

Overlong = Literal["refuse", "cut", "drop"]


@dataclass(frozen=True)
class DataConfig:
    """Where the text is and how it becomes rows.

    files are paths, folders or globs; text files are one document each unless `split` (a regular expression) says where
    new documents begin; `dialogues` are shards of token ids that `unmask adapt` writes. JSONL and Parquet rows hold
    `text`, or `prompt` and `response` (the prompt is given, the response learned), or `messages` (answers are learned);
    rows of `canvases` hold `canvas` and `given` (the same with "." where a token is to be learned).
    """

    files: tuple[str, ...]
    validation: tuple[str, ...] = ()
    format: Literal["auto", "text", "jsonl", "parquet", "dialogues", "canvases"] = "auto"  # auto: by a file's ending
    columns: dict[str, str] = field(default_factory=dict)  # text, prompt, response, messages, tools: their names there
    split: str = ""
    tokenizer: TokenizerKind = "bpe"
    tokenizer_file: str = ""  # take this tokenizer.json instead of making one
    eos_token: str = ""  # its end of text, where its own files name none
    mask_token: str = ""  # its mask
    vocab_size: int = 4096
    length: int = 512
    packed: bool = True  # false: every document has rows of its own, padded
    whole: bool = False  # packed rows hold whole documents only
    answer_block: int = 0  # whole: answers start blocks of so many positions and fill their last with ends; 0: none
    overlong: Overlong = "refuse"  # documents of which a row holds nothing to learn (whole: longer than a row)
    cut: float = 0.0  # share of rows cut in two documents at a random place, so that short canvases are familiar too


def make_rows(
    tokens: Tokens, config: DataConfig, seed: int, eos_policy: EosPolicy, eos: int
) -> Corpus | WholeDocuments:
    """The rows of a corpus as the config packs them."""
    if config.whole:
        return WholeDocuments(tokens, config, seed, eos)
    return Corpus(tokens, config, seed, eos_policy, eos)


class Corpus:
    """Tokens as one long ring, cut into rows anew each epoch, or documents padded to rows."""

    def __init__(self, tokens: Tokens, config: DataConfig, seed: int, eos_policy: EosPolicy, eos: int) -> None:
        self.tokens = tokens
        self.config = config
        self.seed = seed
        self.eos_policy = eos_policy
        self.eos = eos
        self.note = ""
        self.epoch: tuple[int, np.ndarray, int] = (-1, np.empty(0, np.int64), 0)
        self.numbers = np.arange(tokens.documents)  # documents that have rows, unpacked
        if config.packed and len(tokens.ids) < config.length:
            raise UnmaskError(
                f"the corpus has {len(tokens.ids)} tokens, less than a row of {config.length}; lower data.length"
            )
        if not config.packed:
            self.numbers, self.note = kept_documents(tokens, config, lambda n: teaches(tokens, n, config.length))

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return -(-len(self.tokens.ids) // self.config.length) if self.config.packed else len(self.numbers)

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
        row = int(order[place])
        length = self.config.length
        if not self.config.packed:
            return self._padded(int(self.numbers[row]))
        turn, where = np.divmod(offset + row * length + np.arange(length), len(self.tokens.ids))
        documents = len(self.tokens.starts)
        document = self.tokens.document_at(where) + turn * documents  # its end never sees its start
        own = np.random.default_rng([self.seed, epoch, row])
        if own.random() < self.config.cut:
            document[own.integers(1, length) :] += documents  # same text, no longer in sight
        return self.tokens.ids[where], document, self.tokens.learned[where]

    def _padded(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        length = self.config.length
        piece, learned = fitted(*self.tokens.document(number), length, self.config.overlong)
        ids = np.full(length, self.eos, np.int32)
        document = np.full(length, PADDING, np.int32)
        supervised = np.zeros(length, bool)
        used = len(piece)
        ids[:used] = piece
        document[:used] = 0
        supervised[:used] = learned
        if self.eos_policy == "learn":  # padding is EOS, attended and learned (LLaDA)
            document[:] = 0
            supervised[used:] = True
        return ids, document, supervised


class WholeDocuments:
    """Rows of whole documents: as many as fit, and none is cut.

    With `answer_block` n, an answer starts a block of n positions (positions count from n minus the length of what is
    given before it, modulo n) and ends of text, which are learned, fill its last block: what a block-causal model is
    asked for when its blocks count from the prompt's end.
    """

    def __init__(self, tokens: Tokens, config: DataConfig, seed: int, eos: int) -> None:
        self.tokens = tokens
        self.config = config
        self.seed = seed
        self.eos = eos
        self.block = config.answer_block
        numbers, self.note = kept_documents(tokens, config, self._fits)
        self.groups = self._pack(numbers)
        self.order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def _fits(self, number: int) -> bool:
        return self._size(number) <= self.config.length and bool(self.tokens.document(number)[1].any())

    def _given(self, number: int) -> int:
        """Tokens before the first that is learned."""
        learned = self.tokens.document(number)[1]
        return int(learned.argmax()) if learned.any() else len(learned)

    def _size(self, number: int) -> int:
        size = int(self.tokens.starts[number + 1] - self.tokens.starts[number])
        return size + (-(size - self._given(number)) % self.block if self.block else 0)

    def _document(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and what is learned, with the ends of text that fill the last block."""
        ids, learned = self.tokens.document(number)
        if self._size(number) > self.config.length:
            room = self.config.length - (self.block or 0)
            ids, learned = fitted(ids, learned, room, "cut")
        given = int(learned.argmax())
        ends = -(len(ids) - given) % self.block if self.block else 0
        return np.concatenate([ids, np.full(ends, self.eos, np.int32)]), np.concatenate([learned, np.ones(ends, bool)])

    def _pack(self, numbers: np.ndarray) -> list[list[int]]:
        groups: list[list[int]] = [[]]
        room = self.config.length
        for place in np.random.default_rng([self.seed, 7]).permutation(len(numbers)).tolist():
            number = int(numbers[place])
            size = min(self._size(number), self.config.length)
            if size > room:
                groups.append([])
                room = self.config.length
            groups[-1].append(number)
            room -= size
        return groups

    @property
    def num_rows(self) -> int:
        """Rows of one epoch."""
        return len(self.groups)

    def rows(self, first: int, count: int) -> Rows:
        """Rows number first .. first + count of the endless shuffled stream."""
        shape = (count, self.config.length)
        ids = np.full(shape, self.eos, np.int64)
        document = np.full(shape, PADDING, np.int64)
        position = np.zeros(shape, np.int64)
        supervised = np.zeros(shape, bool)
        for row, index in enumerate(range(first, first + count)):
            start = 0
            for place, number in enumerate(self._group(index)):
                piece, learned = self._document(number)
                end = start + len(piece)
                ids[row, start:end] = piece
                document[row, start:end] = place
                offset = -int(learned.argmax()) % self.block if self.block else 0
                position[row, start:end] = np.arange(len(piece)) + offset
                supervised[row, start:end] = learned
                start = end
        return Rows(
            ids=torch.from_numpy(ids),
            document=torch.from_numpy(document),
            position=torch.from_numpy(position),
            supervised=torch.from_numpy(supervised),
        )

    def _group(self, index: int) -> list[int]:
        epoch, place = divmod(index, self.num_rows)
        if self.order[0] != epoch:
            self.order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_rows))
        return self.groups[int(self.order[1][place])]


def teaches(tokens: Tokens, number: int, length: int) -> bool:
    """Whether the first `length` tokens of a document hold something to learn."""
    return bool(tokens.document(number)[1][:length].any())


def fitted(ids: Any, learned: Any, length: int, policy: Overlong) -> tuple[Any, Any]:
    """A document's tokens that a row holds: its first, or under `cut` its last answer with what fits before it."""
    if policy != "cut" or len(ids) <= length:
        return ids[:length], learned[:length]
    answer = len(learned) - int(np.argmin(learned[::-1])) if not learned.all() else 0  # start of the last answer
    start = max(0, min(answer - 1, len(ids) - length))
    return ids[start : start + length], learned[start : start + length]


def kept_documents(tokens: Tokens, config: DataConfig, fits: Callable[[int], bool]) -> tuple[np.ndarray, str]:
    """The documents that get rows and a line about the others; raises UnmaskError where they are refused or all go."""
    good = np.array([fits(number) for number in range(tokens.documents)], bool)
    bad = np.flatnonzero(~good)
    if not len(bad):
        return np.arange(tokens.documents), ""
    shown = ", ".join(str(number + 1) for number in bad[:5].tolist()) + (" ..." if len(bad) > 5 else "")
    why = "are longer than" if config.whole else "have nothing to learn within"
    what = f"{len(bad)} of {tokens.documents} documents {why} a row of {config.length} (number {shown})"
    if config.overlong == "refuse":
        raise UnmaskError(f"{what}; raise data.length, or set data.overlong to cut or drop")
    if config.overlong == "cut":
        return np.arange(tokens.documents), f"{what}: cut to their last answer"
    if len(bad) == tokens.documents:
        raise UnmaskError(f"{what}: dropped, none is left; raise data.length")
    return np.flatnonzero(good), f"{what}: dropped"
