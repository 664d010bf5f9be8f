"""JSON without the parts that readers disagree on: one meaning or an error.

Every check is linear in the body and mostly the interpreter's own C code: 1 MiB of anything takes some 50 ms at most.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from unmask.serving.api.errors import APIError

DEPTH = 64  # of lists and objects in each other
CONTAINERS = 50_000  # lists and objects: each takes more memory than the bytes that it is written with
STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
ODD = re.compile(rb"\\u[dD][89a-fA-F]|\d[eE]\+?\d\d|\d{300}")  # perhaps half of a surrogate pair, or infinite


def parse(body: bytes) -> Any:
    """The value of a body; anything odd raises APIError 400 with one sentence."""
    if not body.strip():
        raise APIError(400, "the request has no body")
    _check_nesting(body)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_constant, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise APIError(400, "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise APIError(400, message) from None
    except (RecursionError, ValueError):  # a number of thousands of digits
        raise APIError(400, "the body cannot be read: a number has too many digits") from None
    if ODD.search(body) is None:
        return value
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise APIError(400, "a text holds half of a surrogate pair, which is no character") from None
    except ValueError:
        raise APIError(400, "a number is too large") from None
    return value


def _check_nesting(body: bytes) -> None:
    """Refuses too many lists and objects, or too many in each other, before any is made."""
    if body.count(b"[") + body.count(b"{") <= DEPTH:
        return
    bytes_N = np.frombuffer(STRINGS.sub(b"", body), np.uint8)
    opens_N = (bytes_N == ord("[")) | (bytes_N == ord("{"))
    closes_N = (bytes_N == ord("]")) | (bytes_N == ord("}"))
    if (opens_N.astype(np.int32) - closes_N).cumsum().max(initial=0) > DEPTH:
        raise APIError(400, f"the body is nested deeper than {DEPTH} levels")
    if opens_N.sum() > CONTAINERS:
        raise APIError(400, f"the body holds more than {CONTAINERS} lists and objects")


def _constant(name: str) -> Any:
    raise APIError(400, f"{name} is not a number that JSON has")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        seen = set[str]()
        for name, _ in pairs:
            if name in seen:
                shown = name[:60].encode("utf-8", "replace").decode()
                raise APIError(400, f"field '{shown}' stands twice in one object")
            seen.add(name)
    return out
