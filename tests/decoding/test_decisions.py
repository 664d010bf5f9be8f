"""Typed decisions against brute force: every label of every question scored by forwards of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.backends.torch import TorchBackend
from unmask.decoding.convention import CONVENTIONS
from unmask.decoding.decisions import decide, of_masks, of_texts
from unmask.decoding.forms import Form, make_form
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import DecodingDefaults
from unmask.decoding.questions import confidence, plain_form, read_questions
from unmask.errors import UnmaskError
from unmask.layout import Coordinates, Layout
from unmask.lm import DiffusionLM
from unmask.training.tokenizer import train_tokenizer

TEXT = "the cat sat on the mat. yes no a dog. 1 2 3 4 5 cat cat dog high highest low 12 " * 4
STATE = "the dog sat on the cat."
QUESTIONS: list[dict[str, Any]] = [
    {"type": "choice", "name": "who", "choices": ["cat", "dog", "cat dog", "cat mat sat", "dog cat"]},
    {"type": "predicate", "instructions": "a cat sat"},
    {"type": "score", "name": "rank", "range": [1, 12]},
]
KINDS: dict[str, tuple[dict[str, Any], DecodingDefaults]] = {
    "bidirectional": ({}, DecodingDefaults()),
    "bidirectional, shifted head": ({"shift": True}, DecodingDefaults()),
    "mask in the softmax": ({"mask_in_softmax": True}, DecodingDefaults()),
    "blocks": ({"layout": "block_causal", "block_length": 4}, DecodingDefaults()),
    "blocks, shifted head": ({"layout": "block_causal", "block_length": 8, "shift": True}, DecodingDefaults()),
    "blocks from the prompt": (
        {"layout": "block_causal", "block_length": 16},
        DecodingDefaults(convention=CONVENTIONS["dllm"]),
    ),
    "behind text": (
        {"layout": "causal_blocks", "block_length": 4, "shift": True, "in_place": True},
        DecodingDefaults(),
    ),
}
LEFT: dict[str, dict[str, Any]] = {
    "causal": {"layout": "causal", "shift": True},
    "a window behind text": {"layout": "causal_window", "block_length": 4, "shift": True, "in_place": True},
}
Make = Callable[..., Any]


def make(tiny: Make, options: dict[str, Any], defaults: DecodingDefaults | None = None) -> DiffusionLM:
    tokenizer = train_tokenizer("bpe", [TEXT], 300)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0, "max_length": 400}
    return DiffusionLM(tiny(5, **sizes, **options), tokenizer, defaults, "tiny")


def log_p(lm: DiffusionLM, ids: Sequence[int], offset: int = 0) -> np.ndarray:
    """Log-probabilities [L, V] without the mask, by a plain forward under a dense mask of the predicate."""
    config = lm.config
    if config.layout == "causal_blocks":  # the first mask and all behind it are a block
        place = torch.arange(len(ids))[None]
        start = list(ids).index(config.mask_token_id)
        at = Coordinates.drafts(place, torch.where(place < start, -1, start - 1))
        with torch.no_grad():
            logits = lm.model.head(lm.model.hidden(torch.tensor([ids]), place, Layout("causal_blocks").dense(at, at)))
            logits = logits[0].double()
        logits[:, config.mask_token_id or 0] = -torch.inf
        return np.asarray(logits.log_softmax(-1))
    kind = config.layout if config.layout in ("bidirectional", "block_causal") else "causal"
    layout = Layout(kind, config.block_length if kind == "block_causal" else 1)
    at = Coordinates.of(torch.arange(len(ids))[None] + offset)
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids]), None, layout.dense(at, at))[0].double()
    logits[:, config.mask_token_id or 0] = -torch.inf
    return np.asarray(logits.log_softmax(-1))


def normalised(logs: list[float]) -> list[float]:
    top = max(logs)
    shares = [math.exp(value - top) for value in logs]
    return [share / sum(shares) for share in shares]


def form_of(lm: DiffusionLM, questions: list[dict[str, Any]]) -> Form:
    asked = read_questions(questions)
    told = "\n".join(f"{n}. {question.text}" for n, question in enumerate(asked, 1))
    prompt = lm.encode(f"{STATE}\n\nAnswer each question with one of its answers.\n{told}\n")[0]
    assert lm.tokenizer is not None
    return make_form(lm.tokenizer, prompt, plain_form(asked), asked, lm.config.eos_token_id, lm.config.mask_token_id)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_agree_with_brute_force(tiny: Make, kind: str) -> None:
    options, defaults = KINDS[kind]
    lm = make(tiny, options, defaults)
    form = form_of(lm, QUESTIONS)
    assert len({len(label) for label in form.slots[0]}) > 1  # labels of several lengths, and of several tokens
    lengths = [max(map(len, labels)) for labels in form.slots]
    offset = -form.begin % lm.config.block_length if kind == "blocks from the prompt" else 0
    decisions = lm.decide(STATE, QUESTIONS)
    for number, labels in enumerate(form.slots):
        scores = []
        for label in labels:
            total = 0.0
            for place, token in enumerate(label):
                fills: list[Sequence[int]] = [(1,) * length for length in lengths]
                fills[number] = (*label[:place], *(1,) * (len(label) - place))
                parts = [form.segments[0]]
                for fill, segment in zip(fills, form.segments[1:], strict=True):
                    parts += [list(fill), segment]
                start = sum(map(len, parts[: 2 * number + 1]))
                total += log_p(lm, [token for part in parts for token in part], offset)[start + place, token]
            scores.append(total)
        assert decisions[number].probabilities == pytest.approx(normalised(scores), abs=2e-5)
        assert decisions[number].reads == 1


@pytest.mark.parametrize("kind", [*LEFT, "drafts"])
def test_texts_agree_with_brute_force(tiny: Make, drafting: Make, kind: str) -> None:
    if kind == "drafts":
        base = make(tiny, LEFT["causal"])
        sizes = {"vocab_size": base.config.vocab_size, "mask_token_id": 1, "eos_token_id": 0, "max_length": 400}
        lm = DiffusionLM(drafting(1, **sizes)[1], base.tokenizer, None, "drafts")
    else:
        lm = make(tiny, LEFT[kind])
    questions = [*QUESTIONS, {"type": "choice", "name": "begins", "choices": ["high", "highest", "high low"]}]
    decisions = lm.decide(STATE, questions)
    for decision, asked in zip(decisions, questions, strict=True):
        form = form_of(lm, [asked])
        begins = any(a != b and b[: len(a)] == a for a in form.slots[0] for b in form.slots[0])
        scores = []
        for label in form.slots[0]:
            whole = (*label, form.segments[1][0]) if begins else label
            ids = [*form.segments[0], *whole]
            logs = log_p(lm, ids)
            scores.append(sum(logs[len(form.segments[0]) + place, token] for place, token in enumerate(whole)))
        assert decision.probabilities == pytest.approx(normalised(scores), abs=2e-5)


@pytest.mark.parametrize("kind", [*KINDS, *LEFT])
def test_a_long_state_is_read_in_pieces(tiny: Make, kind: str) -> None:
    """As the server reads it, among others; what stands at the positions is the same."""
    options, defaults = KINDS[kind] if kind in KINDS else (LEFT[kind], DecodingDefaults())
    lm = make(tiny, options, defaults)
    if kind in LEFT:
        canvases = of_texts([form_of(lm, [question]) for question in QUESTIONS], 1).canvases({})
    else:
        canvases = of_masks(form_of(lm, QUESTIONS), 1).canvases({})
    prepared = lm.preparer.read(canvases)
    told = []
    for chunk in (0, 8):
        requests = [replace(request, prefill_chunk=chunk) for request in prepared.requests]
        decoder = Decoder(TorchBackend(lm.model), prepared.layout, requests, prepared.eos_ids)
        assert not [frame for step in decoder.run() for frame in step]
        told.append([row.logprobs for row in decoder.rows.values()])
        assert (max(row.prefills for row in decoder.rows.values()) > 2) == (
            chunk > 0 and lm.config.layout != "bidirectional"
        )
    for one, other in zip(*told, strict=True):
        assert one.keys() == other.keys()
        for place in one:
            assert np.array(other[place]) == pytest.approx(np.array(one[place]), abs=1e-4)


def test_one_token_labels_take_one_canvas_and_one_forward(tiny: Make) -> None:
    lm = make(tiny, {})
    form = form_of(lm, [*QUESTIONS[1:2], {"type": "score", "range": [1, 5]}])
    assert [len(label) for labels in form.slots for label in labels] == [1] * 7
    canvases = of_masks(form, 1).canvases({})
    assert len(canvases) == 1
    prepared = lm.preparer.read(canvases)
    run = lm.run(prepared)
    assert [out.steps for out in run.outputs()] == [1]
    assert not run.seen[0]  # nothing is written


def test_labels_that_share_a_beginning_are_told_apart(tiny: Make) -> None:
    """The first tokens alone would make them equal."""
    lm = make(tiny, {})
    shared = [{"type": "choice", "choices": ["cat dog", "cat mat", "cat sat"]}]
    form = form_of(lm, shared)
    assert len({label[0] for label in form.slots[0]}) == 1
    assert len(set(lm.decide(STATE, shared)[0].probabilities)) == 3


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=9))
def test_confidence(weights: list[float]) -> None:
    p = np.array(weights) / sum(weights)
    assert 0 <= confidence(p) <= 1
    assert confidence(np.full(len(p), 1 / len(p))) == pytest.approx(0, abs=1e-9)
    assert confidence(np.eye(len(p))[0]) == 1
    assert confidence(np.array([0.5, 0.5, 0, 0])) == pytest.approx(0.5)


@given(st.data())
def test_reread_writes_sure_answers_and_reads_the_others(data: st.DataObject) -> None:
    """Of a network that is a table: by question and written answers, a distribution over two labels."""
    asked = read_questions([{"type": "predicate", "name": name} for name in "abc"])
    form = Form([[9]] + [[9]] * 3, [[(2,), (3,)]] * 3)
    threshold = data.draw(st.floats(0, 1))
    table: dict[tuple[int, ...], float] = {}
    deciding = decide(asked, of_masks(form, 1), threshold)
    canvases = next(deciding)
    canvas_ids = []
    expected: dict[int, float] = {}
    writes = 0
    while True:
        canvas = canvases[0]
        canvas_ids.append(canvas.ids)
        told = {}
        for place, read in canvas.reads.items():
            p = table.setdefault((place, *canvas.ids), data.draw(st.floats(0.01, 0.99)))
            told[place] = ((2, math.log(p)), (3, math.log(1 - p)))
            expected[read.question] = p
        writes += 1
        try:
            canvases = deciding.send([told])
        except StopIteration as decided:
            decisions = decided.value
            break
    assert [decision.mean for decision in decisions] == pytest.approx([expected[n] for n in range(3)])
    for before, after in pairwise(canvas_ids):  # written answers stay, and one more of them is
        assert all(a == b for a, b in zip(before, after, strict=True) if a != 1)
        assert before.count(1) > after.count(1)
    for decision, token in zip(decisions, canvas_ids[-1][1::2], strict=True):
        if token != 1:
            assert decision.confidence >= threshold
            assert token == (2 if decision.answer else 3)
    assert canvas_ids[-1].count(1) <= 3
    open_last = [d for d, token in zip(decisions, canvas_ids[-1][1::2], strict=True) if token == 1]
    sure_last = [d.confidence >= threshold for d in open_last]
    assert all(sure_last) or not any(sure_last)  # it ends when all are sure, or nobody new is


def test_reread_is_a_read_of_the_canvas_with_the_answers(tiny: Make) -> None:
    lm = make(tiny, {}, None)
    once = lm.decide(STATE, QUESTIONS)
    surest = max(decision.confidence for decision in once)
    again = lm.decide(STATE, QUESTIONS, threshold=surest)
    written = next(n for n, decision in enumerate(once) if decision.confidence == surest)
    assert again[written] == once[written]
    others = [n for n in range(len(QUESTIONS)) if n != written]
    assert all(again[n].reads > 1 and again[n].probabilities != once[n].probabilities for n in others)


def test_order_of_texts_does_not_matter(tiny: Make) -> None:
    """A question alone is what it is among others, for models that read from left to right."""
    lm = make(tiny, LEFT["causal"])
    together = lm.decide(STATE, QUESTIONS)
    alone = [lm.decide(STATE, [question])[0] for question in QUESTIONS]
    assert [d.probabilities for d in together] == [pytest.approx(d.probabilities, abs=1e-6) for d in alone]
    assert [len(of_texts([form_of(lm, [question])], 1).canvases({})) for question in QUESTIONS[1:2]] == [1]


WRONG: list[tuple[Any, str]] = [
    ([], "1 to 400"),
    ([{"type": "noul"}], "needs a type"),
    ([{"type": "choice", "choices": ["a"]}], "has 1 choices"),
    ([{"type": "choice", "choices": 5}], "no list"),
    ([{"type": "choice", "choices": ["a", "a"]}], "alike"),
    ([{"type": "choice", "choices": ["a", ""]}], "empty"),
    ([{"type": "choice", "choices": ["a", 3]}], "neither text"),
    ([{"type": "choice"}], "needs choices"),
    ([{"type": "score", "range": [1, 1]}], "range of two"),
    ([{"type": "score", "range": [0, 255]}], "range of two"),
    ([{"type": "score", "range": [1, 5], "levels": ["a", "b"]}], "levels or else range"),
    ([{"type": "predicate", "choices": ["a", "b"]}], "does not take"),
    ([{"type": "predicate", "name": "x"}, {"type": "predicate", "name": "x"}], "two questions"),
    ([{"type": "choice", "choices": [f"{n} {m}" for m in range(200)], "name": f"q{n}"} for n in range(21)], "4096"),
]


@pytest.mark.parametrize(("questions", "message"), WRONG)
def test_wrong_questions(questions: Any, message: str) -> None:
    with pytest.raises(UnmaskError, match=message):
        read_questions(questions)


def test_refusals(tiny: Make) -> None:
    lm = make(tiny, {})
    left = make(tiny, LEFT["causal"])
    one = QUESTIONS[1:2]
    with pytest.raises(UnmaskError, match="in their order"):
        lm.decide(STATE, one, form="no slot")
    with pytest.raises(UnmaskError, match="side by side"):
        lm.decide(STATE, QUESTIONS, form="[[who]][[2]] [[rank]]")
    with pytest.raises(UnmaskError, match="tokens of its own"):
        lm.decide(STATE, [{"type": "choice", "name": "x", "choices": ["e", "o"]}], form="th[[x]] cat")
    with pytest.raises(UnmaskError, match="out of range"):
        lm.decide(STATE, one, threshold=2)
    with pytest.raises(UnmaskError, match="asked each question alone; leave out threshold"):
        left.decide(STATE, one, threshold=0.5)
    with pytest.raises(UnmaskError, match="asked each question alone; leave out form"):
        left.decide(STATE, QUESTIONS, form="[[who]] [[2]] [[rank]]")
    with pytest.raises(UnmaskError, match="do not fit the canvas"):
        lm.decide("the cat " * 400, one)
    with pytest.raises(UnmaskError, match="no slots"):
        make(tiny, {"corruption": "uniform"}).decide(STATE, one)
    with pytest.raises(UnmaskError, match="canvases"):
        lm.decide(STATE, [{"type": "choice", "choices": [f"cat {n} {n}{n} mat" for n in range(255)]}])


CHOICE = {"type": "choice", "name": "q", "choices": ["a", "b"]}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({**CHOICE, "choices": 5}, "choices that are no list"),
        ({**CHOICE, "choices": "yes"}, "choices that are no list"),
        ({**CHOICE, "choices": {"a": 1, "b": 2}}, "choices that are no list"),
        ({**CHOICE, "choices": [{"value": "a", "x": 1}, "b"]}, "choices with 'x'"),
        ({"type": "score", "levels": 3}, "levels that are no list"),
        ({"type": []}, "needs a type"),
        ({"type": {}}, "needs a type"),
        ({**CHOICE, 5: 1, "z": 2}, "has '5'"),
        ({"type": "score", "range": [10**400, 10**400 + 2]}, "range of two whole numbers"),
        ({"type": "score", "range": [-(10**5000), 3 - 10**5000]}, "range of two whole numbers"),
    ],
)
def test_fields_of_a_question_of_any_type_are_honoured_or_named(question: Any, message: str) -> None:
    """A text is no list of its letters, and a number has a size."""
    with pytest.raises(UnmaskError, match=message):
        read_questions([question])


@pytest.mark.parametrize(
    "asked", [{"state": 5}, {"state": None}, {"threshold": "0.5"}, {"threshold": [0.5]}, {"form": 5}], ids=str
)
def test_what_decide_is_given_may_have_any_type(tiny: Make, asked: dict[str, Any]) -> None:
    with pytest.raises(UnmaskError):
        DiffusionLM(tiny(1), None, None, "m").decide(**{"state": "a", "questions": [CHOICE], **asked})
