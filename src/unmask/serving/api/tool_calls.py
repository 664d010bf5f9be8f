"""Tools of a chat: which form of calls a template has, the rule that holds a model to it, and calls read from text."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unmask.serving.api.writer import Written
from unmask.structured.effort import Effort
from unmask.structured.grammar import Grammar
from unmask.structured.grammars import Rule
from unmask.structured.json_schema import Sizes
from unmask.structured.language import Language
from unmask.structured.tool_calls import CallForm, calls_language
from unmask.structured.vocabulary import Vocabulary

HERMES = CallForm("<tool_call>\n", "\n</tool_call>", "arguments")  # Hermes, Qwen and many others
LISTED = CallForm("", "", "arguments", listed=True)  # of models whose own answers are arrays of calls
ABOUT_TOOLS = 'To call a function, answer with {"name": ..., "arguments": {...}} alone. Functions:'
Delta = dict[str, Any]


Template = str | Mapping[str, str] | None


def _text(template: Template) -> str:
    """A chat template, or all of a model's."""
    return "\n".join(template.values()) if isinstance(template, Mapping) else template or ""


def renders_tools(template: Template) -> bool:
    """Whether a chat template says itself which tools there are."""
    return "tools" in _text(template)


def form_of(template: Template) -> CallForm:
    """How a model with this chat template writes calls; as plain JSON where its template knows nothing of tools."""
    text = _text(template)
    if "<tool_call>" in text and renders_tools(text):
        return HERMES
    parameters = renders_tools(text) and '"parameters"' in text  # Llama 3's word
    return CallForm("", "", "parameters" if parameters else "arguments")


def own_functions(schema: Any) -> dict[str, dict[str, Any]]:
    """The functions that a model's answer schema knows, where it is an array of calls: schemas of their arguments by
    name."""
    items = (schema or {}).get("items")
    calls = items.get("anyOf", []) if isinstance(items, dict) else []
    parts = [call.get("properties", {}) for call in calls]
    return {p["name"]["const"]: p["arguments"] for p in parts if {"name", "arguments"} <= p.keys()}


def as_trained(given: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments in the order that a model was trained on, without what a request leaves out;
    a request's own lists of values count."""
    asked = given.get("properties", {})
    known = {n: asked[n] if "enum" in asked[n] else schema for n, schema in own["properties"].items() if n in asked}
    return {**own, "properties": known, "required": [name for name in given.get("required", []) if name in known]}


def calls_schema(own: dict[str, Any], functions: list[tuple[str, Any]], least: int, most: int | None) -> dict[str, Any]:
    """A model's answer schema, an array of calls, for some functions alone and `least` to `most` calls."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, arguments in functions
    ]
    count = {"minItems": least} if most is None else {"minItems": least, "maxItems": most}
    return {**own, "items": {"anyOf": calls}, **count}


def as_plain_messages(messages: list[Delta], tools: list[Delta]) -> list[Delta]:
    """A dialogue with tools for a template that knows nothing of them: all of it as text."""
    out = list[Delta]()
    for message in messages:
        text = message["content"]
        if message["role"] == "tool":
            text = f"Result of {message.get('name') or message['tool_call_id']}: {text}"
        calls = [
            json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})
            for call in message.get("tool_calls", ())
        ]
        role = "user" if message["role"] == "tool" else message["role"]
        rest = {name: part for name, part in message.items() if name not in ("tool_calls", "tool_call_id")}
        out.append({**rest, "role": role, "content": "\n".join([*([text] if text or not calls else []), *calls])})
    if tools:
        listed = "\n".join(json.dumps(tool["function"]) for tool in tools)
        if out[0]["role"] != "system":
            out.insert(0, {"role": "system", "content": ""})
        out[0] = {"role": "system", "content": f"{out[0]['content']}\n{ABOUT_TOOLS}\n{listed}".lstrip()}
    return out


@dataclass(frozen=True)
class ToolRule(Rule):
    """Calls of tools, and text beside them where it is free. `text`: the functions as JSON, [[name, schema], ...]."""

    form: CallForm
    free: bool
    several: bool

    def _read(self, effort: Effort, sizes: Sizes) -> Language:
        return calls_language(self.form, json.loads(self.text), self.free, self.several, effort, sizes)

    def compiled(self, vocabulary: Vocabulary, effort: Effort) -> Grammar:
        return Grammar.of_sizes(self._read, vocabulary, "the tools", effort)


@dataclass
class CallReader:
    """Reads calls out of text that comes in pieces; gives parts of a message as OpenAI's streams have them."""

    form: CallForm
    waiting: str = ""  # text whose meaning the next piece decides
    inside: bool = False  # a call, its head read
    depth: int = 0  # of braces in its arguments
    quoted: bool = False
    escaped: bool = False
    calls: list[Delta] = field(default_factory=list)  # complete ones, and the one that is being read
    content: str = ""

    def push(self, text: str) -> list[Delta]:
        """Parts that a further piece of text makes."""
        self.waiting += text
        out: list[Delta] = []
        while self.waiting:
            made = self._arguments() if self.inside else self._head() if self._at_call() else self._prose()
            if made is None:
                break
            out += made
        return out

    def finish(self) -> list[Delta]:
        """The text that was held back; the rest of a call's frame is dropped."""
        rest = self.waiting
        self.waiting = ""
        if not rest or self.calls or self.form.listed:
            return []
        self.content += rest
        return [{"content": rest}]

    def reason(self, written: Written) -> str:
        """Why an answer ended; one with a call ended for it, as calls are always whole."""
        return "tool_calls" if self.calls else written.finish_reason

    def _at_call(self) -> bool:
        if self.calls:
            return True
        if self.form.listed:
            return self.waiting.startswith("[")
        return self.waiting.startswith(self.form.opens or "{") and (bool(self.form.opens) or not self.content)

    def _prose(self) -> list[Delta] | None:
        """Text up to where a call may begin."""
        opens = self.form.opens
        place = self.waiting.find(opens) if opens else -1
        if place < 0:
            keep = next((n for n in range(len(opens) - 1, 0, -1) if self.waiting.endswith(opens[:n])), 0)
            place = len(self.waiting) - keep
        if place == 0:
            return None
        text = self.waiting[:place]
        self.waiting = self.waiting[place:]
        self.content += text
        return [{"content": text}]

    def _head(self) -> list[Delta] | None:
        """A call up to its arguments, once all of that is there."""
        begin = self.waiting.find("{")
        key = f'"{self.form.arguments}":'
        # names hold no quotation marks, so the first such key is the call's own
        place = self.waiting.find(key, begin + 1) if begin >= 0 else -1
        brace = self.waiting.find("{", place) if place >= 0 else -1
        if brace < 0:
            return None
        name = json.loads(self.waiting[begin:place].rstrip().rstrip(",") + "}")["name"]
        self.waiting = self.waiting[brace:]
        self.inside = True
        self.depth = 0
        function = {"name": name, "arguments": ""}
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        self.calls.append({**call, "function": dict(function)})
        return [{"tool_calls": [{"index": len(self.calls) - 1, **call}]}]

    def _arguments(self) -> list[Delta] | None:
        """Arguments as far as they have come."""
        end = len(self.waiting)
        for place, letter in enumerate(self.waiting):
            if self.quoted:
                self.quoted = self.escaped or letter != '"'
                self.escaped = not self.escaped and letter == "\\"
            elif letter in "{}":
                self.depth += 1 if letter == "{" else -1
                if self.depth == 0:
                    end = place + 1
                    self.inside = False
                    break
            else:
                self.quoted = letter == '"'
        text = self.waiting[:end]
        self.waiting = self.waiting[end:]
        self.calls[-1]["function"]["arguments"] += text
        return [{"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": text}}]}]
