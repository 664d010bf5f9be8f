"""Compiled grammars on disk, found by what they were made of, so that the next process need not compile them."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from unmask.errors import UnmaskError
from unmask.files import replacing
from unmask.structured.grammar import Grammar
from unmask.structured.token_automaton import TokenAutomaton
from unmask.structured.vocabulary import Vocabulary

KEPT = 64  # files
KEPT_BYTES = 256 << 20  # of all files together
ARRAYS = ("source", "kind", "target", "kind_of", "final")


@cache
def _sources() -> bytes:
    """A digest of the code that compiles: what another version made is not read."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


class DiskCache:
    """A folder of compiled grammars, bounded in number and size; whatever goes wrong with it, a grammar is compiled."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self.folder = folder

    def _path(self, rule: str, vocabulary: Vocabulary) -> Path:
        digest = hashlib.sha256(_sources() + vocabulary.digest + rule.encode(errors="surrogatepass"))
        return self.folder() / f"{digest.hexdigest()[:40]}.npz"

    def load(self, rule: str, vocabulary: Vocabulary) -> Grammar | None:
        """The grammar of a rule, None where it is not kept."""
        try:
            path = self._path(rule, vocabulary)
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ARRAYS}
                what = str(file["what"])
            os.utime(path)
        except (UnmaskError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        kinds = int(arrays["kind_of"].max(initial=0)) + 1
        automaton = TokenAutomaton(**arrays, kinds=max(kinds, int(arrays["kind"].max(initial=0)) + 1))
        return Grammar(automaton, what, vocabulary)

    def save(self, rule: str, vocabulary: Vocabulary, grammar: Grammar) -> None:
        """Keeps a grammar, and drops those that were not asked for the longest."""
        arrays = {name: getattr(grammar.automaton, name) for name in ARRAYS}
        with suppress(UnmaskError, OSError):
            with replacing(self._path(rule, vocabulary)) as temporary, temporary.open("wb") as file:
                np.savez(file, what=np.array(grammar.what), **arrays)
            files = sorted(self.folder().glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
            total = 0
            for number, path in enumerate(files):
                total += path.stat().st_size
                if number >= KEPT or total > KEPT_BYTES:
                    path.unlink(missing_ok=True)
