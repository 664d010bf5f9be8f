"""From tokens to training rows: packed with document isolation, whole or cut; a row is a function of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from unmask.decoding.options import option
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
    length: int = option(512, ge=2)
    packed: bool = True  # false: every document has rows of its own, padded
    whole: bool = False  # packed rows hold whole documents only
    answer_block: int = option(0, ge=0)  # whole: answers start blocks of so many positions, filled with ends; 0: none
    overlong: Overlong = "refuse"  # documents of which a row holds nothing to learn (whole: longer than a row)
    cut: float = option(0.0, ge=0, le=1)  # share of rows cut in two at a random place, to know short canvases too


def make_rows(tokens: Tokens, config: DataConfig, seed: int, eos_policy: EosPolicy, eos: int) -> Stream:
    """The rows of a corpus as the config packs them."""
    if config.whole:
        return WholeDocuments(tokens, config, seed, eos)
    return Corpus(tokens, config, seed, eos_policy, eos)


class Stream:
    """Endless rows of `config.length` tokens, shuffled anew each epoch; padding is eos.

    Which row comes when is a function of (seed, index) alone, so a resumed run goes on where it was.
    """

    num_rows: int  # of one epoch
    note = ""  # about documents that have no rows, or are cut

    def __init__(self, tokens: Tokens, config: DataConfig, seed: int, eos: int) -> None:
        self.tokens = tokens
        self.config = config
        self.seed = seed
        self.eos = eos
        self.epoch = -1

    def shuffle(self, rng: np.random.Generator) -> None:
        """Begins an epoch, whose generator is given."""
        raise NotImplementedError

    def pieces(self, place: int) -> Iterable[tuple[Any, Any, int]]:
        """Documents of a row of this epoch, one after another: ids, which are learned, and the first one's position."""
        raise NotImplementedError

    def rows(self, first: int, count: int) -> Rows:
        """Rows number first .. first + count."""
        shape = (count, self.config.length)
        ids = np.full(shape, self.eos, np.int64)
        document = np.full(shape, PADDING, np.int64)
        position = np.zeros(shape, np.int64)
        supervised = np.zeros(shape, bool)
        for row, index in enumerate(range(first, first + count)):
            epoch, place = divmod(index, self.num_rows)
            if self.epoch != epoch:
                self.epoch = epoch
                self.shuffle(np.random.default_rng([self.seed, epoch]))
            start = 0
            for number, (piece, learned, offset) in enumerate(self.pieces(place)):
                span = slice(start, start + len(piece))
                ids[row, span] = piece
                document[row, span] = number
                position[row, span] = np.arange(offset, offset + len(piece))
                supervised[row, span] = learned
                start = span.stop
        return Rows(*(torch.from_numpy(column) for column in (ids, document, position, supervised)))


class Corpus(Stream):
    """Tokens as one long ring, cut into rows anew each epoch, or documents padded to rows."""

    def __init__(self, tokens: Tokens, config: DataConfig, seed: int, eos_policy: EosPolicy, eos: int) -> None:
        super().__init__(tokens, config, seed, eos)
        self.eos_policy = eos_policy
        if not config.packed:
            self.numbers, self.note = kept_documents(tokens, config, self._teaches)
        elif len(tokens.ids) < config.length:
            raise UnmaskError(
                f"the corpus has {len(tokens.ids)} tokens, less than a row of {config.length}; lower data.length"
            )
        self.num_rows = -(-len(tokens.ids) // config.length) if config.packed else len(self.numbers)

    def shuffle(self, rng: np.random.Generator) -> None:
        self.order = rng.permutation(self.num_rows)
        self.offset = int(rng.integers(self.config.length))  # where cutting begins

    def pieces(self, place: int) -> Iterable[tuple[Any, Any, int]]:
        row = int(self.order[place])
        if not self.config.packed:
            return [self._padded(int(self.numbers[row]))]
        length = self.config.length
        turn, where = np.divmod(self.offset + row * length + np.arange(length), len(self.tokens.ids))
        documents = len(self.tokens.starts)
        document = self.tokens.document_at(where) + turn * documents  # its end never sees its start
        own = np.random.default_rng([self.seed, self.epoch, row])
        if own.random() < self.config.cut:
            document[own.integers(1, length) :] += documents  # same text, no longer in sight
        parts = np.split(where, np.flatnonzero(np.diff(document)) + 1)
        return [(self.tokens.ids[part], self.tokens.learned[part], 0) for part in parts]

    def _teaches(self, number: int) -> bool:
        return bool(self.tokens.document(number)[1][: self.config.length].any())

    def _padded(self, number: int) -> tuple[Any, Any, int]:
        ids, learned = fitted(*self.tokens.document(number), self.config.length, self.config.overlong)
        if self.eos_policy == "learn":  # padding is EOS, attended and learned (LLaDA)
            ids, learned = ended(ids, learned, self.config.length - len(ids), self.eos)
        return ids, learned, 0


class WholeDocuments(Stream):
    """Rows of whole documents: as many as fit, and none is cut.

    With `answer_block` n, an answer starts a block of n positions (positions count from n minus the length of what is
    given before it, modulo n) and ends of text, which are learned, fill its last block: what a block-causal model is
    asked for when its blocks count from the prompt's end.
    """

    def __init__(self, tokens: Tokens, config: DataConfig, seed: int, eos: int) -> None:
        super().__init__(tokens, config, seed, eos)
        self.block = config.answer_block
        self.numbers, self.note = kept_documents(tokens, config, self._fits)
        self.groups = self._pack(np.random.default_rng([seed, 7]))
        self.num_rows = len(self.groups)

    def _fits(self, number: int) -> bool:
        return self._size(number) <= self.config.length and bool(self.tokens.document(number)[1].any())

    def _ends(self, learned: Any) -> int:
        """Ends of text that fill the last block of a document's answer."""
        given = int(learned.argmax()) if learned.any() else len(learned)
        return -(len(learned) - given) % self.block if self.block else 0

    def _size(self, number: int) -> int:
        learned = self.tokens.document(number)[1]
        return len(learned) + self._ends(learned)

    def _pack(self, rng: np.random.Generator) -> list[list[int]]:
        """The documents of each row: taken in a shuffled order while they fit."""
        groups: list[list[int]] = [[]]
        room = self.config.length
        for number in rng.permutation(self.numbers).tolist():
            size = min(self._size(number), self.config.length)
            if size > room:
                groups.append([])
                room = self.config.length
            groups[-1].append(number)
            room -= size
        return groups

    def shuffle(self, rng: np.random.Generator) -> None:
        self.order = rng.permutation(self.num_rows)

    def pieces(self, place: int) -> Iterable[tuple[Any, Any, int]]:
        for number in self.groups[int(self.order[place])]:
            ids, learned = self.tokens.document(number)
            if self._size(number) > self.config.length:
                ids, learned = fitted(ids, learned, self.config.length - self.block, self.config.overlong)
            offset = -int(learned.argmax()) % self.block if self.block else 0
            yield *ended(ids, learned, self._ends(learned), self.eos), offset


def ended(ids: Any, learned: Any, count: int, eos: int) -> tuple[Any, Any]:
    """A document and so many ends of text, which are learned."""
    return np.concatenate([ids, np.full(count, eos, np.int32)]), np.concatenate([learned, np.ones(count, bool)])


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
