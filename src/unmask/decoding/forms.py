"""Forms: text with a slot for each answer, and the canvases in which the labels of its slots are read.

A label of several tokens is scored as in writing it from left to right, in a slot of its own length:
log p(first | slot of masks) + log p(second | first, masks) + ...; the canvases that this takes beside the first are
known before, and read in the same forward.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from unmask.decoding.detokenize import carries_space, ids_after
from unmask.decoding.questions import Question
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CANVASES = 256  # read at most for one call
_SLOT = re.compile(r"\[\[([^\[\]]+)\]\]")
Label = tuple[int, ...]  # token ids


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
