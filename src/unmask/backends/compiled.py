"""What both compiled backends of a CPU share: their logits, and the folder that keeps what was compiled.

Shapes: N scored rows, V vocabulary, V' tokens that a draft can propose.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from unmask.canvas import Array
from unmask.checkpoints import hub as pull
from unmask.decoding.feed import Sampling
from unmask.decoding.sampling import Scores, propose, warmed
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from unmask.checkpoints.loading import Loaded

KEY_LENGTH = 12
HASHED = 64 << 20  # bytes of a file that are read for its name in the cache, some 30 ms; larger ones go by their time


class Compiled(Protocol):
    """A compiled network, as its logits need it."""

    config: ModelConfig
    vocabulary: Array | None

    def chain(self, state: Array, before: Array, token: Array) -> tuple[Array, Array]:
        """States [n, D] and logits [n, V'] of slots whose own are `state` [n, D], told `token` [n] and the states
        `before` [n, D] that it was chosen by."""
        ...


class CompiledLogits:
    """Logits of text rows [N, V] and of draft rows [M, V'], in the order of the feed's scored rows; final states of
    the text rows (of draft rows where there are no others) and of the feed's slots."""

    def __init__(
        self, network: Compiled, text: Array, drafts: Array, of_draft: Array, states: Array, slots: Array
    ) -> None:
        self.network, self.parts, self.of_draft = network, (text, drafts), of_draft
        self.states, self.slots = states, slots
        self.vocabulary, self.size = network.vocabulary, network.config.vocab_size

    def told(self, slot: Array, before: CompiledLogits, row: Array, token: Array) -> CompiledLogits:
        """See `decoding.feed.Logits`."""
        return self._told(self.network.chain(self.slots[slot], before.states[before.place(row)], token))

    def _told(self, made: tuple[Array, Array]) -> CompiledLogits:
        states, logits = made
        return type(self)(self.network, self.parts[0][:0], logits, np.ones(len(states), bool), states, self.slots)

    def place(self, row: Array) -> Array:
        """Where rows [n] of the scored ones stand among the states."""
        return row - self.of_draft.cumsum()[row] if len(self.parts[0]) else row

    def propose(self, sampling: Sampling) -> Scores:
        """See `decoding.sampling.propose`."""
        if not self.of_draft.any():
            return self._propose(self.parts[0], sampling)
        where = [(~self.of_draft).nonzero()[0], self.of_draft.nonzero()[0]]
        halves = []
        for logits, index in zip(self.parts, where, strict=True):
            if len(index):
                halves.append((index, self._propose(logits, sampling.rows(index))))
        if len(halves) == 2:
            halves[1] = (where[1], self._named(halves[1][1]))
        elif len(where[1]):
            return self._named(halves[0][1])
        if len(halves) == 1:
            return halves[0][1]
        order = np.argsort(np.concatenate(where), kind="stable")
        fields = zip(*(vars(scores).values() for _, scores in halves), strict=True)
        return Scores(*(np.concatenate(pair)[order] for pair in fields))

    def _propose(self, logits: Array, sampling: Sampling) -> Scores:
        return propose(logits, *sampling.columns(), None)

    def _named(self, scores: Scores) -> Scores:
        assert self.vocabulary is not None
        return Scores(self.vocabulary[scores.token], scores.confidence, scores.entropy, scores.margin, scores.draw)

    def probabilities(self, index: Array, sampling: Sampling) -> Array:
        """Float64 distributions [len(index), V] that rows are sampled from."""
        out, place = np.zeros((len(index), self.size)), self.of_draft.cumsum()
        for n, row in enumerate(index.tolist()):
            drafted = bool(self.of_draft[row])
            logits = self.parts[drafted][[place[row] - 1 if drafted else row - place[row]]]
            one = sampling.rows(np.array([n]))
            warm = warmed(logits, one.temperature, one.top_k, one.top_p)[0]
            p = np.exp(warm - warm.max())
            out[n, self.vocabulary if drafted else slice(None)] = p / p.sum()
        return out

    def odds(self, index: Array, tokens: Array) -> Array:
        """See `decoding.feed.Logits`; of rows of text, the only ones that check."""
        rows = self.parts[0][index - self.of_draft.cumsum()[index]]
        gap: Array = rows[np.arange(len(index)), tokens].astype(np.float64) - rows.max(-1)
        return np.exp(gap)

    def restrict(self, index: Array, allowed: Array) -> Array:
        """See `decoding.feed.Logits`; of drafts only their own vocabulary counts."""
        possible, place = np.ones(len(index), bool), self.of_draft.cumsum()
        for n, row in enumerate(index.tolist()):
            drafted = bool(self.of_draft[row])
            logits = self.parts[drafted][place[row] - 1 if drafted else row - place[row]]
            own = allowed[n, self.vocabulary] if drafted and self.vocabulary is not None else allowed[n]
            possible[n] = own.any()
            if possible[n]:
                np.putmask(logits, ~own, -np.inf)
        return possible


def compiled_folder(loaded: Loaded, backend: str, version: Any) -> Path:
    """Where a backend keeps a model in the user's cache: a name that changes with whatever the folder is made of,
    the weights and those of the base by name, size and content (or time, where that is long to read)."""
    parts: list[Any] = [version, loaded.config.to_dict()]
    for path in (loaded.path, loaded.base_path):
        if path is not None:
            files = (
                [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".gguf"))
            )
            parts += [(file.name, file.stat().st_size, _content(file)) for file in files]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:KEY_LENGTH]
    return pull.cache() / "compiled" / f"{loaded.name}-{backend}-{key}"


def _content(file: Path) -> str | int:
    """What changes with a file's bytes: copies of one checkpoint, as of two environments, share what was compiled."""
    stat = file.stat()
    return hashlib.sha256(file.read_bytes()).hexdigest() if stat.st_size <= HASHED else stat.st_mtime_ns


def remove_older(where: Path) -> None:
    """Removes what the same backend compiled of a model's earlier weights: hundreds of megabytes each."""
    for old in where.parent.glob(f"{where.name[:-KEY_LENGTH]}{'?' * KEY_LENGTH}"):
        shutil.rmtree(old, ignore_errors=True)
