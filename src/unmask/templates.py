"""Chat templates are foreign code: rendered in a sandbox, within bounds of time and of text."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0  # of computing that rendering may take: a busy machine is not the template's fault
CHARACTERS = 1 << 24  # of any text that a template makes
NESTING = 4096  # of a number that a power is made of, in bits
_clock = threading.local()


class OutOfBounds(TemplateError):
    """A template that takes too long, or makes too much."""


def _check_time() -> None:
    if time.thread_time() > getattr(_clock, "until", float("inf")):
        raise OutOfBounds(f"it takes longer than {SECONDS:g} seconds")


def _check_size(characters: int) -> None:
    if characters > CHARACTERS:
        raise OutOfBounds(f"it makes more than {CHARACTERS} characters")


def _size(value: Any) -> int:
    """What something takes, in characters: an entry of a list is a pointer and some work."""
    if isinstance(value, list | tuple | dict):
        return 16 * len(value)
    return len(value) if isinstance(value, str | bytes) else 0


def _written_size(value: Any) -> int:
    """Characters of the texts in something, each counted as often as it is written; stops where they are too many."""
    total, open_parts = 0, [value]
    while open_parts and total <= CHARACTERS:
        part = open_parts.pop()
        if isinstance(part, dict):
            open_parts += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            open_parts += part
        total += _size(part) or 1
    return total


def _check_format(text: Any, *arguments: Any) -> None:
    """A width or a precision within a format makes so much text, and each of its fields what is put there."""
    if not isinstance(text, str):
        return
    if re.search(r"\d{6}", text):
        raise OutOfBounds("it formats with a width of six digits or more")
    if re.search(r":[^{}]*\{|%[^a-zA-Z%]*\*", text):
        raise OutOfBounds("it formats with a width that it computes")
    fields = text.count("{") + text.count("%")
    widest = max(map(int, re.findall(r"\d+", text)), default=0)
    _check_size(len(text) + fields * (_written_size(arguments) + widest))


def _check_made(name: str, value: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The size of what a method or a filter that could make much of little is about to make."""
    given = (*arguments, *options.values())
    number = max((one for one in given if isinstance(one, int)), default=0)
    longest = max((_size(one) for one in given if isinstance(one, str | bytes)), default=0)
    text: Any = value if isinstance(value, str | bytes) else ""
    if name in ("format", "format_map"):
        _check_format(value, *given)
    elif name == "indent":
        _check_size(len(text) + (text.count("\n") + 1) * max(number, longest))
    elif name == "expandtabs":
        _check_size(len(text) + text.count("\t") * number)
    elif name == "replace" and len(given) > 1 and type(given[0]) is type(text):
        _check_size(len(text) + text.count(given[0]) * _size(given[1]))
    elif name == "translate":
        _check_size(len(text) * max(1, max((_written_size(one) for one in given), default=0)))
    elif name == "join":
        parts = value if isinstance(value, list) else given[0] if given and isinstance(given[0], list) else []
        _check_size(_written_size(parts) + len(parts) * max(len(text), longest))
    elif name == "sum" and any(not isinstance(one, int | float) for one in [*arguments[1:], options.get("start", 0)]):
        raise OutOfBounds("it adds up what are no numbers")
    elif name == "tojson":
        indent = options.get("indent", arguments[1] if len(arguments) > 1 else None) or 0
        _check_size(_written_size(value) * (1 + (indent if isinstance(indent, int) else _size(indent))))
    elif name in ("batch", "slice"):
        _check_size(16 * number)
    elif name in WRITING:
        _check_size(_written_size(value))
    else:
        _check_size(number)


COUNTED = ("format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "translate")
WRITING = ("string", "escape", "e", "forceescape", "safe", "pprint", "xmlattr", "urlencode")
BOUNDED = ("center", "indent", "format", "replace", "join", "batch", "slice", "sum", "tojson", *WRITING)
UNBOUNDED = ("urlize", "wordwrap")  # filters whose time nothing bounds


class Generation(Extension):
    """`{% generation %}` marks what an assistant wrote; its text stays as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class BoundedCode(CodeGenerator):
    """Has the environment join texts."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(environment.written((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox that looks at the clock where a template reads or calls anything, and at sizes before it makes it."""

    code_generator_class = BoundedCode

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The clock is looked at in every turn of every loop."""
        parsed = super()._parse(source, name, filename)
        for loop in parsed.find_all(nodes.For):
            now = nodes.Call(nodes.EnvironmentAttribute("check_time"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(now))
        return parsed

    check_time = staticmethod(_check_time)
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    @staticmethod
    def written(parts: Iterable[Any]) -> Iterator[str]:
        """Parts that `~` joins, as text."""
        return (str(_finalised(part)) for part in parts)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What the parts of a macro or of a block make."""
        _check_time()
        texts = list(parts)
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def getattr(self, obj: Any, attribute: str) -> Any:
        _check_time()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _check_time()
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_time()
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(other, int):
                    _check_size(_size(one) * max(0, other))
        elif operator == "+":
            _check_size(_size(left) + _size(right))
        elif operator == "%":
            _check_format(left, right)
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > NESTING:
            raise OutOfBounds("it makes a number of more than 4096 bits")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *arguments: Any, **options: Any) -> Any:
        _check_time()
        text = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        name = getattr(function, "__name__", "")
        if isinstance(text, str | bytes) and name in COUNTED:
            if name == "join":
                arguments = tuple(map(_listed, arguments))
            _check_made(name, text, arguments, options)
        made = super().call(context, function, *arguments, **options)
        _check_size(_size(made))
        return made


def _listed(value: Any) -> Any:
    """What is made one by one, as a list, so that it can be counted."""
    return value if isinstance(value, str | bytes | list) or not hasattr(value, "__iter__") else list(value)


def _bounded(filter: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter of Jinja's that could make much of little."""
    skipped = 1 if hasattr(filter, "jinja_pass_arg") else 0  # Jinja's own argument: context, evaluation, environment

    @wraps(filter)
    def checked(*arguments: Any, **options: Any) -> Any:
        _check_time()
        before, value, rest = arguments[:skipped], arguments[skipped], arguments[skipped + 1 :]
        value = _listed(value) if name == "join" else value
        _check_made(name, value, rest, options)
        return filter(*before, value, *rest, **options)

    return checked


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _finalised(value: Any) -> Any:
    """What is about to be written."""
    if isinstance(value, list | tuple | dict):
        _check_size(_written_size(value))
    return value


@lru_cache(maxsize=8)
def compiled(text: str) -> Template:
    """A template with all that transformers gives those of the hub."""
    environment = BoundedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
        finalize=_finalised,
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
    for name in BOUNDED:
        environment.filters[name] = _bounded(environment.filters[name], name)
    for name in UNBOUNDED:
        del environment.filters[name]
    del environment.globals["lipsum"]
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: f"{datetime.now():{form}}"}
    return environment.from_string(text)


def render(text: str, variables: dict[str, Any]) -> str:
    """What a template makes of variables; raises TemplateError where it is out of bounds."""
    _clock.until = time.thread_time() + SECONDS
    parts = list[str]()
    size = 0
    for part in compiled(text).generate(variables):
        parts.append(part)
        size += len(part)
        _check_size(size)
        _check_time()
    return "".join(parts)
