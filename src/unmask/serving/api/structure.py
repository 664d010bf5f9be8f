"""What a request's text has to match: `response_format`, `structured_outputs` and `tools`, honoured or refused."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.serving.api.errors import BUSY, APIError, refuse
from unmask.serving.api.schema import (
    AllowedTools,
    ChatRequest,
    Function,
    NamedChoice,
    Structured,
    StructuredOutputs,
    text_of,
)
from unmask.serving.api.settings import Settings
from unmask.serving.api.tool_calls import LISTED, ToolRule, as_trained, calls_schema, form_of, own_functions
from unmask.structured.effort import Effort
from unmask.structured.grammar import Grammar
from unmask.structured.grammars import RegexRule, Rule, SchemaRule, json_text
from unmask.structured.language import Alt, Text
from unmask.structured.prompt_lists import AnswerRule, answers_to, reads_prompt
from unmask.structured.tool_calls import CallForm
from unmask.structured.vocabulary import Vocabulary

IN_LINE = 16  # rules that may wait to be compiled
SHORT_SECONDS = 0.1  # of processor time, after which a rule waits for others that may be quicker
ANY_OBJECT = {"type": "object"}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


class OutOfTime(Exception):
    """A rule was not compiled in a short while."""


class ShortEffort(Effort):
    """Stops a compilation when its time is over, instead of trying it with shorter texts."""

    def check_time(self) -> None:
        if time.thread_time() - self.started > self.seconds:
            raise OutOfTime("it takes longer")


@dataclass(frozen=True)
class Structure:
    """The rule of a request's text, and how to read calls from it where it has tools."""

    rule: Rule
    field: str  # that asked for it
    calls: CallForm | None = None
    free: bool = False  # the text may also be prose, which can be cut

    def grammar(self, lm: DiffusionLM, limits: Settings, short: bool = False) -> Grammar:
        """The compiled rule; what is refused is the field's fault. `short`: raises OutOfTime after SHORT_SECONDS."""
        seconds = min(limits.schema_seconds, SHORT_SECONDS) if short else limits.schema_seconds
        kind = ShortEffort if short else Effort
        try:
            return lm.grammars.get(self.rule, lambda: kind(seconds=seconds, entries=4_000_000))
        except UnmaskError as error:
            raise APIError(400, f"{self.field}: {error}", param=self.field) from None


def structure_of(body: Structured, lm: DiffusionLM, limits: Settings) -> Structure | None:
    """The structure that a request asks for, None for plain text. Raises APIError for what cannot be honoured."""
    found = [*_format(body), *_structured(body)]
    if isinstance(body, ChatRequest):
        found += _tools(body, lm)
    if not found and reads_prompt(lm.answer_schema):  # compiled like any other, off the event loop
        found.append(Structure(AnswerRule.of(lm.answer_schema, _said(body)), "messages"))
    if len(found) > 1:
        raise refuse(found[1].field, f"cannot be honoured together with {found[0].field}; leave out one of them")
    for asked in found:
        if len(asked.rule.text) > limits.schema_characters:
            raise refuse(
                asked.field, f"is larger than the {limits.schema_characters} characters that this server takes"
            )
        if not isinstance(asked.rule, RegexRule) and _depth(_read(asked)) > limits.schema_depth:
            raise refuse(asked.field, f"is nested deeper than the {limits.schema_depth} levels that this server takes")
        if body.stop:
            raise refuse("stop", f"would cut the text that {asked.field} completes; leave out one of them")
    return found[0] if found else None


def _format(body: Structured) -> Iterator[Structure]:
    asked = body.response_format
    if asked is not None and asked.type != "text":
        schema = None if asked.json_schema is None else asked.json_schema.schema_
        yield Structure(SchemaRule.of(ANY_OBJECT if schema is None else schema), "response_format")


def _structured(body: Structured) -> Iterator[Structure]:
    asked = body.structured_outputs or StructuredOutputs.model_construct()
    for field, schema, regex, choice in (
        ("guided_json", body.guided_json, None, None),
        ("guided_regex", None, body.guided_regex, None),
        ("guided_choice", None, None, body.guided_choice),
        ("structured_outputs", ANY_OBJECT if asked.json_object else asked.json_, asked.regex, asked.choice),
    ):
        if schema is not None:
            yield Structure(SchemaRule.of(schema), field)
        if regex is not None:
            yield Structure(RegexRule(regex), field)
        if choice is not None:
            yield Structure(ChoiceRule(json_text(choice)), field)


@dataclass(frozen=True)
class ChoiceRule(Rule):
    """One of some texts. `text`: the texts as JSON."""

    def compiled(self, vocabulary: Vocabulary, effort: Effort) -> Grammar:
        choices = Alt(tuple(Text(choice.encode()) for choice in json.loads(self.text)))
        return Grammar.of_sizes(lambda *_: choices, vocabulary, "the choice", effort)


def _tools(body: ChatRequest, lm: DiffusionLM) -> Iterator[Structure]:
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise refuse("tool_choice", "needs tools")
        return
    names = [tool.function.name for tool in body.tools]
    if len(set(names)) < len(names):
        raise refuse("tools", "hold two functions of one name")
    if choice == "none":
        return
    functions = [(tool.function.name, _parameters(tool.function)) for tool in body.tools]
    wanted = _chosen(choice)
    for name in wanted:
        if name not in names:
            raise refuse("tool_choice", f"names function '{name}', which is not among the tools")
    if wanted:
        functions = [(name, schema) for name, schema in functions if name in wanted]
    mode = choice.allowed_tools.mode if isinstance(choice, AllowedTools) else choice
    free = mode in (None, "auto")
    several = bool(body.parallel_tool_calls)
    own = own_functions(answers_to(lm.answer_schema, _said(body)))
    if not own:
        form = form_of(lm.templates)
        yield Structure(ToolRule(json_text(functions), form, free, several), "tools", form, free)
        return
    functions = [(name, as_trained(schema, own[name])) for name, schema in functions if name in own]
    if not functions:
        some = ", ".join(list(own)[:3])
        raise refuse("tools", f"hold none of the {len(own)} functions that model '{body.model}' knows: {some}, ...")
    schema = calls_schema(lm.answer_schema or {}, functions, least=int(not free), most=None if several else 1)
    yield Structure(SchemaRule.of(schema), "tools", LISTED, free)


def _said(body: Structured) -> str:
    """What the prompt begins with: its text, or that of the messages, the system's first."""
    if not isinstance(body, ChatRequest):
        prompt = getattr(body, "prompt", "")
        return prompt if isinstance(prompt, str) else ""
    system = [message for message in body.messages if message.role in ("system", "developer")]
    return "\n".join(text_of(message.content) for message in system or body.messages)


def _chosen(choice: Any) -> set[str]:
    """Names of the functions that a choice leaves; none for all."""
    if isinstance(choice, NamedChoice):
        return {choice.function.name}
    return {tool.function.name for tool in choice.allowed_tools.tools} if isinstance(choice, AllowedTools) else set()


def _parameters(function: Function) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    schema = function.parameters
    if not schema:
        return NO_ARGUMENTS
    if schema.get("type", "object") != "object":
        raise refuse("tools", f"hold function '{function.name}', whose parameters are not of type object")
    return {**schema, "type": "object"}


def _read(asked: Structure) -> Any:
    try:
        return json.loads(asked.rule.text)
    except (ValueError, RecursionError):  # a schema may come as text
        raise refuse(asked.field, "is a text that is not JSON") from None


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


class Compiler:
    """Compiles rules beside the event loop and the engine, one at a time, the shortest first. Each has a short while at
    first; one that takes longer waits in a line of its own, so that it does not hold up the quick ones."""

    def __init__(self, limits: Settings) -> None:
        self.limits = limits
        self.numbers = itertools.count()
        self.line: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap of rules' sizes and turns
        self.busy = False
        self.slow = asyncio.Semaphore(1)
        self.waiting = 0
        self.long = set[Rule]()  # rules that were not compiled in a short while

    async def ready(self, structure: Structure, lm: DiffusionLM) -> None:
        """Waits until a rule is compiled."""
        if lm.grammars.find(structure.rule) is not None:
            return
        if self.waiting >= IN_LINE:
            raise APIError(429, "too many new schemas at once; try again later", BUSY, code="queue_full")
        self.waiting += 1
        try:
            if structure.rule not in self.long:
                if await self._in_short(structure, lm):
                    return
                if len(self.long) > 256:
                    self.long.clear()
                self.long.add(structure.rule)
            async with self.slow:
                await asyncio.to_thread(structure.grammar, lm, self.limits)
        finally:
            self.waiting -= 1

    async def _in_short(self, structure: Structure, lm: DiffusionLM) -> bool:
        """Whether a short while, when its turn has come, was enough."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self.line, (len(structure.rule.text), next(self.numbers), turn))
        self._next()
        try:
            await turn
            await asyncio.to_thread(structure.grammar, lm, self.limits, short=True)
        except OutOfTime:
            return False
        finally:
            if not turn.cancelled():  # it had its turn
                self.busy = False
                self._next()
        return True

    def _next(self) -> None:
        while self.line and not self.busy:
            turn = heapq.heappop(self.line)[2]
            if not turn.done():
                self.busy = True
                turn.set_result(None)
