"""Chat templates are foreign code: rendered in a sandbox, within bounds of time and of text."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2.0  # that rendering may take
CHARACTERS = 1 << 24  # of any text that a template makes
NESTING = 4096  # of a number that a power is made of, in bits
_clock = threading.local()


class OutOfBounds(TemplateError):
    """A template that takes too long, or makes too much."""


def _check_time() -> None:
    if time.monotonic() > getattr(_clock, "until", float("inf")):
        raise OutOfBounds(f"it takes longer than {SECONDS:g} seconds")


def _check_size(characters: int) -> None:
    if characters > CHARACTERS:
        raise OutOfBounds(f"it makes more than {CHARACTERS} characters")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _check_format(text: Any) -> None:
    """A width or a precision within a format makes so much text."""
    if isinstance(text, str) and re.search(r"\d{6}", text):
        raise OutOfBounds("it formats with a width of six digits or more")


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
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox that looks at the clock where a template reads or calls anything, and at sizes before it makes it."""

    code_generator_class = BoundedCode
    intercepted_binops = frozenset({"*", "**", "%", "+"})

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
            _check_format(left)
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > NESTING:
            raise OutOfBounds("it makes a number of more than 4096 bits")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *arguments: Any, **options: Any) -> Any:
        _check_time()
        text = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(text, str | bytes):
            for value in (*arguments, *options.values()):
                _check_size(value if isinstance(value, int) else 0)
            if function.__name__ == "replace" and len(arguments) > 1:
                _check_size((len(text) + 1) * max(1, _size(arguments[1])))
            if function.__name__ == "join" and arguments:
                _check_size(len(text) * _size(arguments[0]))
            if function.__name__ in ("format", "format_map"):
                _check_format(text)
        made = super().call(context, function, *arguments, **options)
        _check_size(_size(made))
        return made


def _bounded(filter: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter of Jinja's that could make much of little."""

    def checked(text: Any, *arguments: Any, **options: Any) -> Any:
        _check_time()
        for value in (*arguments, *options.values()):
            _check_size(value * max(1, str(text).count("\n")) if isinstance(value, int) else 0)
        if name == "format":
            _check_format(text)
        return filter(text, *arguments, **options)

    return checked


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, "indent": indent, **options})


@lru_cache(maxsize=8)
def compiled(text: str) -> Template:
    """A template with all that transformers gives those of the hub."""
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    for name in ("center", "indent", "format", "wordwrap"):
        environment.filters[name] = _bounded(environment.filters[name], name)
    environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: f"{datetime.now():{form}}"}
    return environment.from_string(text)


def render(text: str, variables: dict[str, Any]) -> str:
    """What a template makes of variables; raises TemplateError where it is out of bounds."""
    _clock.until = time.monotonic() + SECONDS
    parts = list[str]()
    size = 0
    for part in compiled(text).generate(variables):
        parts.append(part)
        size += len(part)
        _check_size(size)
        _check_time()
    return "".join(parts)
