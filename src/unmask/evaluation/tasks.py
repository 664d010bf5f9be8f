"""The quality set: small tasks that a model of 135M parameters can do, scored by code, for comparing decoders.

Generative items are answered with text; choices are answered by the likelihood of their options. Scores are in
percent. Nothing here may enter training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.evaluation import graders as checks
from unmask.models.config import build

ITEMS = Path(__file__).parent / "items"
BATCH = 16  # items of one call to a model


@dataclass(frozen=True)
class Item:
    """A prompt for one user turn, and what its reply must meet (see `checks`)."""

    id: str  # kind/template/number
    kind: str
    prompt: str
    max_new_tokens: int
    check: Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """A context and its possible continuations, one of which is right."""

    id: str
    kind: str
    context: str
    options: tuple[str, ...]
    answer: int  # place of the right one


def score(item: Item, answer_text: str) -> bool:
    """Whether the reply is right; an empty reply never is."""
    return checks.score(item.check, answer_text)


def kinds(folder: Path = ITEMS) -> list[str]:
    """Names of the kinds, one for each file."""
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def load(
    names: Iterable[str] | None = None, limit: int | None = None, folder: Path = ITEMS
) -> tuple[list[Item], list[Choice]]:
    """Items of these kinds (all by default); `limit` takes that many of each kind, evenly spaced.

    Raises UnmaskError for an unknown kind, a limit below 1, or a file that cannot be read.
    """
    known = kinds(folder)
    wanted = known if names is None else list(dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in known]:
        raise UnmaskError(f"unknown kind of item '{unknown[0]}'; kinds: {', '.join(known) or f'none in {folder}'}")
    if limit is not None and limit < 1:
        raise UnmaskError(f"limit {limit} takes no items; give 1 or more")
    rows: list[Item | Choice] = []
    for name in wanted:
        own = _read(folder / f"{name}.jsonl")
        count = min(len(own), limit or len(own))
        rows += [own[i * len(own) // count] for i in range(count)]
    return [row for row in rows if isinstance(row, Item)], [row for row in rows if isinstance(row, Choice)]


def _read(path: Path) -> list[Item | Choice]:
    rows: list[Item | Choice] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: prompts may hold odd line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise UnmaskError(f"cannot read items {path}: {error}; install unmask again") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_row(json.loads(line), path.stem))
            except (UnmaskError, ValueError, TypeError, RecursionError) as error:
                raise UnmaskError(f"{path}, line {number}, is not an item ({error}); install unmask again") from error
    if len({row.id for row in rows}) < len(rows) or not rows:
        raise UnmaskError(f"{path} holds {'an id twice' if rows else 'no items'}; install unmask again")
    return rows


def _row(row: Any, kind: str) -> Item | Choice:
    """Raises UnmaskError, ValueError or TypeError for anything but the fields of an Item or a Choice."""
    made: Item | Choice = build(Choice if "options" in row else Item, row, "its row")
    if made.kind != kind or not made.id.startswith(f"{kind}/"):
        raise ValueError(f"kind and id must be of '{kind}'")
    if isinstance(made, Choice):
        if not all((made.context, *made.options)) or not 0 <= made.answer < len(made.options):
            raise ValueError("context and options must be text, and answer the place of an option")
    else:
        if made.max_new_tokens < 1:
            raise ValueError("max_new_tokens must be above 0")
        checks.validate(made.check)
    return made


def evaluate(
    answer: Callable[[list[Item]], list[str]], items: Sequence[Item], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Scores of the replies: `kinds` and `all` (n, score in percent, std_error), `passed` and `answers` by id.

    `answer` is given at most BATCH items of one `max_new_tokens` at a time.
    """
    answers: dict[str, str] = {}
    for tokens in sorted({item.max_new_tokens for item in items}):
        some = [item for item in items if item.max_new_tokens == tokens]
        for first in range(0, len(some), BATCH):
            progress(f"{len(answers)} of {len(items)} items")
            batch = some[first : first + BATCH]
            answers.update(zip((item.id for item in batch), answer(batch), strict=True))
    return {**_summary({item.id: score(item, answers[item.id]) for item in items}), "answers": answers}


def evaluate_choices(
    nll: Callable[[str, str], float], items: Sequence[Choice], progress: Callable[[str], None]
) -> dict[str, Any]:
    """The same summary for choices: right where the right option has the least nats per byte.

    `nll(context, continuation)` is in nats; a continuation begins with a space.
    """
    passed = {}
    for number, item in enumerate(items):
        if number % BATCH == 0:
            progress(f"{number} of {len(items)} items")
        texts = [f" {option}" for option in item.options]
        costs = [nll(item.context, text) / len(text.encode()) for text in texts]
        passed[item.id] = costs.index(min(costs)) == item.answer
    return _summary(passed)


def _summary(passed: dict[str, bool]) -> dict[str, Any]:
    by_kind: dict[str, list[bool]] = {}
    for name, right in passed.items():
        by_kind.setdefault(name.split("/")[0], []).append(right)
    return {
        "kinds": {kind: _share(rights) for kind, rights in by_kind.items()},
        "all": _share(list(passed.values())),
        "passed": passed,
    }


def _share(rights: list[bool]) -> dict[str, float]:
    n = len(rights)
    share = sum(rights) / max(1, n)
    return {"n": n, "score": 100 * share, "std_error": 100 * math.sqrt(share * (1 - share) / max(1, n))}


def paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How much better b is than a on the same items, in points of percent: for `all` and for each kind.

    Each has n, difference, std_error (of the difference, items paired), better and worse (items that only b, only
    a, had right). The error is 0 where no item differs; the difference is then below 300 / n points at 95 %.
    Raises UnmaskError when the two are of different items.
    """
    first = a["passed"]
    second = b["passed"]
    if first.keys() != second.keys() or not first:
        odd = next(iter(first.keys() ^ second.keys()), "no items at all")
        raise UnmaskError(f"cannot pair two results of different items ({odd}); run both on the same set")
    groups: dict[str, list[int]] = {"all": []}
    for name in first:
        step = int(second[name]) - int(first[name])
        groups["all"].append(step)
        groups.setdefault(name.split("/")[0], []).append(step)
    return {group: _difference(steps) for group, steps in groups.items()}


def _difference(steps: list[int]) -> dict[str, float]:
    n = len(steps)
    mean = sum(steps) / len(steps)
    variance = sum(step * step for step in steps) / n - mean * mean
    return {
        "n": n,
        "difference": 100 * mean,
        "std_error": 100 * math.sqrt(max(0.0, variance) / n),
        "better": steps.count(1),
        "worse": steps.count(-1),
    }
