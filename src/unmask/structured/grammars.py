"""Compiled grammars of one model: made once, kept for the next request and on disk for the next process, bounded in
number and size."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from unmask.errors import UnmaskError
from unmask.files import replacing
from unmask.structured.effort import Effort
from unmask.structured.grammar import Grammar
from unmask.structured.token_automaton import TokenAutomaton
from unmask.structured.vocabulary import Vocabulary

KEPT = 256  # grammars that are kept, and their tables
KEPT_BYTES = 256 << 20
KEPT_FILES = 64
KEPT_FILE_BYTES = 256 << 20  # of all files together
LONG = 0.1  # seconds of compiling that are worth a file
ARRAYS = ("source", "kind", "target", "kind_of", "final")


@dataclass(frozen=True)
class Rule:
    """What all of a generated text has to match, by the text of the rule: its compiled grammar is found by it."""

    text: str

    def compiled(self, vocabulary: Vocabulary, effort: Effort) -> Grammar:
        raise NotImplementedError


@dataclass(frozen=True)
class RegexRule(Rule):
    """A regular expression that the whole text matches."""

    def compiled(self, vocabulary: Vocabulary, effort: Effort) -> Grammar:
        return Grammar.of_regex(self.text, vocabulary, effort)


@dataclass(frozen=True)
class SchemaRule(Rule):
    """A JSON schema that the text is valid under."""

    @staticmethod
    def of(schema: Any) -> SchemaRule:
        """schema: a dict, true, JSON text, or a class that has a `model_json_schema` (pydantic)."""
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        return SchemaRule(schema if isinstance(schema, str) else json_text(schema))

    def compiled(self, vocabulary: Vocabulary, effort: Effort) -> Grammar:
        return Grammar.of_schema(self.text, vocabulary, effort)


def json_text(value: Any) -> str:
    """JSON of a rule; members keep their order, in which they will be written. Raises UnmaskError for no JSON."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnmaskError(f"the JSON schema is not JSON: {error}") from None


class Collector:
    """Python's garbage collector, still while anything is compiled: no part of a compilation is a cycle, and each look
    at its millions of lists would stop every thread of the process for as long as half a second."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.compiling = 0
        self.was_on = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        with self.lock:
            if not self.compiling:
                self.was_on = gc.isenabled()
                gc.disable()
            self.compiling += 1
        try:
            yield
        finally:
            with self.lock:
                self.compiling -= 1
                if self.was_on and not self.compiling:
                    gc.enable()


collector = Collector()


def _compiled(rule: Rule, vocabulary: Vocabulary, effort: Effort) -> Grammar:
    with collector.paused():
        try:
            return rule.compiled(vocabulary, effort)
        except Exception as error:  # its frames hold all that was made: they go before the collector is back
            refusal = error.with_traceback(None)
            refusal.__context__ = None
    raise refusal


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
                if number >= KEPT_FILES or total > KEPT_FILE_BYTES:
                    path.unlink(missing_ok=True)


class Grammars:
    """Grammars over one vocabulary, which is read from the tokenizer when the first is asked for.

    Any thread may ask, and none waits for another's rule to be compiled. What took long to compile is kept in `folder`
    for the next process.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary], folder: Callable[[], Path] | None = None) -> None:
        self._disk = None if folder is None else DiskCache(folder)
        self._vocabulary = vocabulary
        self._known = OrderedDict[Rule, Grammar]()
        self._reading = threading.Lock()
        self._touching = threading.Lock()
        self._read: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """What the tokens spell."""
        with self._reading:
            if self._read is None:
                self._read = self._vocabulary()
            return self._read

    def find(self, rule: Rule) -> Grammar | None:
        """What is compiled already."""
        with self._touching:
            known = self._known.get(rule)
            if known is not None:
                self._known.move_to_end(rule)
        return known

    def get(self, rule: Rule, effort: Callable[[], Effort] = Effort) -> Grammar:
        """The grammar of a rule, compiled if need be. Raises UnmaskError where it costs too much or fits no text."""
        made = self.find(rule)
        if made is not None:
            return made
        vocabulary = self.vocabulary
        if self._disk is not None:
            made = self._disk.load(repr(rule), vocabulary)
        if made is None:
            began = time.thread_time()
            made = _compiled(rule, vocabulary, effort())
            if self._disk is not None and made.widest and time.thread_time() - began >= LONG:
                self._disk.save(repr(rule), vocabulary, made)
        with self._touching:
            self._known[rule] = made
            sizes = {old: len(old.text) + grammar.size for old, grammar in self._known.items()}
            while len(sizes) > 1 and (len(sizes) > KEPT or sum(sizes.values()) > KEPT_BYTES):
                oldest, _ = self._known.popitem(last=False)
                del sizes[oldest]
        return made
