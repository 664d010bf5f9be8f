"""Frameworks' own clients, unchanged, against a live server; `make test-clients` installs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

HELLO: list[Any] = [{"role": "user", "content": "the cat"}]
NODE_MODULES = Path(os.environ.get("NODE_PATH", "node_modules"))


class Roll(BaseModel):
    """Rolls a die."""

    n: Literal[1, 2]


TOOL = {"type": "function", "function": {"name": "Roll", "parameters": Roll.model_json_schema()}}


@pytest.fixture(scope="module")
def written(live: Any) -> str:
    """The text of the same dialogue at the same settings."""
    body = {"model": "talker", "messages": HELLO, "max_tokens": 24, "temperature": 0, "seed": 1}
    return str(live.send("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"])


def test_litellm(live: Any, written: str) -> None:
    litellm = pytest.importorskip("litellm")
    usual = {"model": "openai/talker", "api_base": live.url, "api_key": "none", "messages": HELLO, "temperature": 0}
    asked: dict[str, Any] = {**usual, "max_tokens": 24, "seed": 1}
    assert litellm.completion(**asked).choices[0].message.content == written
    parts = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == written
    call = litellm.completion(**{**asked, "max_tokens": 60}, tools=[TOOL], tool_choice="required")
    assert json.loads(call.choices[0].message.tool_calls[0].function.arguments)["n"] in (1, 2)
    formed = litellm.completion(**{**asked, "max_tokens": 60}, response_format=Roll)
    assert Roll.model_validate_json(formed.choices[0].message.content)
    text = {"model": "text-completion-openai/canvas", "api_base": live.url, "api_key": "none", "prompt": "the cat"}
    assert litellm.text_completion(**text, max_tokens=8, seed=1, temperature=0).choices[0].text is not None
    with pytest.raises(litellm.NotFoundError, match="not served"):
        litellm.completion(**{**usual, "model": "openai/gpt-4o"})


def test_langchain(live: Any, written: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    usual: dict[str, Any] = {"model": "talker", "base_url": live.url, "api_key": "none", "temperature": 0, "seed": 1}
    chat = langchain.ChatOpenAI(**usual, max_tokens=24)
    reply = chat.invoke("the cat")
    assert reply.content == written
    assert reply.usage_metadata["total_tokens"] > 0
    assert "".join(part.content for part in chat.stream("the cat")) == written
    longer = langchain.ChatOpenAI(**usual, max_tokens=60)
    for method in ("json_schema", "function_calling"):
        assert longer.with_structured_output(Roll, method=method).invoke("roll").n in (1, 2)
    call = longer.bind_tools([Roll], tool_choice="any").invoke("roll").tool_calls[0]
    assert (call["name"], call["args"]["n"] in (1, 2)) == ("Roll", True)
    history = [("user", "roll"), longer.bind_tools([Roll], tool_choice="any").invoke("roll")]
    from langchain_core.messages import ToolMessage

    answered = [*history, ToolMessage("2", tool_call_id=history[1].tool_calls[0]["id"])]
    assert chat.bind_tools([Roll], tool_choice="none").invoke(answered).content
    responses = langchain.ChatOpenAI(**{**usual, "seed": None}, max_tokens=24, use_responses_api=True)
    assert responses.invoke("the cat").text


def test_pydantic_ai(live: Any, written: str) -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent, NativeOutput, PromptedOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=live.url, api_key="none")
    model = OpenAIChatModel("talker", provider=provider)
    settings: Any = {"temperature": 0.0, "max_tokens": 24, "seed": 1}
    assert Agent(model, model_settings=settings).run_sync("the cat").output == written
    settings = {"max_tokens": 60}
    for output in (Roll, NativeOutput(Roll)):
        made: Any = Agent(model, output_type=output, model_settings=settings).run_sync("roll")
        assert made.output.n in (1, 2)
    responses: Any = OpenAIResponsesModel("talker", provider=provider)
    made = Agent(responses, output_type=Roll, model_settings=settings).run_sync("roll")
    assert made.output.n in (1, 2)
    assert PromptedOutput


def test_instructor(live: Any) -> None:
    instructor = pytest.importorskip("instructor")
    import openai

    client = openai.OpenAI(base_url=live.url, api_key="none", max_retries=0)
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        wrapped = instructor.from_openai(client, mode=mode)
        made = wrapped.chat.completions.create(
            model="talker", messages=HELLO, response_model=Roll, max_tokens=60, max_retries=0
        )
        assert made.n in (1, 2)


SCRIPT = """
import OpenAI from 'openai';
const client = new OpenAI({baseURL: process.argv[2], apiKey: 'none', maxRetries: 0});
const messages = [{role: 'user', content: 'the cat'}];
const usual = {model: 'talker', messages, max_tokens: 24, temperature: 0, seed: 1};
const out = {};
out.text = (await client.chat.completions.create(usual)).choices[0].message.content;
out.streamed = '';
for await (const part of await client.chat.completions.create({...usual, stream: true}))
  out.streamed += part.choices[0]?.delta?.content ?? '';
const runner = client.chat.completions.stream(usual);
out.final = await runner.finalContent();
const tools = [JSON.parse(process.argv[3])];
const called = await client.chat.completions.create({...usual, max_tokens: 60, tools, tool_choice: 'required'});
out.call = called.choices[0].message.tool_calls[0].function;
const responded = client.responses.stream({model: 'talker', input: 'the cat', max_output_tokens: 24, temperature: 0});
out.responded = (await responded.finalResponse()).output_text;
out.models = [];
for await (const model of client.models.list()) out.models.push(model.id);
try { await client.chat.completions.create({...usual, model: 'gpt-4o'}); }
catch (error) { out.error = [error.constructor.name, error.status, error.code]; }
console.log(JSON.stringify(out));
"""


def test_openai_in_javascript(live: Any, written: str, tmp_path: Path) -> None:
    if shutil.which("node") is None or not (NODE_MODULES / "openai").is_dir():
        pytest.skip("needs node, and its package openai in NODE_PATH")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES.resolve())
    script = tmp_path / "client.mjs"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        ["node", str(script), live.url, json.dumps(TOOL)], capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.returncode == 0, ran.stderr
    out = json.loads(ran.stdout)
    assert out["text"] == out["streamed"] == out["final"] == written
    assert out["responded"]
    assert json.loads(out["call"]["arguments"])["n"] in (1, 2)
    assert "talker" in out["models"]
    assert out["error"] == ["NotFoundError", 404, "model_not_found"]
