"""The documents of a corpus, streamed from text, JSONL and Parquet files, gzipped or not, and from folders of them."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.training.data import DataConfig

TABLES = {".json", ".csv", ".tsv", ".arrow", ".zip"}  # that would be learned as prose
ENDINGS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
SURROGATES = re.compile("[\ud800-\udfff]")
BATCH = 256  # Parquet rows read at once


@dataclass(frozen=True)
class Document:
    """A text and, before it, a prompt that is given and not learned; or a conversation, whose answers are learned; or a
    canvas, with "." in `given` for each token that is learned."""

    text: str = ""
    prompt: str = ""
    given: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    source: str = field(default="", compare=False)  # file and row, for messages


class Documents:
    """All documents of some files, read anew at every iteration and never held as a whole.

    patterns: files, folders or globs. A file's format is that of the config, else that of its name's ending; rows hold
    `text`, or `prompt` and `response`, or `messages` (with `tools`), under the names that the config gives. Raises
    UnmaskError with file and row for what cannot be read or holds no text.
    """

    def __init__(self, patterns: tuple[str, ...], config: DataConfig) -> None:
        self.config = config
        self.paths = [path for pattern in patterns for path in self._paths(pattern)]
        try:
            self.split = re.compile(config.split, re.MULTILINE)
        except re.error as error:
            raise UnmaskError(f"data.split '{config.split}' is not a regular expression ({error})") from None

    def _paths(self, pattern: str) -> list[Path]:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise UnmaskError(f"corpus '{pattern}': no such file; check `data.files` in the recipe")
        out: list[Path] = []
        for path in map(Path, found):
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _ending(p) in ENDINGS)
            if path.is_dir() and not inside:
                raise UnmaskError(f"corpus {path}: a folder without a file that ends in {', '.join(ENDINGS)} (or .gz)")
            out += inside if path.is_dir() else [path]
        return out

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def fingerprint(self) -> str:
        """A hash of all files' contents and of how they are read."""
        c = self.config
        digest = hashlib.sha256(repr((c.format, c.split, c.columns)).encode())
        for path in self.paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def __iter__(self) -> Iterator[Document]:
        anything = False
        for path in self.paths:
            for document in self._read(path):
                anything = anything or bool(document.text.strip() or document.messages)
                yield document
        if not anything:
            names = ", ".join(map(str, self.paths))
            raise UnmaskError(f"corpus {names}: no text in it; an empty corpus cannot be trained on")

    def _read(self, path: Path) -> Iterator[Document]:
        kind = self.config.format
        if kind == "auto" and _ending(path) in TABLES:
            raise UnmaskError(
                f"corpus {path}: make rows of it (.jsonl or .parquet), or say data.format=text to learn it as it is"
            )
        if kind == "auto":
            kind = ENDINGS.get(_ending(path), "text")  # type: ignore[assignment]
        try:
            if kind == "text":
                yield from self._pieces(_text(path), str(path))
                return
            rows = _parquet(path, self.config.columns) if kind == "parquet" else _jsonl(path)
            number = 0
            for number, record in rows:
                yield from self._documents(record, f"corpus {path}: row {number}")
        except (OSError, EOFError, zlib.error) as error:
            raise UnmaskError(f"corpus {path}: not readable as {kind} ({error})") from None
        if not number:
            raise UnmaskError(f"corpus {path}: not readable as {kind} (no rows in it)")

    def _pieces(self, text: str, source: str) -> Iterator[Document]:
        """The text cut before every match of the config's pattern."""
        starts = [m.start() for m in self.split.finditer(text)] if self.config.split else []
        for a, b in zip([0, *starts], [*starts, len(text)], strict=True):
            piece = text[a:b].strip()
            if piece:
                yield Document(piece, source=source)

    def _documents(self, record: Any, source: str) -> Iterator[Document]:
        if not isinstance(record, dict):
            raise UnmaskError(f"{source}: is {type(record).__name__}, not an object with named columns")
        if self.config.format == "canvases":
            yield self._canvas(record.get("canvas"), record.get("given"), source)
            return
        names = self.config.columns
        read: Any = [record.get(names.get(role, role)) for role in ("text", "prompt", "response", "messages")]
        text, prompt, response, messages = read
        for value in (text, prompt, response):
            _check_text(value, source)
        kinds = {
            "text": isinstance(text, str),
            "response": isinstance(prompt, str) and isinstance(response, str),
            "messages": messages is not None,
        }
        found = [role for role, there in kinds.items() if there]
        named = [role for role in found if role in names] or found
        if len(named) > 1:
            raise UnmaskError(
                f"{source}: holds {' and '.join(map(repr, named))}, of which one is learned; "
                f"say which, as data.columns={{{named[-1]}: {named[-1]}}}"
            )
        if named == ["text"]:
            yield from self._pieces(text, source)
        elif named == ["response"]:
            yield Document(response, prompt, source=source)
        elif named:
            yield _conversation(messages, record.get(names.get("tools", "tools")), source)
        else:
            shown = {key: "null" if value is None else type(value).__name__ for key, value in record.items()}
            raise UnmaskError(
                f"{source}: needs text in 'text', or in 'prompt' and 'response', or 'messages'; found {shown!r:.200}"
            )

    def _canvas(self, canvas: Any, given: Any, source: str) -> Document:
        if not isinstance(canvas, str) or not isinstance(given, str) or len(canvas) != len(given):
            raise UnmaskError(f"{source}: needs 'canvas' and 'given', two texts of one length")
        if len(canvas) != self.config.length:
            raise UnmaskError(f"{source}: {len(canvas)} tokens on a canvas of {self.config.length} (data.length)")
        return Document(canvas, given=given, source=source)


def _ending(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def _text(path: Path) -> str:
    """A text file's content, without a byte-order mark, its line ends as newlines."""
    with _open(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnmaskError(f"corpus {path}: not UTF-8 text (byte {error.start}); convert it first") from None
    if "\0" in text:
        raise UnmaskError(f"corpus {path}: holds zero bytes, so it is not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names stand once each."""
    made = dict(pairs)
    if len(made) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"'{twice:.40}' stands twice in one object")
    return made


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers, from 1, and values."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8"), object_pairs_hook=_once)
            except UnicodeDecodeError as error:
                raise UnmaskError(
                    f"corpus {path}: row {number}: not UTF-8 text (byte {error.start} of the row); convert it first"
                ) from None
            except (ValueError, RecursionError) as error:
                raise UnmaskError(f"corpus {path}: row {number}: not readable as jsonl ({error})") from None


def _parquet(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        wanted = {columns.get(role, role) for role in ("text", "prompt", "response", "messages", "tools")}
        present = [name for name in file.schema_arrow.names if name in wanted]
        if len(set(present)) < len(present):
            raise UnmaskError(f"corpus {path}: two columns have one name ({', '.join(present)}); rename one")
        batches = file.iter_batches(BATCH, columns=present or None)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except pa.ArrowException as error:
        raise UnmaskError(f"corpus {path}: not readable as parquet ({str(error).splitlines()[0]})") from None


def _conversation(messages: Any, tools: Any, source: str) -> Document:
    """A conversation whose answers can be learned; Parquet pads messages with nulls, which are dropped."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UnmaskError(f"{source}: 'messages' must be a list of objects with 'role' and 'content'")
    cleaned = tuple({k: v for k, v in m.items() if v is not None or k == "content"} for m in messages)
    roles = [m.get("role") for m in cleaned]
    if "assistant" not in roles:
        raise UnmaskError(f"{source}: no assistant turn, so nothing to learn")
    for turn, message in enumerate(cleaned, 1):
        content = message.get("content")
        if not isinstance(message.get("role"), str) or not (content is None or isinstance(content, str)):
            raise UnmaskError(f"{source}: turn {turn} needs a 'role' and a 'content' that is text")
        if content is None and message["role"] == "assistant" and not message.get("tool_calls"):
            raise UnmaskError(f"{source}: turn {turn} has neither content nor tool_calls")
        if message.get("weight", 1) != 1:  # OpenAI's, for answers that are not learned
            raise UnmaskError(
                f"{source}: turn {turn} has weight {message['weight']!r:.20}, and all answers of a row are learned; "
                "leave it out, or end the row before it"
            )
        _check_text(content, source)
        calls = message.get("tool_calls", [])
        if not isinstance(calls, list):
            raise UnmaskError(f"{source}: turn {turn}: 'tool_calls' must be a list")
        for call in calls:
            _check_call(call, f"{source}: turn {turn}")
    if isinstance(tools, str) and tools:
        tools = _loads(tools, f"{source}: 'tools'")
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise UnmaskError(f"{source}: 'tools' must be a list of objects")
    return Document(messages=cleaned, tools=tuple(tools or ()), source=source)


def _check_text(value: Any, source: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise UnmaskError(f"{source}: holds the character U+0000, so it is not text")
    if isinstance(value, str) and SURROGATES.search(value):
        raise UnmaskError(f"{source}: holds half of a surrogate pair, which is no character")


def _check_call(call: Any, source: str) -> None:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UnmaskError(f"{source}: a tool call needs a function with a name")
    arguments = function.get("arguments")
    what = f"{source}: the arguments of tool call '{function['name']}'"
    if isinstance(arguments, str) and arguments.strip():
        arguments = _loads(arguments, what)
    if arguments and not isinstance(arguments, dict):
        raise UnmaskError(f"{what} must be an object with named values, got {type(arguments).__name__}")


def _loads(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UnmaskError(f"{what} are not JSON ({error})") from None
