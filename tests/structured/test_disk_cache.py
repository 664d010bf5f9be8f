"""Grammars kept on disk: the same answers, bounded, and never in the way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unmask.errors import UnmaskError
from unmask.structured import grammars
from unmask.structured.effort import Effort
from unmask.structured.grammar import Grammar
from unmask.structured.grammars import Grammars, RegexRule, Rule, SchemaRule
from unmask.structured.vocabulary import Vocabulary

SPELLED: list[bytes | None] = [None, *(bytes([code]) for code in range(32, 127)), b"aa", b'{"']
VOCABULARY = Vocabulary(SPELLED, frozenset([0]))
RULES = [RegexRule("[ab]{2,5}"), SchemaRule('{"type":"integer"}'), SchemaRule('{"enum":["a","b"]}')]


@pytest.fixture(autouse=True)
def _keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "LONG", 0.0)


def never() -> Effort:
    raise AssertionError("compiled again")


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_what_is_read_answers_alike(tmp_path: Path, rule: Rule, ends: bool) -> None:
    vocabulary = VOCABULARY if ends else Vocabulary(SPELLED)
    made = Grammars(lambda: vocabulary, lambda: tmp_path).get(rule)
    read = Grammars(lambda: vocabulary, lambda: tmp_path).get(rule, never)
    assert read is not made
    assert read.shortest == made.shortest
    assert read.what == made.what
    for length in range(made.shortest, 6):
        ids = np.zeros(length, np.int64)
        is_open = np.ones(length, bool)
        assert (read.allowed_at(ids, is_open) == made.allowed_at(ids, is_open)).all()
        assert (read.allowed(read.start, length) == made.allowed(made.start, length)).all()


def test_other_rules_and_vocabularies_are_others(tmp_path: Path) -> None:
    Grammars(lambda: VOCABULARY, lambda: tmp_path).get(RULES[0])
    others = [(VOCABULARY, RegexRule("[ab]{2,4}")), (VOCABULARY, SchemaRule("[ab]{2,5}"))]
    others += [(Vocabulary([*SPELLED, b"ab"], frozenset([0])), RULES[0]), (Vocabulary(SPELLED), RULES[0])]
    for vocabulary, rule in others:
        with pytest.raises(AssertionError, match="compiled again"):
            Grammars(lambda: vocabulary, lambda: tmp_path).get(rule, never)  # noqa: B023


@pytest.mark.parametrize("harm", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_file_is_compiled_again(tmp_path: Path, harm: bytes | None) -> None:
    Grammars(lambda: VOCABULARY, lambda: tmp_path).get(RULES[0])
    (path,) = tmp_path.glob("*.npz")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(whole) if harm is None else harm)
    again = Grammars(lambda: VOCABULARY, lambda: tmp_path).get(RULES[0])
    assert again.shortest == 1
    assert not again.allowed(again.start, 1)[0]


def no_home() -> Path:
    raise UnmaskError("there is no home folder")


@pytest.mark.parametrize("folder", [no_home, lambda: Path("/dev/null/folder")])
def test_without_a_folder_grammars_are_compiled(folder: Callable[[], Path]) -> None:
    assert isinstance(Grammars(lambda: VOCABULARY, folder).get(RULES[0]), Grammar)


def test_files_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "KEPT_FILES", 3)
    held = Grammars(lambda: VOCABULARY, lambda: tmp_path)
    for size in range(1, 8):
        held.get(RegexRule(f"a{{{size}}}"))
    assert len(list(tmp_path.glob("*"))) == 3
