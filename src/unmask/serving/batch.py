"""Files of requests, as OpenAI's batches have them: a request a line goes in, an answer a line comes out.

The output is appended to, line by line, so a run that was killed is gone on with by the same command. A line's id
follows from the line, and so does its seed where it names none: whoever answers it, and however often it was tried.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from starlette.types import ASGIApp

from unmask.errors import UnmaskError
from unmask.serving.api.errors import APIError, invalid
from unmask.serving.api.schema import Strict
from unmask.serving.api.strict_json import parse
from unmask.serving.asgi import Asked, whole

BEGINNING = b'{"id": "batch_req_'  # of every line that is written
SYNCED = 1.0  # seconds between calls that make sure that lines are on the disk
Record = dict[str, Any]


class Line(Strict):
    """One request of a batch."""

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str = Field(max_length=256, pattern="^/v1/[a-z/]*[a-z]$")
    body: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line as read. `id` is that of its answer; a line that is no request has an error in place of one."""

    number: int
    id: str
    custom_id: str | None
    line: Line | None
    error: str = ""


def read(path: Path) -> Iterator[Entry]:
    """The lines of a batch that are not blank; a file that cannot be read raises UnmaskError."""
    alike: Counter[bytes] = Counter()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                raw = line.strip()
                if raw:
                    digest = hashlib.sha256(raw).digest()
                    alike[digest] += 1  # lines without a custom_id may be the same to the byte
                    name = hashlib.sha256(digest + str(alike[digest]).encode()).hexdigest()[:24]
                    yield _entry(number, f"batch_req_{name}", raw)
    except OSError as error:
        raise UnmaskError(f"{path} cannot be read ({error.strerror or error})") from None


def _entry(number: int, id: str, raw: bytes) -> Entry:
    custom_id: Any = None
    try:
        value = parse(raw)
        if not isinstance(value, dict):
            raise APIError(400, "the line is no JSON object")
        custom_id = value.get("custom_id")
        line = Line.model_validate(value)
        if line.body.get("stream"):
            raise APIError(400, "field 'stream': a batch answers as a whole; leave it out")
        return Entry(number, id, line.custom_id, line)
    except ValidationError as error:
        problem = str(invalid(error, value)) if "body" in value else "field 'body' is missing"
    except APIError as error:
        problem = str(error).replace("the body ", "the line ", 1).replace(" at line 1, column", " at column")
    return Entry(number, id, custom_id if isinstance(custom_id, str) else None, None, problem)


def survey(path: Path) -> dict[str, str | None]:
    """Id and custom_id of every line. A custom_id that stands twice raises UnmaskError."""
    out = dict[str, str | None]()
    lines = dict[str, int]()
    for entry in read(path):
        if entry.custom_id is not None:
            first = lines.setdefault(entry.custom_id, entry.number)
            if first != entry.number:
                raise UnmaskError(
                    f"{path}: custom_id {entry.custom_id!r:.80} stands in line {first} and in line {entry.number}; "
                    "give every line its own"
                )
        out[entry.id] = entry.custom_id
    return out


class Answers:
    """The output file of a batch: locked, checked, and appended to a whole line at a time."""

    def __init__(self, path: Path, asked: dict[str, str | None]) -> None:
        """Opens a file, which may hold answers to some of what is asked; a cut last line of them is taken off.

        Raises UnmaskError for a file that another run writes, or that holds anything else.
        """
        self.path = path
        self.done = set[str]()
        self.failed = 0
        self.tokens = 0
        self.made = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UnmaskError(f"{path} cannot be written ({error.strerror or error})") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.size = self._take(asked)
            os.ftruncate(self.file, self.size)
            os.lseek(self.file, self.size, os.SEEK_SET)
        except BlockingIOError:
            os.close(self.file)
            raise UnmaskError(f"{path} is being written by another batch; wait for it to end") from None
        except BaseException:
            os.close(self.file)
            raise
        self.synced = time.monotonic()

    def _take(self, asked: dict[str, str | None]) -> int:
        """Reads what is there; bytes of it that stay."""
        size = 0
        custom_ids = set(asked.values())
        with open(self.file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if not line.startswith(BEGINNING[: len(line)]):
                        raise self._foreign(number)
                    return size
                try:
                    record = json.loads(line)
                    id = record["id"]
                    response = record["response"]
                    self._count(response)
                except (ValueError, KeyError, TypeError):
                    raise self._foreign(number) from None
                if id not in asked:
                    what = "otherwise" if record.get("custom_id") in custom_ids - {None} else "not"
                    raise UnmaskError(
                        f"{self.path} line {number} answers {record.get('custom_id')!r:.80}, which is {what} asked "
                        "here; choose another output file"
                    )
                self.done.add(id)
                size += len(line)
        return size

    def _foreign(self, number: int) -> UnmaskError:
        return UnmaskError(f"{self.path} line {number} is no answer of a batch; choose another output file")

    def _count(self, response: Record | None) -> None:
        self.failed += response is None or response["status_code"] != 200
        if response is not None:
            self.tokens += response["body"].get("usage", {}).get("completion_tokens", 0)

    def add(self, record: Record) -> None:
        """Appends a line, all of it or nothing."""
        line = json.dumps(record).encode() + b"\n"  # in ASCII: some readers take U+2028 for the end of a line
        assert line.startswith(BEGINNING)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self.file, rest) :]
            if time.monotonic() > self.synced + SYNCED:
                os.fsync(self.file)
                self.synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self.file, self.size)
            raise UnmaskError(
                f"{self.path} cannot be written ({error.strerror or error}); what is in it stays, and the same "
                "command goes on with it"
            ) from None
        self.size += len(line)
        self.done.add(record["id"])
        self._count(record["response"])

    def close(self) -> None:
        os.fsync(self.file)
        os.close(self.file)
        if self.made and not self.size:  # nothing came of it
            self.path.unlink(missing_ok=True)


async def run(
    app: ASGIApp, entries: Iterator[Entry], answers: Answers, at_once: int, told: Callable[[], None] = lambda: None
) -> None:
    """Answers what is not answered yet, `at_once` lines at a time; `told` is called after each."""

    async def work() -> None:
        for entry in entries:  # one iterator for all: each takes the next line
            if entry.id not in answers.done:
                answers.add(await answer(app, entry))
                told()

    await asyncio.gather(*(work() for _ in range(at_once)))


async def answer(app: ASGIApp, entry: Entry) -> Record:
    """The line that answers a line."""
    record: Record = {"id": entry.id, "custom_id": entry.custom_id, "response": None, "error": None}
    if entry.line is None:
        record["error"] = {"code": "invalid_line", "message": f"line {entry.number}: {entry.error}"}
        return record
    body = dict(entry.line.body)
    if body.get("seed") is None:
        body["seed"] = int(hashlib.sha256(entry.id.encode()).hexdigest()[:8], 16) >> 1
    status, reply = await whole(app, Asked(entry.line.url, json.dumps(body).encode()))
    record["response"] = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": json.loads(reply)}
    return record
