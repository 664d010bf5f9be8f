"""Rows of JSONL: texts to score, and prompts to answer, by exact match with the answers that are right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM


def read_texts(path: Path, limit: int) -> list[str] | None:
    """The `text` of each row of a JSONL file; None where its first row has none."""
    rows = list(islice(_parsed(path), limit))
    if not rows or not isinstance(rows[0][1], dict) or "text" not in rows[0][1]:
        return None
    for number, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"]:
            raise UnmaskError(f"{path}: row {number} has no text")
    return [row["text"] for _, row in rows]


def read_rows(path: Path, limit: int) -> list[tuple[Any, str]]:
    """Prompts and right answers of a JSONL file: rows of `prompt` and `response`, or of `messages` whose last is the
    assistant's. Raises UnmaskError naming the row that is neither."""
    rows = list[tuple[Any, str]]()
    for number, row in islice(_parsed(path), limit):
        messages = row.get("messages") if isinstance(row, dict) else None
        last = messages[-1] if isinstance(messages, list) and len(messages) > 1 else None
        if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
            rows.append((messages[:-1], last["content"]))
        elif isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("response"), str):
            rows.append((row["prompt"], row["response"]))
        else:
            raise UnmaskError(
                f"{path}: row {number} has neither prompt and response nor messages that end in an answer"
            )
    if not rows:
        raise UnmaskError(f"{path} has no rows")
    return rows


def _parsed(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers, from 1 with empty ones, and values."""
    for number, line in enumerate(_lines(path), 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnmaskError(f"{path}: row {number} is not JSON ({error})") from None


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise UnmaskError(f"{path} cannot be read: {error}") from None


def same(answer: str, right: str) -> bool:
    """Whether two answers are one: as JSON where both are, else as text without the space around."""
    try:
        return bool(json.loads(answer) == json.loads(right))
    except json.JSONDecodeError:
        return answer.strip() == right.strip()


def interval(right: int, count: int) -> tuple[float, float, float]:
    """A share in percent and Wilson's 95% interval."""
    z = 1.96
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return 100 * share, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def exact_match(
    lm: DiffusionLM,
    rows: list[tuple[Any, str]],
    max_new_tokens: int,
    options: dict[str, Any],
    progress: Callable[[float], None] = lambda share: None,
    batch: int = 8,
) -> dict[str, Any]:
    """Share of right answers, tokens a step and the first wrong answers.

    max_new_tokens: of an answer at most; less where less fits behind its prompt.
    """
    right = tokens = steps = 0
    wrong = list[dict[str, Any]]()
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        prompts = [lm.encode(prompt)[0] for prompt, _ in part]
        most = min(max_new_tokens, lm.room(max(map(len, prompts))))
        outs = lm.generate(prompts, most, **options)
        for (prompt, wanted), out in zip(part, outs, strict=True):
            good = same(out.text, wanted)
            right += good
            tokens += len(out.token_ids)
            steps += out.steps
            if not good and len(wrong) < 5:
                wrong.append({"prompt": prompt, "answer": out.text, "right": wanted})
        progress(min(1.0, (start + batch) / len(rows)))
    share, low, high = interval(right, len(rows))
    about = {
        "rows": len(rows),
        "exact_match": share,
        "low": low,
        "high": high,
        "tokens_per_step": tokens / max(1, steps),
    }
    return {**about, "wrong": wrong}
