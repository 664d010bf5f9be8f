"""What a client is told when something is wrong: the error shape of OpenAI, one clear sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from unmask.errors import UnmaskError
from unmask.serving.engine import Refused

INVALID, MISSING, BUSY, FAULT = "invalid_request_error", "not_found_error", "server_busy", "server_error"


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class APIError(Exception):
    """An answer that is not a success. `param` names the field at fault."""

    def __init__(
        self, status: int, message: str, type: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        # clients' own words may be in it
        message = "".join(c if c.isprintable() else " " for c in message[:400])
        super().__init__(message)
        self.status, self.detail = status, ErrorDetail(message=message, type=type, param=param, code=code)

    @property
    def headers(self) -> dict[str, str]:
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        return ErrorBody(error=self.detail).model_dump()

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def of(error: Exception) -> APIError:
    """The answer that an exception makes."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, UnmaskError):
        return APIError(400, str(error))
    if isinstance(error, Refused):
        if error.reason == "full":
            return APIError(429, str(error), BUSY, code="queue_full")
        return APIError(503 if error.reason == "closing" else 400, str(error), BUSY)
    if isinstance(error, TimeoutError):
        return APIError(408, "the request took longer than the server allows; ask for fewer tokens", code="timeout")
    return APIError(500, "the model failed on this request; it is in the server's log", FAULT)


def sentence(errors: Sequence[Any]) -> tuple[str, str | None]:
    """One sentence about a body that does not hold to its schema, and the field it is about."""
    first = max(errors, key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])), default=None)
    if first is None:
        return "the body does not hold to the schema", None
    where = [str(part) for part in first["loc"] if part != "body"]
    # the parts of a union that pydantic tried are names of types, not of fields
    name = ".".join(part for part in where if part[:1].islower() and "[" not in part and part not in _TYPES) or None
    kind, message = first["type"], str(first["msg"])
    if kind == "extra_forbidden":
        return f"field '{name}' is unknown to this server and would be ignored; leave it out", name
    if kind == "missing":
        return (f"field '{name}' is missing" if name else "the request has no body"), name
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
    if not name:
        return f"the body is not as it should be: {message[0].lower()}{message[1:]}", None
    return f"field '{name}': {message[0].lower()}{message[1:]}", name


_TYPES = {"str", "int", "float", "bool", "none", "list", "dict"}


def install(app: FastAPI) -> None:
    """Makes every error of an app answer in this shape."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return of(error).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param = sentence(error.errors())
        return APIError(400, message, param=param).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        messages = {404: f"there is nothing at {request.url.path[:200]}", 405: "this address takes another method"}
        message = messages.get(error.status_code, str(error.detail))
        answer = APIError(error.status_code, message, MISSING if error.status_code == 404 else INVALID).response()
        answer.headers.update(error.headers or {})
        return answer

    for kind in (APIError, UnmaskError, Refused, TimeoutError, Exception):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
