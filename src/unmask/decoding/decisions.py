"""Typed decisions: questions about one state, whose answers are distributions over labels, read off a form.

The form is text with a slot for each answer. A model that denoises masks reads all slots of one canvas in one forward.
A label of several tokens is scored as in writing it from left to right, in a slot of its own length:
log p(first | slot of masks) + log p(second | first, masks) + ...; the canvases that this takes beside the first are
known before, and read in the same forward. A model that reads from left to right has no slot in the middle of a text:
it is asked each question alone, and scores what it would write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from unmask.canvas import Array
from unmask.decoding.detokenize import carries_space, ids_after
from unmask.decoding.request import Alternatives
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QUESTIONS = 400  # of one call, as in OpenAI's Decisions API
CHOICES = 255  # of one question, likewise
LABELS = 4096  # of all questions together
LARGEST = 2**31  # end of a range
CANVASES = 256  # read at most for one call
TASK = "Answer each question with one of its answers."
_SLOT = re.compile(r"\[\[([^\[\]]+)\]\]")
Label = tuple[int, ...]  # token ids


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


@dataclass(frozen=True)
class Form:
    """Token ids of given text, one segment more than there are slots, and of the labels that each slot may hold."""

    segments: list[list[int]]
    slots: list[list[Label]]
    begin: int = 0  # where the answers' text begins, behind the prompt

    def canvas(self, fills: Sequence[Sequence[int]], mask: int) -> tuple[list[int], list[bool], list[int]]:
        """Ids, which of them are given, and where each slot begins, with the slots filled so."""
        ids = list(self.segments[0])
        starts = []
        for fill, segment in zip(fills, self.segments[1:], strict=True):
            starts.append(len(ids))
            ids += [*fill, *segment]
        open_at = {
            start + i for start, fill in zip(starts, fills, strict=True) for i, t in enumerate(fill) if t == mask
        }
        return ids, [place not in open_at for place in range(len(ids))], starts


def make_form(
    tokenizer: Tokenizer,
    prompt: list[int],
    text: str,
    questions: Sequence[Question],
    end: int | None,
    banned: int | None,
) -> Form:
    """A form behind a prompt, from text with a slot [[name]] for each question.

    Args:
        end: The token that ends a text, put behind the form; None: nothing.
        banned: A token that no text holds: the mask.

    Raises UnmaskError for slots that are not those of the questions, and for a label that is not made of tokens of
    its own where it stands, so that nothing is read that nobody would write.
    """
    names = [question.name for question in questions]
    if _SLOT.findall(text) != names:
        wanted = ", ".join(f"[[{name}]]" for name in names)
        raise UnmaskError(f"the form needs each question's slot once, in their order: {wanted}")
    bounds = [0, *(edge for match in _SLOT.finditer(text) for edge in match.span()), len(text)]
    pieces = [text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)]
    if not all(pieces[1:-1]):
        raise UnmaskError("two slots of the form stand side by side; put text between them")
    spaced = carries_space(tokenizer)
    slots = list[list[Label]]()
    for number, question in enumerate(questions):
        space = " " if spaced and pieces[number].endswith(" ") else ""
        pieces[number] = pieces[number].removesuffix(space)
        before = ids_after(tokenizer, pieces[number])
        behind = pieces[number + 1].removesuffix(" " if spaced and number + 1 < len(names) else "")
        after = ids_after(tokenizer, behind)
        labels = []
        for label in question.labels:
            own = tuple(ids_after(tokenizer, space + label))
            whole = ids_after(tokenizer, f"{pieces[number]}{space}{label}{behind}")
            if not own or banned in own or whole != [*before, *own, *after]:
                raise UnmaskError(
                    f"question '{question.name}': the label '{label}' is not made of tokens of its own between "
                    f"{pieces[number][-20:]!r} and {behind[:20]!r}; put other text beside the slot"
                )
            labels.append(own)
        if len(set(labels)) < len(labels):
            raise UnmaskError(
                f"question '{question.name}' has labels that are the same tokens to this model; change one"
            )
        slots.append(labels)
    segments = [ids_after(tokenizer, piece) if piece else [] for piece in pieces]
    segments[0] = [*prompt, *segments[0]]
    segments[-1] += [] if end is None else [end]
    return Form(segments, slots, len(prompt))


class Read(NamedTuple):
    """What is read at a position: the tokens that go on a label's beginning, in a slot of `length` tokens (0 where text
    is read from left to right)."""

    question: int
    length: int
    before: Label


@dataclass(frozen=True)
class Canvas:
    """A canvas to read: ids, which of them are given, where the answers' text begins, and what is read where."""

    ids: list[int]
    given: list[bool]
    begin: int
    reads: dict[int, Read] = field(default_factory=dict)
    wanted: dict[int, tuple[int, ...]] = field(default_factory=dict)  # by position, tokens


def _append(canvases: list[Canvas], canvas: Canvas) -> None:
    if len(canvases) >= CANVASES:
        raise UnmaskError(f"the labels take more than {CANVASES} canvases to tell apart; use fewer or shorter labels")
    canvases.append(canvas)


def _next_tokens(labels: Sequence[Label], length: int) -> dict[Label, tuple[int, ...]]:
    """By each beginning of labels of a length (0: of all), the tokens that go on."""
    found = dict[Label, set[int]]()
    for label in labels:
        if length in (0, len(label)):
            for place, token in enumerate(label):
                found.setdefault(label[:place], set()).add(token)
    return {before: tuple(sorted(tokens)) for before, tokens in found.items()}


def mask_canvases(form: Form, written: Mapping[int, Label], mask: int) -> list[Canvas]:
    """The canvases of all open slots: first the one in which each has masks for its longest label and is read so; then
    one for each other beginning or length of a label, in which the other slots are as in the first."""
    longest = [max(map(len, labels)) for labels in form.slots]
    plain = [written.get(number, (mask,) * length) for number, length in enumerate(longest)]
    ids, given, starts = form.canvas(plain, mask)
    first = Canvas(ids, given, form.begin)
    others = list[Canvas]()
    for number, labels in enumerate(form.slots):
        if number in written:
            continue
        for length in sorted({*map(len, labels)}):
            for before, tokens in _next_tokens(labels, length).items():
                place = starts[number] + len(before)
                if length == longest[number] and not before:
                    canvas = first
                else:
                    fill = (*before, *(mask,) * (length - len(before)))
                    ids, given, _ = form.canvas([*plain[:number], fill, *plain[number + 1 :]], mask)
                    canvas = Canvas(ids, given, form.begin)
                    _append(others, canvas)
                canvas.reads[place] = Read(number, length, before)
                canvas.wanted[place] = tokens
    return [first, *others]


def text_canvases(forms: Sequence[Form], mask: int) -> list[Canvas]:
    """Texts that end in a label, one for each way that labels begin, all of whose tokens are scored by those before.

    forms: one for each question, with one slot. Where a label begins another one, what follows the slot counts too.
    """
    out = list[Canvas]()
    for number, form in enumerate(forms):
        following = _next_tokens(ended(form), 0)
        start = len(form.segments[0])
        for longest in sorted(following.keys() - {before[:-1] for before in following if before}):
            ids = [*form.segments[0], *longest, mask]
            befores = [longest[:place] for place in range(len(longest) + 1)]
            _append(
                out,
                Canvas(
                    ids=ids,
                    given=[*[True] * (len(ids) - 1), False],
                    begin=form.begin,
                    reads={start + len(before): Read(number, 0, before) for before in befores},
                    wanted={start + len(before): following[before] for before in befores},
                ),
            )
    return out


def ended(form: Form) -> list[Label]:
    """The labels of a form's one slot; with the token that follows the slot where one of them begins another."""
    labels = form.slots[0]
    if {label[:end] for label in labels for end in range(1, len(label))}.isdisjoint(labels):
        return labels
    if not form.segments[1]:
        raise UnmaskError("a label begins another one, and nothing follows the slot that could tell them apart")
    return [(*label, form.segments[1][0]) for label in labels]


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
