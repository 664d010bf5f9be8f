"""What a client is told when something is wrong: one clear sentence, in the shape that the client's own API has."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

from unmask.errors import UnmaskError, one_line
from unmask.serving.engine import Refused

INVALID = "invalid_request_error"
MISSING = "not_found_error"
BUSY = "server_busy"
FAULT = "server_error"
MANY = 2000  # mistakes in one body of which no list is made


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class AnthropicError(BaseModel):
    """The same as Anthropic's clients read it."""

    type: str
    error: ErrorDetail


class OllamaError(BaseModel):
    """The same as Ollama's clients read it."""

    error: str


class APIError(Exception):
    """An answer that is not a success. `param` names the field at fault."""

    def __init__(
        self, status: int, message: str, type: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        message = one_line(message)
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message=message, type=type, param=param, code=code)

    @property
    def headers(self) -> dict[str, str]:
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self, path: str = "") -> dict[str, Any]:
        """As OpenAI's clients read it, or at the paths of other APIs theirs."""
        if path.startswith("/v1/messages"):  # Anthropic's
            kinds = {401: "authentication_error", 404: MISSING, 429: "rate_limit_error", 503: "overloaded_error"}
            kind = kinds.get(self.status, INVALID if self.status < 500 else "api_error")
            return {"type": "error", "error": {"type": kind, "message": self.detail.message}}
        if path.startswith("/api/"):  # Ollama's
            return {"error": self.detail.message}
        return ErrorBody(error=self.detail).model_dump()

    def response(self, path: str = "") -> JSONResponse:
        return JSONResponse(self.body(path), self.status, self.headers)


def error_model(path: str) -> type[BaseModel]:
    """What the body of an error is at a path."""
    if path.startswith("/v1/messages"):
        return AnthropicError
    return OllamaError if path.startswith("/api/") else ErrorBody


def refuse(field: str, why: str) -> APIError:
    return APIError(400, f"{field} {why}", param=field)


def of(error: BaseException) -> APIError:
    """The answer that an exception makes."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, ValidationError):
        return invalid(error, {})  # of what another API's body becomes
    if isinstance(error, UnmaskError):
        return _of_option(str(error))
    if isinstance(error, Refused):
        if error.reason == "full":
            return APIError(429, str(error), BUSY, code="queue_full")
        return APIError(503 if error.reason == "closing" else 400, str(error), BUSY)
    if isinstance(error, TimeoutError):
        return APIError(408, "the request took longer than the server allows; ask for fewer tokens", code="timeout")
    return APIError(500, "the model failed on this request; it is in the server's log", FAULT)


def _of_option(message: str) -> APIError:
    """What the library says of its options, said of the field with the option's name."""
    found = re.match(r"option '?(\w+)'? (?:changes nothing here; (.*) takes )?", message)
    if found is None:
        return APIError(400, message)
    if found[2] is not None:
        message = f"field '{found[1]}' changes nothing: {found[2]} does not read it; leave it out"
    return APIError(400, message, param=found[1])


def invalid(error: ValidationError, body: Any) -> APIError:
    """What is wrong with a body that does not hold to its schema: one sentence in the client's own terms."""
    if error.error_count() > MANY:
        return APIError(400, f"the body holds {error.error_count()} values or fields that this address does not take")
    found = [(_names(one["loc"], body), one) for one in error.errors(include_url=False, include_context=True)]
    # of the alternatives that a field has, the one that the client's value came closest to
    rank = {"value_error": 2, "too_long": 2}

    def closeness(one: tuple[list[int | str], Any]) -> tuple[bool, int, int]:
        kind = one[1]["type"]
        return kind == "extra_forbidden", len(one[0]), 0 if kind.endswith("_type") else rank.get(kind, 1)

    names, first = max(found, key=closeness)
    name = ".".join(map(str, names))
    return APIError(400, _sentence(first, name), param=name or None)


def _names(location: tuple[int | str, ...], value: Any) -> list[int | str]:
    """The fields of a client's body on the way to a mistake, without the alternatives of a schema that were tried."""
    out: list[int | str] = []
    for number, part in enumerate(location):
        last = number == len(location) - 1
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif isinstance(value, dict) and (part in value or last):
            value = value.get(part)
        else:
            continue
        out.append(part)
    return out


def _sentence(error: Any, name: str) -> str:
    kind = error["type"]
    message = str(error["msg"])
    context = error.get("ctx", {})
    where = f"field '{name}'" if name else "the body"
    if kind == "extra_forbidden":
        return f"{where} is unknown to this server and would be ignored; leave it out"
    if kind == "missing":
        return f"{where} is missing"
    if kind == "too_long" and "actual_length" in context:
        given = context["actual_length"] or "more"
        return f"{where} holds {given} entries, and at most {context['max_length']} are taken"
    message = message.removeprefix("Value error, ")
    return f"{where}{':' if name else ' is not as it should be:'} {message[0].lower()}{message[1:]}"
