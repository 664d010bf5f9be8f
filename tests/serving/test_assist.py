"""The shipped `assist`: calls under its own schema, as an OpenAI client and Home Assistant get them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from live_server import Live
from openai import OpenAI

from conftest import Starter
from unmask import DiffusionLM

EXAMPLES = Path(__file__).parents[2] / "examples"
HOME = "areas: Den, Bedroom\nlight: Desk Lamp, Ceiling Light\nclimate: Thermostat"
COMMANDS = {  # that nobody here could get wrong
    "turn off the desk lamp": [{"name": "HassTurnOff", "arguments": {"name": "Desk Lamp"}}],
    "Turn on the ceiling light, please!": [{"name": "HassTurnOn", "arguments": {"name": "Ceiling Light"}}],
    "turn off the lights in the den": [{"name": "HassTurnOff", "arguments": {"area": "Den", "domain": "light"}}],
}


@pytest.fixture(scope="module")
def models() -> dict[str, DiffusionLM]:
    return {name: DiffusionLM.from_pretrained(name) for name in ("assist", "assist-ar")}


@pytest.fixture(scope="module")
def served(start: Starter, models: dict[str, DiffusionLM]) -> Live:
    return start(models=models)


@pytest.fixture(scope="module")
def client(served: Live) -> OpenAI:
    return OpenAI(base_url=served.url, api_key="none", max_retries=0)


def chat(command: str) -> list[Any]:
    return [{"role": "system", "content": HOME}, {"role": "user", "content": command}]


@pytest.mark.parametrize("name", ["assist", "assist-ar"])
def test_plain_commands_are_understood(models: dict[str, DiffusionLM], name: str) -> None:
    for command, calls in COMMANDS.items():
        assert json.loads(models[name].generate(chat(command)).text) == calls


def test_whatever_is_said_the_answer_is_valid(models: dict[str, DiffusionLM]) -> None:
    lm = models["assist"]
    validator = Draft202012Validator(lm.answer_schema)
    for command in ("", '🦙 \\ " {', "tell me a joke about " + "cats " * 60, "turn off"):
        for options in ({}, {"temperature": 1.5, "seed": 3}, {"max_new_tokens": 40}):
            validator.validate(json.loads(lm.generate(chat(command), **options).text))  # type: ignore[arg-type]


def test_another_rule_is_taken_in_place_of_its_own(models: dict[str, DiffusionLM]) -> None:
    assert models["assist"].generate(chat("turn off the desk lamp"), regex="(yes|no)").text in ("yes", "no")


@pytest.mark.parametrize("name", ["assist", "assist-ar"])
def test_verify_writes_what_ar_writes(models: dict[str, DiffusionLM], name: str) -> None:
    lm = models[name]
    commands = [
        *COMMANDS,
        "turn on the desk lamp in the den and set the thermostat to 19 degrees, then close all blinds",
    ]
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}):
        plain = lm.generate([chat(command) for command in commands], mode="ar", **options)
        drafted = lm.generate([chat(command) for command in commands], mode="verify", **options)
        assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
        if name == "assist" and options["temperature"] == 0:
            assert 3 * sum(out.steps for out in drafted) < sum(out.steps for out in plain)


def function(called: str, *arguments: str, **properties: Any) -> Any:
    given = {argument: {"type": "string"} for argument in arguments} | properties
    return {"type": "function", "function": {"name": called, "parameters": {"type": "object", "properties": given}}}


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called(client: OpenAI, stream: bool) -> None:
    tools = [function("HassTurnOn", "name", "area"), function("HassTurnOff", "area", "name"), function("other")]
    asked: dict[str, Any] = {"model": "assist", "messages": chat("turn off the desk lamp"), "tools": tools}
    if not stream:
        choice = client.chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    else:
        deltas = [
            chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices
        ]
        parts = [part.function for delta in deltas for part in delta.tool_calls or []]
        calls = [(parts[0].name, "".join(part.arguments or "" for part in parts))]
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("HassTurnOff", {"name": "Desk Lamp"})]


def test_values_that_a_tool_lists_are_kept_to(client: OpenAI) -> None:
    tools = [function("HassTurnOff", name={"enum": ["Reading Lamp", "Fan"]})]
    answer = client.chat.completions.create(
        model="assist", messages=chat("turn off the desk lamp"), tools=tools, tool_choice="required"
    )
    calls = answer.choices[0].message.tool_calls or []
    assert calls
    for call in calls:
        assert json.loads(call.function.arguments).get("name", "Fan") in ("Reading Lamp", "Fan")  # type: ignore[union-attr]


def test_tools_that_it_does_not_know_are_refused(served: Live) -> None:
    body = {"model": "assist", "messages": chat("hello"), "tools": [function("get_weather")]}
    status, answer = served.send("/v1/chat/completions", body)
    assert status == 400
    assert "HassBroadcast, HassCancelAllTimers" in answer["error"]["message"]


@pytest.fixture
def home_assistant() -> Iterator[tuple[str, list[Any]]]:
    """Its three endpoints, and what was asked of them."""
    asked = list[Any]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            handled = {"speech": {"plain": {"speech": "Turned off the light"}}}
            answer = HOME.encode() if self.path == "/api/template" else json.dumps(handled).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def example(name: str) -> ModuleType:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_for_home_assistant(served: Live, home_assistant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, asked = home_assistant
    bridge = example("home_assistant")
    monkeypatch.setattr(bridge, "HA_URL", url)
    monkeypatch.setattr(bridge, "UNMASK_URL", served.url.removesuffix("/v1"))
    answer = bridge.process("turn off the desk lamp", "secret")
    assert answer["response"]["speech"]["plain"]["speech"] == "Turned off the light"
    assert answer["response"]["response_type"] == "action_done"
    assert [(path, key) for path, key, _ in asked] == [
        ("/api/template", "Bearer secret"), ("/api/intent/handle", "Bearer secret"),
    ]  # fmt: skip
    assert asked[1][2] == {"name": "HassTurnOff", "data": {"name": "Desk Lamp"}}
