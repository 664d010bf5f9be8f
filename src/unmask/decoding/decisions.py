"""Typed decisions: questions about one state, whose answers are distributions over labels, read off a form.

A model that denoises masks reads all slots of one canvas in one forward, as a block where it has blocks behind its
text. A model that reads from left to right has no slot in the middle of a text: it is asked each question alone, and
scores what it would write.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.canvas import Array
from unmask.decoding.forms import Canvas, Form, Label, Read, ended, make_form, mask_canvases, text_canvases
from unmask.decoding.questions import Decision, Question, ask, plain_form, read_questions
from unmask.decoding.request import Alternatives
from unmask.errors import UnmaskError
from unmask.layout import WRITES_BEHIND
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Slots:
    """The labels of each question as token ids that are scored, and the canvases to read with some answers written."""

    labels: list[list[Label]]
    canvases: Callable[[Mapping[int, Label]], list[Canvas]]


def of_masks(form: Form, mask: int) -> Slots:
    """The slots of one canvas."""
    return Slots(form.slots, lambda written: mask_canvases(form, written, mask))


def of_texts(forms: Sequence[Form], mask: int) -> Slots:
    """The ends of texts, one for each question."""
    return Slots([ended(form) for form in forms], lambda written: text_canvases(forms, mask))


Told = Sequence[Mapping[int, Alternatives]]
Deciding = Generator[list[Canvas], Told, list[Decision]]


def decide(questions: Sequence[Question], slots: Slots, threshold: float | None = None) -> Deciding:
    """Yields the canvases to read next; is sent what stands at their positions; returns a decision for each question.

    threshold: Answers of at least this confidence are written into the canvas, and the others are read again, as long
    as that makes one more of them so sure; None: all are read once.
    """
    labels = slots.labels
    written = dict[int, Label]()
    decisions = dict[int, Decision]()
    reads = 0
    while True:
        made = slots.canvases(written)
        told = yield made
        reads += 1
        found = dict[Read, dict[int, float]]()
        for canvas, at in zip(made, told, strict=True):
            for place, read in canvas.reads.items():
                found[read] = dict(at[place])
        for number in range(len(questions)):
            if number not in written:
                shares = _normalised(np.array([_score(found, number, label) for label in labels[number]]))
                decisions[number] = Decision(questions[number], tuple(shares.tolist()), reads)
        sure = {
            number: labels[number][int(np.argmax(decision.probabilities))]
            for number, decision in decisions.items()
            if threshold is not None and number not in written and decision.confidence >= threshold
        }
        written |= sure
        if not sure or len(written) == len(questions):
            return [decisions[number] for number in range(len(questions))]


def _score(found: Mapping[Read, Mapping[int, float]], number: int, label: Label) -> float:
    """Log-probability of a label, in its own length or, in a text, behind what stands before it."""
    total = 0.0
    for place, token in enumerate(label):
        read = Read(number, len(label), label[:place])
        known = found[read] if read in found else found[read._replace(length=0)]
        total += known[token]
    return total


def _normalised(logs_K: Array) -> Array:
    """Probabilities of log-scores."""
    shares: Array = np.exp(logs_K - logs_K.max())
    return shares / shares.sum()


@dataclass(frozen=True)
class Asked:
    """The model that is asked: `encode` makes prompts of ids, `chats` says whether they are messages."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    encode: Callable[[Any], list[list[int]]]
    chats: bool


def prepare(model: Asked, state: Any, asked: Any, form: str | None, threshold: float | None) -> Deciding:
    """Checks what `DiffusionLM.decide` is given; gives what yields the canvases to read, and is sent what stands in
    them."""
    config = model.config
    questions = read_questions(asked)
    if not isinstance(state, str | list):
        raise UnmaskError(f"a state is text or messages, not {type(state).__name__}")
    if form is not None and not isinstance(form, str):
        raise UnmaskError(f"a form is text with slots, not {type(form).__name__}")
    if threshold is not None and (not isinstance(threshold, int | float) or not 0 <= threshold <= 1):
        raise UnmaskError(f"option threshold is out of range: {threshold}; it must be at least 0 and at most 1")
    if config.layout == "canvas" or config.output != "logits" or config.corruption == "uniform" or config.grid:
        raise UnmaskError(f"model '{model.name}' does not fill masks in text, so it has no slots to read answers from")
    alone = config.layout in WRITES_BEHIND and not (config.layout == "causal_blocks" and config.in_place)
    if alone and (threshold is not None or (form is not None and len(questions) > 1)):
        wrong = "form" if threshold is None else "threshold"
        raise UnmaskError(
            f"model '{model.name}' reads from left to right and is asked each question alone; leave out {wrong}"
        )
    forms = []
    for some in [[question] for question in questions] if alone else [questions]:
        prompt = ask(state, some, model.chats) if form is None else state
        text = plain_form(some) if form is None else form
        ends = (config.eos_token_id, config.mask_token_id)
        forms.append(make_form(model.tokenizer, model.encode(prompt)[0], text, some, *ends))
    mask = config.mask_token_id or 0
    if alone:
        return decide(questions, of_texts(forms, mask))
    return decide(questions, of_masks(forms[0], mask), threshold)
