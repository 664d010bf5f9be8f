"""The quality set: small tasks that a model of 135M parameters can do, scored by code, for comparing decoders.

Generative items are answered with text; choices are answered by the likelihood of their options. Scores are in
percent. Nothing here may enter training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.evaluation.graders import score
from unmask.models.config import build

ITEMS = Path(__file__).parent / "items"
BATCH = 16  # items of one call to a model


@dataclass(frozen=True)
class Item:
    """A prompt for one user turn, and what its reply must meet (see `graders`)."""

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


def load(limit: int | None = None, folder: Path = ITEMS) -> tuple[list[Item], list[Choice]]:
    """Items of all kinds, a file each; `limit` takes that many of each kind, evenly spaced.

    Raises UnmaskError for a limit below 1, or a file that cannot be read.
    """
    if limit is not None and limit < 1:
        raise UnmaskError(f"limit {limit} takes no items; give 1 or more")
    rows: list[Item | Choice] = []
    for path in sorted(folder.glob("*.jsonl")):
        own = _read(path)
        count = min(len(own), limit or len(own))
        rows += [own[i * len(own) // count] for i in range(count)]
    return [row for row in rows if isinstance(row, Item)], [row for row in rows if isinstance(row, Choice)]


def _read(path: Path) -> list[Item | Choice]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: prompts may hold odd line breaks
        rows = [json.loads(line) for line in lines if line.strip()]
        return [build(Choice if "options" in row else Item, row, "an item") for row in rows]
    except (UnmaskError, OSError, ValueError, TypeError, RecursionError) as error:
        raise UnmaskError(f"cannot read items {path} ({error}); install unmask again") from error


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
    return {**_summary({item.id: score(item.check, answers[item.id]) for item in items}), "answers": answers}


def evaluate_choices(nll: Callable[[str, str], float], items: Sequence[Choice]) -> dict[str, Any]:
    """The same summary for choices: right where the right option has the least nats per byte.

    `nll(context, continuation)` is in nats; a continuation begins with a space.
    """
    passed = {}
    for item in items:
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


def paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float]:
    """How much better b is than a on the same items, in points of percent.

    n, difference, std_error (of the difference, items paired), better and worse (items that only b, only a, had right).
    The error is 0 where no item differs; the difference is then below 300 / n points at 95 %.
    """
    steps = [int(b["passed"][name]) - int(right) for name, right in a["passed"].items()]
    n = len(steps)
    mean = sum(steps) / n
    variance = sum(step * step for step in steps) / n - mean * mean
    return {
        "n": n,
        "difference": 100 * mean,
        "std_error": 100 * math.sqrt(max(0.0, variance) / n),
        "better": steps.count(1),
        "worse": steps.count(-1),
    }
