"""JSON without the parts that readers disagree on: one meaning or an error."""

from __future__ import annotations

import json
import math
from typing import Any

from unmask.serving.api.errors import APIError

DEPTH = 64  # of lists and objects in each other


def parse(body: bytes) -> Any:
    """The value of a body; anything odd raises APIError 400 with one sentence."""
    if not body.strip():
        raise APIError(400, "the request has no body")
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_constant, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise APIError(400, "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise APIError(400, message) from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        what = "nested too deep" if isinstance(error, RecursionError) else "a number has too many digits"
        raise APIError(400, f"the body cannot be read: {what}") from None
    _check(value, 0)
    return value


def _constant(name: str) -> Any:
    raise APIError(400, f"{name} is not a number that JSON has")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise APIError(400, f"field '{_shown(twice)}' stands twice in one object")
    return out


def _check(value: Any, depth: int) -> None:
    if depth > DEPTH:
        raise APIError(400, f"the body is nested deeper than {DEPTH} levels")
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise APIError(400, "a text holds half of a surrogate pair, which is no character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise APIError(400, "a number is too large")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check(name, depth)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)


def _shown(name: str) -> str:
    return name[:60].encode("utf-8", "replace").decode()
