"""Compiling and packing let other threads run: whatever a rule, a vocabulary or a model is, nobody waits long."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from unmask import DiffusionLM
from unmask.backends import refusal
from unmask.serving.server import SWITCH_SECONDS
from unmask.structured.effort import Effort, TooLarge
from unmask.structured.grammars import Grammars, RegexRule, Rule, SchemaRule
from unmask.structured.vocabulary import Vocabulary, byte_letters

MOST_SECONDS = 0.1
SIZE = 150_000
NAMES = [f"n{i}" for i in range(5000)]
BOUNDED = {"type": "string", "maxLength": 400}
RULES: dict[str, Rule] = {
    "an enumeration": SchemaRule.of({"enum": NAMES}),
    "long names": SchemaRule.of({"enum": [f"{n}{'x' * 50}{n}" for n in NAMES]}),
    "bounded strings": SchemaRule.of({"type": "object", "properties": dict.fromkeys(NAMES[:6], BOUNDED)}),
    "many states": RegexRule("(a|b)*a" + "(a|b)" * 400),
}


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    """Threads take turns as often as in a server."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    yield
    sys.setswitchinterval(before)


def held(call: Callable[[], Any]) -> float:
    """The longest that a call computed while this thread waited, in seconds of the call's own work, which other
    processes do not change much."""
    over = threading.Event()

    def work() -> None:
        time.sleep(0.05)
        call()
        over.set()
        time.sleep(0.05)  # its clock is read once more

    thread = threading.Thread(target=work)
    thread.start()
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    longest = 0.0
    while not over.is_set():
        before = time.clock_gettime(clock)
        time.sleep(0.0005)
        longest = max(longest, time.clock_gettime(clock) - before)
    thread.join()
    return longest


@cache
def tokenizer() -> Tokenizer:
    """As many tokens as large vocabularies have."""
    draw = random.Random(0)
    words = {letter: byte for byte, letter in byte_letters().items()}
    while len(words) < SIZE:
        words.setdefault("".join(draw.choices("abcdefghn", k=draw.randint(2, 9))), len(words))
    made = Tokenizer(WordLevel(words, unk_token="a"))
    made.decoder = decoders.ByteLevel()
    return made


def test_a_call_that_keeps_the_interpreter_is_seen() -> None:
    assert held(lambda: sorted(range(4_000_000, 0, -1), key=float)) > MOST_SECONDS


def test_a_large_vocabulary_is_read() -> None:
    def read() -> None:
        made = Vocabulary.of(tokenizer(), SIZE, [0])
        assert len(made.levels) == 9
        assert made.digest

    tokenizer()
    assert any(held(read) < MOST_SECONDS for _ in range(3))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_compiled_or_refused(name: str) -> None:
    vocabulary = Vocabulary.of(tokenizer(), 50_000, [0])
    assert vocabulary.levels

    def compiled() -> None:
        with suppress(TooLarge):
            assert Grammars(lambda: vocabulary).get(RULES[name], lambda: Effort(seconds=2.0)).size

    assert any(held(compiled) < MOST_SECONDS for _ in range(3))


@pytest.mark.parametrize("backend", ["torch", "native", "native-q4", "native-f32"])
def test_a_model_is_read_and_packed(
    backend: str, tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 512, "num_layers": 3, "num_heads": 8, "intermediate_size": 1536, "vocab_size": 8000}
    network = tiny(0, layout="causal", shift=True, **sizes)
    if (reason := refusal(backend, network.config)) is not None:
        pytest.skip(reason)
    DiffusionLM(network, None).save_pretrained(tmp_path / "model")
    kept = iter(range(9))

    def read() -> None:
        monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / str(next(kept))))  # it is packed each time
        DiffusionLM.from_pretrained(tmp_path / "model", backend=backend).load_backend()

    assert any(held(read) < MOST_SECONDS for _ in range(3))
