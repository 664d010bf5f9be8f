"""Questions about one state, in the form of OpenAI's Decisions API, and the distributions that answer them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unmask.canvas import Array
from unmask.errors import UnmaskError

QUESTIONS = 400  # of one call, as in OpenAI's Decisions API
CHOICES = 255  # of one question, likewise
LABELS = 4096  # of all questions together
LARGEST = 2**31  # end of a range
TASK = "Answer each question with one of its answers."


@dataclass(frozen=True)
class Question:
    """What is asked, and the labels that may answer it with what each stands for: True and False of a predicate, the
    choice itself, or the number of a level."""

    type: Literal["predicate", "choice", "score"]
    name: str
    instructions: str
    labels: tuple[str, ...]
    values: tuple[str | bool | int, ...]
    descriptions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The question as it is asked, with its answers."""
        about = self.descriptions or ("",) * len(self.labels)
        told = [label + (f" ({more})" if more else "") for label, more in zip(self.labels, about, strict=True)]
        return f"{self.instructions} Answers: {', '.join(told)}."


@dataclass(frozen=True)
class Decision:
    """The answer to a question: `probabilities` of its labels, in their order."""

    question: Question
    probabilities: tuple[float, ...]
    reads: int = 1  # forwards until it was read for the last time

    @property
    def name(self) -> str:
        return self.question.name

    @property
    def answer(self) -> str | bool | int:
        """What the likeliest label stands for."""
        return self.question.values[int(np.argmax(self.probabilities))]

    @property
    def confidence(self) -> float:
        """1 - H / ln K of the distribution over K labels: 0 where all are equally likely, 1 where one is certain."""
        return confidence(np.array(self.probabilities))

    @property
    def mean(self) -> float | None:
        """The chance of yes, or the expected score; None of a choice."""
        if self.question.type == "choice":
            return None
        return float(np.dot(self.probabilities, [float(value) for value in self.question.values]))


def confidence(probabilities_K: Array) -> float:
    """1 - H / ln K, clipped to 0 and 1."""
    entropy = -float(np.sum(probabilities_K * np.log(np.maximum(probabilities_K, 1e-300))))
    return min(max(1 - entropy / math.log(len(probabilities_K)), 0.0), 1.0)


def read_questions(asked: Any) -> list[Question]:
    """Questions from dicts in the form of OpenAI's Decisions API; a score may have a `range` in place of levels.

    Raises UnmaskError naming the question and what is wrong with it.
    """
    if not isinstance(asked, Sequence) or isinstance(asked, str) or not 1 <= len(asked) <= QUESTIONS:
        raise UnmaskError(f"questions are a list of 1 to {QUESTIONS} dicts")
    questions = [_question(one, number) for number, one in enumerate(asked, 1)]
    names = [question.name for question in questions]
    for name in names:
        if names.count(name) > 1:
            raise UnmaskError(f"two questions have the name '{name}'; give each its own")
    if sum(len(question.labels) for question in questions) > LABELS:
        raise UnmaskError(f"the questions have more than {LABELS} labels together; ask them in several calls")
    return questions


def _question(asked: Any, number: int) -> Question:
    lists = {"predicate": (), "choice": ("choices",), "score": ("levels", "range")}
    kind = asked.get("type") if isinstance(asked, Mapping) else None
    if kind not in list(lists):  # as a list: what is asked for may have no hash
        raise UnmaskError(f"question {number} needs a type: predicate, choice or score")
    name = str(number) if asked.get("name") is None else asked["name"]
    unknown = asked.keys() - {"type", "name", "instructions", *lists[kind]}
    if unknown:
        raise UnmaskError(
            f"question {number} has '{min(map(str, unknown))}', which type {kind} does not take; leave it out"
        )
    if not isinstance(name, str) or not name or set(name) & set("[]"):
        raise UnmaskError(f"question {number} has a name that is no text without brackets; give it another")
    instructions = asked.get("instructions", "")
    if not isinstance(instructions, str):
        raise UnmaskError(f"question '{name}' has instructions that are no text; write them as text")
    if kind == "predicate":
        return Question(kind, name, instructions, ("yes", "no"), (True, False))
    given = [key for key in lists[kind] if asked.get(key) is not None]
    if len(given) != 1:
        raise UnmaskError(f"question '{name}' needs {' or else '.join(lists[kind])}")
    if given == ["range"]:
        bounds = asked["range"]
        whole = isinstance(bounds, Sequence) and all(type(end) is int for end in bounds) and len(bounds) == 2
        if not whole or not 1 <= bounds[1] - bounds[0] < CHOICES or max(map(abs, bounds)) > LARGEST:
            raise UnmaskError(
                f"question '{name}' needs a range of two whole numbers, at most {CHOICES - 1} apart, within ±{LARGEST}"
            )
        values = tuple(range(bounds[0], bounds[1] + 1))
        return Question(kind, name, instructions, tuple(map(str, values)), values)
    key = "value" if kind == "choice" else "label"
    if not isinstance(asked[given[0]], list | tuple):
        raise UnmaskError(f"question '{name}' has {given[0]} that are no list; write them as one")
    entries = [{key: one} if isinstance(one, str | bool) else one for one in asked[given[0]]]
    if not 2 <= len(entries) <= CHOICES:
        raise UnmaskError(f"question '{name}' has {len(entries)} {given[0]}; 2 to {CHOICES} are taken")
    if not all(isinstance(one, Mapping) and isinstance(one.get(key), str | bool) for one in entries):
        raise UnmaskError(f"question '{name}' has {given[0]} that are neither text nor dicts with a '{key}'")
    other = {str(entry) for one in entries for entry in one.keys() - {key, "description"}}
    if other:
        raise UnmaskError(f"question '{name}' has {given[0]} with '{min(other)}', which none takes; leave it out")
    texts = [one[key] for one in entries]
    labels = tuple(map(_label, texts))
    if not all(labels) or len(set(labels)) < len(labels):
        raise UnmaskError(f"question '{name}' has {given[0]} that are empty or alike; give each its own text")
    numbers = tuple(range(len(entries)))
    own = tuple(texts) if kind == "choice" else numbers
    about = tuple(str(one.get("description") or "") for one in entries)
    return Question(kind, name, instructions, labels, own, about)


def _label(value: str | bool) -> str:
    """The text of a choice."""
    return value if isinstance(value, str) else str(value).lower()


def ask(state: Any, questions: Sequence[Question], chats: bool) -> Any:
    """A prompt of the state and the questions about it: text, or messages for a model that chats; a state that is
    messages gets one more."""
    lines = [f"{number}. {question.text}" for number, question in enumerate(questions, 1)]
    task = "\n".join([TASK, *lines])
    if not isinstance(state, str):
        return [*state, {"role": "user", "content": task}]
    text = f"{state}\n\n{task}"
    return [{"role": "user", "content": text}] if chats else f"{text}\n"


def plain_form(questions: Sequence[Question]) -> str:
    """A line for each answer."""
    return "".join(f"{number}. [[{question.name}]]\n" for number, question in enumerate(questions, 1))
