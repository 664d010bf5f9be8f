"""Tokenised corpora: arrays in memory, or memory-mapped files that processes and runs share."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from unmask.checkpoints.hub import cache
from unmask.files import replacing
from unmask.training.documents import Documents
from unmask.training.framing import Framing, Ids, Learned

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VERSION = 1  # of how documents become ids; another one makes new files
SMALL = 2**23  # bytes of a corpus that is tokenised in memory, every time


@dataclass(frozen=True)
class Tokens:
    """Ids of all documents one after another [N], which are learned [N], and where each begins, N at the end."""

    ids: Ids
    learned: Learned
    starts: np.ndarray[Any, np.dtype[np.int64]]

    @staticmethod
    def of(pieces: Iterator[tuple[Ids, Learned]]) -> Tokens:
        """In memory."""
        listed = list(pieces)
        sizes = [len(ids) for ids, _ in listed]
        ids = np.concatenate([ids for ids, _ in listed]) if listed else np.empty(0, np.int32)
        learned = np.concatenate([learned for _, learned in listed]) if listed else np.empty(0, bool)
        return Tokens(ids, learned, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    @property
    def documents(self) -> int:
        return len(self.starts) - 1

    def document(self, number: int) -> tuple[Ids, Learned]:
        piece = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return self.ids[piece], self.learned[piece]

    def document_at(self, index: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Which document each token is of."""
        return np.searchsorted(self.starts, index, side="right") - 1


def tokenise(documents: Documents, framing: Framing) -> Tokens:
    """The tokens of a corpus. A large one is tokenised once, in chunks, into files that are named after its content,
    its tokenizer and its template; other processes that want them wait meanwhile."""
    if documents.size() < SMALL:
        return Tokens.of(framing.pieces(documents))
    key = hashlib.sha256(repr((VERSION, documents.fingerprint(), framing.describe())).encode()).hexdigest()[:32]
    folder = cache() / "tokens" / key
    with locked(folder.parent / f"{key}.lock", wait=True):
        if not folder.is_dir():
            _write(folder, framing.pieces(documents))
    return Tokens(
        ids=np.memmap(folder / "ids.bin", np.int32, "r"),
        learned=np.memmap(folder / "learned.bin", np.bool_, "r"),
        starts=np.fromfile(folder / "starts.bin", np.int64),
    )


def _write(folder: Path, pieces: Iterator[tuple[Ids, Learned]]) -> None:
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a run that was killed
        shutil.rmtree(stale, ignore_errors=True)
    with replacing(folder) as made:
        made.mkdir(parents=True)
        starts = [0]
        with (made / "ids.bin").open("wb") as ids_file, (made / "learned.bin").open("wb") as learned_file:
            for ids, learned in pieces:
                ids_file.write(ids.astype(np.int32).tobytes())
                learned_file.write(learned.astype(np.bool_).tobytes())
                starts.append(starts[-1] + len(ids))
        np.asarray(starts, np.int64).tofile(made / "starts.bin")


def locked(path: Path, wait: bool) -> IO[str]:
    """A file that only one process of this machine has, until it is closed; BlockingIOError where there is no wait.

    On Windows any process gets it: two may do the same work, of which one result stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    return file
