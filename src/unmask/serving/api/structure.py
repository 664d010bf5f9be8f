"""What a request's text has to match: `response_format`, `structured_outputs` and `tools`, honoured or refused."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.serving.api.errors import BUSY, APIError
from unmask.serving.api.options import refuse
from unmask.serving.api.schema import ChatRequest, CompletionRequest, Function, NamedChoice
from unmask.serving.api.tool_calls import ToolRule, form_of
from unmask.structured.effort import Effort
from unmask.structured.grammars import RegexRule, Rule, SchemaRule
from unmask.structured.tool_calls import CallForm

if TYPE_CHECKING:
    from unmask.structured.grammar import Grammar

IN_LINE = 16  # rules that may wait to be compiled
ANY_OBJECT, NO_ARGUMENTS = {"type": "object"}, {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class StructureLimits:
    """What a rule of a request may cost."""

    characters: int = 1 << 16  # of a schema written as JSON, all tools together, or of a regular expression
    depth: int = 32  # of lists and objects in a schema
    seconds: float = 5.0  # of compiling it

    def effort(self) -> Effort:
        return Effort(seconds=self.seconds, entries=8_000_000)


@dataclass(frozen=True)
class Structure:
    """The rule of a request's text, and how to read calls from it where it has tools."""

    rule: Rule
    field: str  # that asked for it
    calls: CallForm | None = None
    free: bool = False  # the text may also be prose, which can be cut

    def grammar(self, lm: DiffusionLM, bounds: StructureLimits) -> Grammar:
        """The compiled rule; what is refused is the field's fault."""
        try:
            return lm.grammars.get(self.rule, bounds.effort)
        except UnmaskError as error:
            raise APIError(400, f"{self.field}: {error}", param=self.field) from None


def structure_of(body: ChatRequest | CompletionRequest, lm: DiffusionLM, bounds: StructureLimits) -> Structure | None:
    """The structure that a request asks for, None for plain text. Raises APIError for what cannot be honoured."""
    found = [asked for asked in (_format(body), _structured(body)) if asked is not None]
    if isinstance(body, ChatRequest):
        tools = _tools(body, lm)
        found += [] if tools is None else [tools]
    if len(found) > 1:
        raise refuse(found[1].field, f"cannot be honoured together with {found[0].field}; leave out one of them")
    for asked in found:
        if len(asked.rule.text) > bounds.characters:
            raise refuse(asked.field, f"is larger than the {bounds.characters} characters that this server takes")
        if not isinstance(asked.rule, RegexRule) and _depth(json.loads(asked.rule.text)) > bounds.depth:
            raise refuse(asked.field, f"is nested deeper than the {bounds.depth} levels that this server takes")
        if body.stop:
            raise refuse("stop", f"would cut the text that {asked.field} completes; leave out one of them")
    return found[0] if found else None


def _format(body: ChatRequest | CompletionRequest) -> Structure | None:
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return Structure(SchemaRule.of(ANY_OBJECT), "response_format")
    assert asked.json_schema is not None  # the body was checked
    schema = asked.json_schema.schema_
    return Structure(SchemaRule.of(ANY_OBJECT if schema is None else schema), "response_format")


def _structured(body: ChatRequest | CompletionRequest) -> Structure | None:
    asked = body.structured_outputs
    return None if asked is None else Structure(RegexRule(asked.regex), "structured_outputs")


def _tools(body: ChatRequest, lm: DiffusionLM) -> Structure | None:
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none"):
            raise refuse("tool_choice", "needs tools")
        return None
    form = form_of(lm.chat_template)
    if form is None:
        raise refuse("tools", f"are not available: the chat template of model '{lm.name}' does not render tools")
    names = [tool.function.name for tool in body.tools]
    if len(set(names)) < len(names):
        raise refuse("tools", "hold two functions of one name")
    if choice == "none":
        return None
    functions = [(tool.function.name, _parameters(tool.function)) for tool in body.tools]
    if isinstance(choice, NamedChoice):
        functions = [(name, schema) for name, schema in functions if name == choice.function.name]
        if not functions:
            raise refuse("tool_choice", f"names function '{choice.function.name}', which is not among the tools")
    free = choice in (None, "auto")
    rule = ToolRule.of(form, functions, free, bool(body.parallel_tool_calls))
    return Structure(rule, "tools", form, free)


def _parameters(function: Function) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    schema = function.parameters
    if not schema:
        return NO_ARGUMENTS
    if schema.get("type", "object") != "object":
        raise refuse("tools", f"hold function '{function.name}', whose parameters are not of type object")
    return {**schema, "type": "object"}


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, dict | list) else 0


class Compiler:
    """Compiles rules beside the event loop and the engine, one at a time, so that what follows finds them."""

    def __init__(self, bounds: StructureLimits) -> None:
        self.bounds, self.gate, self.waiting = bounds, asyncio.Semaphore(1), 0

    async def ready(self, body: Any, lm: DiffusionLM) -> None:
        """Waits until the rule of a request, if it has one, is compiled."""
        if not isinstance(body, ChatRequest | CompletionRequest):
            return
        structure = structure_of(body, lm, self.bounds)
        if structure is None or lm.grammars.find(structure.rule) is not None:
            return
        if self.waiting >= IN_LINE:
            raise APIError(429, "too many new schemas at once; try again later", BUSY, code="queue_full")
        self.waiting += 1
        try:
            async with self.gate:
                await asyncio.to_thread(structure.grammar, lm, self.bounds)
        finally:
            self.waiting -= 1
