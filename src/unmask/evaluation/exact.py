"""Rows of JSONL: how likely their texts are, and how many of their prompts are answered exactly right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.evaluation.figures import ratio, share
from unmask.lm import DiffusionLM
from unmask.objectives.likelihood import Window, score_texts
from unmask.output import Output
from unmask.prompts import encode_text

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Row:
    """A document; a response to a prompt; or a canvas of which some tokens are given."""

    text: str
    prompt: Any = None  # text or messages
    given: str | None = None  # of a canvas: the same text with "." where a token is to be written

    @property
    def asks(self) -> bool:
        return self.prompt is not None or self.given is not None


def read_rows(path: Path, limit: int) -> list[Row]:
    """Rows of a JSONL file: `text`; `prompt` and `response`; `messages` whose last is the assistant's; or `canvas` and
    `given`. Raises UnmaskError naming the row that is none of them."""
    rows = [_row(record, f"{path}: row {number}") for number, record in islice(_parsed(path), limit)]
    if not rows:
        raise UnmaskError(f"{path} has no rows")
    return rows


def _row(record: Any, where: str) -> Row:
    fields = record if isinstance(record, dict) else {}
    messages = fields.get("messages")
    if isinstance(messages, list) and len(messages) > 1 and all(isinstance(one, dict) for one in messages):
        if messages[-1].get("role") == "assistant" and isinstance(messages[-1].get("content"), str):
            return Row(messages[-1]["content"], prompt=messages[:-1])
    elif isinstance(fields.get("prompt"), str) and isinstance(fields.get("response"), str):
        return Row(fields["response"], prompt=fields["prompt"])
    elif isinstance(fields.get("text"), str) and fields["text"]:
        return Row(fields["text"])
    elif isinstance(fields.get("canvas"), str) and isinstance(fields.get("given"), str):
        if len(fields["canvas"]) != len(fields["given"]) or "." not in fields["given"]:
            raise UnmaskError(f"{where}: 'canvas' and 'given' must be of one length, with a dot for each open token")
        return Row(fields["canvas"], given=fields["given"])
    raise UnmaskError(
        f"{where} has none of: text; prompt and response; messages that end in an answer; canvas and given"
    )


def _parsed(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers, from 1 with empty ones, and values."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(line)
    except (OSError, UnicodeDecodeError) as error:
        raise UnmaskError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UnmaskError(f"{path}: row {number} is not JSON ({error})") from None


def likelihood(
    lm: DiffusionLM, rows: list[Row], method: str, samples: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """How likely the rows' texts are, responses and open tokens only where there are prompts.

    Intervals are over texts like these; of a single text, of the masks that were drawn.
    """
    if any(row.given for row in rows):
        canvases = [_window(lm, row) for row in rows]
        scores = score_texts(lm.model, canvases, method, samples, seed, 8, progress)
    else:
        prompts = [row.prompt for row in rows]
        scores = lm.likelihood([row.text for row in rows], method, samples, seed, progress=progress, given=prompts)
    nats = [one.nats for one in scores]
    tokens = [one.tokens for one in scores]
    error = math.sqrt(sum(one.std_error**2 for one in scores))
    characters = [row.given.count(".") if row.given else len(row.text) for row in rows]
    sizes = [row.given.count(".") if row.given else len(row.text.encode()) for row in rows]
    a_token = ratio(nats, tokens, error)
    a_character = ratio(nats, characters, error).map(_bits)
    known = [one for one, row in zip(scores, rows, strict=True) if row.asks and one.greedy is not None]
    return {
        "method": scores[0].method,
        "nats": sum(nats),
        "std_error": error,
        "tokens": sum(tokens),
        "characters": sum(characters),
        **a_token.named("nats_per_token"),
        **a_character.named("bits_per_character"),
        "bits_per_character_error": error / math.log(2) / max(1, sum(characters)),
        **ratio(nats, sizes, error).map(_bits).named("bits_per_byte"),
        **a_token.map(_perplexity).named("perplexity"),
        **(share(sum(bool(one.greedy) for one in known), len(known)).named("greedy") if known else {}),
    }


def _bits(nats: float) -> float:
    return nats / math.log(2)


def _perplexity(nats: float) -> float:
    return math.exp(min(700.0, nats))


def _window(lm: DiffusionLM, row: Row) -> list[Window]:
    """A canvas as one window; raises UnmaskError where characters and tokens do not go together."""
    ids = encode_text(row.text, lm.tokenizer, lm.config, lm.name)
    if row.given is None or len(ids) != len(row.given):
        raise UnmaskError(f"canvases are scored where each character is a token and all rows have one: {row.text:.30}")
    return [Window(ids, [character == "." for character in row.given])]


def same(answer: str, right: str) -> bool:
    """Whether two answers are one: as JSON where both are, else as text without the space around."""
    try:
        return bool(json.loads(answer) == json.loads(right))
    except json.JSONDecodeError:
        return answer.strip() == right.strip()


def answers(
    lm: DiffusionLM, rows: list[Row], max_new_tokens: int, options: dict[str, Any], progress: Progress, batch: int = 8
) -> list[Output]:
    """An answer to every prompt; open tokens of a canvas are filled.

    max_new_tokens: of an answer at most; less where less fits behind its prompt.
    """
    outs = list[Output]()
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        if part[0].given is not None:
            outs += [lm.fill((row.given or "").replace(".", "[[mask:1]]"), **options) for row in part]
        else:
            prompts = [lm.encode(row.prompt)[0] for row in part]
            most = max(1, min(max_new_tokens, lm.room(max(map(len, prompts)))))
            outs += lm.generate(prompts, most, **options)
        progress(min(1.0, (start + batch) / len(rows)))
    return outs


def exact_match(rows: list[Row], outs: list[Output]) -> dict[str, Any]:
    """Share of right answers, tokens a step and the first wrong answers; `items`: right, tokens and steps of each."""
    items = [(same(o.text, row.text), len(o.token_ids), o.steps) for row, o in zip(rows, outs, strict=True)]
    wrong = [
        {"prompt": row.prompt if row.given is None else row.given, "answer": out.text, "right": row.text}
        for row, out, (right, _, _) in zip(rows, outs, items, strict=True)
        if not right
    ]
    return {
        "rows": len(rows),
        **share(sum(right for right, _, _ in items), len(rows)).named("exact_match"),
        **ratio([t for _, t, _ in items], [s for _, _, s in items]).named("tokens_per_step"),
        "wrong": wrong[:5],
        "items": items,
    }
