"""Calls read from text: the same however it is cut into pieces; and their language, against a definition of it."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.serving.api.tool_calls import HERMES, LISTED, CallReader, as_trained, calls_schema, form_of, own_functions
from unmask.structured.dfa import compile_language
from unmask.structured.effort import Effort
from unmask.structured.json_schema import SIZES, read_schema
from unmask.structured.tool_calls import CallForm, calls_language

BARE = CallForm("", "", "parameters")
ARGUMENTS = [{}, {"a": '}{\\"', "b": {"c": ['"', {}]}}, {"arguments": "name"}, {"name": "f"}]


def written(form: CallForm, calls: list[Any], before: str = "") -> str:
    if form is LISTED:
        return json.dumps([{"name": f"f{i}", "arguments": call} for i, call in enumerate(calls)])
    texts = [f'{{"name": "f{i}", "{form.arguments}": {json.dumps(call)}}}' for i, call in enumerate(calls)]
    return before + "\n".join(form.opens + text + form.closes for text in texts)


@given(
    st.sampled_from([HERMES, BARE, LISTED]),
    st.lists(st.sampled_from(ARGUMENTS), max_size=3),
    st.text("a<tool_cl>\n ", max_size=20),
    st.lists(st.integers(0, 200)),
)
def test_pieces_do_not_matter(form: CallForm, calls: list[Any], before: str, cuts: list[int]) -> None:
    if form is not HERMES or form.opens in before:
        before = ""
    text = written(form, calls, before)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    reader, deltas = CallReader(form), list[Any]()
    for first, last in itertools.pairwise(places):
        deltas += reader.push(text[first:last])
    deltas += reader.finish()
    assert "".join(delta.get("content", "") for delta in deltas) == reader.content == before
    got = dict[int, list[str]]()
    for delta in deltas:
        for part in delta.get("tool_calls", []):
            if "id" in part:
                got[part["index"]] = [part["function"]["name"], part["function"]["arguments"]]
            else:
                got[part["index"]][1] += part["function"]["arguments"]
    assert [(name, json.loads(text)) for name, text in got.values()] == [(f"f{i}", c) for i, c in enumerate(calls)]


@pytest.mark.parametrize("form", [HERMES, BARE])
@pytest.mark.parametrize("free", [False, True])
def test_the_language_is_calls_and_where_free_text_without_a_marker(form: CallForm, free: bool) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    language = calls_language(form, [("f0", schema), ("f1", schema)], free, True, Effort(), SIZES[0])
    dfa = compile_language(language, Effort())
    call, other = written(form, [{"x": 1}]), written(form, [{"y": 1}])
    assert dfa.holds(call.encode())
    assert dfa.holds(written(form, [{"x": 1}, {"x": -2}]).encode())
    assert not dfa.holds(other.encode())
    for text in ("", "a", "é <tool_call", "a {"):
        assert dfa.holds(text.encode()) == free
    marker = re.escape(form.opens)
    for text in ("so: " + call, "so: " + other, call + "!"):
        has_marker = bool(form.opens) and re.search(marker, text) is not None
        assert dfa.holds(text.encode()) == (free and (text == "so: " + call or not (has_marker or text[0] == "{")))


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_an_array_of_calls(free: bool, several: bool) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False}
    own = {"x-guidance": {"whitespace_flexible": False}, "type": "array", "items": {"anyOf": []}}
    whole = calls_schema(own, [("f", schema)], least=int(not free), most=None if several else 1)
    dfa = compile_language(read_schema(whole, Effort()), Effort())
    call = '{"name":"f","arguments":{"x":1}}'
    assert dfa.holds(f"[{call}]".encode())
    assert dfa.holds(b"[]") is free
    assert dfa.holds(f"[{call},{call}]".encode()) is several
    for other in ("", call, f"[{call}", f"[{call}, {call}]", f"so: [{call}]"):
        assert not dfa.holds(other.encode())


def test_functions_as_a_model_was_trained_on_them() -> None:
    text = {"type": "string"}
    own = {"type": "object", "properties": {"name": text, "area": text, "level": {"type": "integer"}}, "required": []}
    call = {"properties": {"name": {"const": "f"}, "arguments": own}}
    assert own_functions({"type": "array", "items": {"anyOf": [call]}}) == {"f": own}
    assert own_functions(None) == own_functions({"type": "object"}) == {}
    rooms = {"enum": ["den", "hall"]}
    asked = {"properties": {"area": rooms, "speed": text, "name": text}, "required": ["area", "speed"]}
    trained = as_trained(asked, own)
    assert list(trained["properties"].items()) == [("name", text), ("area", rooms)]
    assert trained["required"] == ["area"]


def test_forms_of_templates() -> None:
    assert form_of(None) == form_of("{{ messages }}") == CallForm("", "", "arguments")
    assert form_of("{% if tools %}<tool_call>{% endif %}") == HERMES
    assert form_of('{{ tools }} {"name": function name, "parameters": {}}') == BARE
    assert form_of("{{ tools | tojson }}") == CallForm("", "", "arguments")
