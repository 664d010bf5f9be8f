"""Clients of other APIs, unchanged, against a live server: what they read is what /v1/chat/completions writes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from live_server import Live

from unmask.lm import DiffusionLM
from unmask.serving.api.planner import Models, Planner
from unmask.serving.api.schema import NEUTRAL, ChatRequest
from unmask.serving.engine import Limits

HELLO: list[Any] = [{"role": "user", "content": "the cat"}]
SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=live.url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def written(client: openai.OpenAI) -> str:
    """The text of the same dialogue at the same settings."""
    reply = client.chat.completions.create(model="talker", messages=HELLO, max_tokens=24, temperature=0, seed=1)
    return reply.choices[0].message.content or ""


def test_openai_responses(client: openai.OpenAI, written: str) -> None:
    asked: dict[str, Any] = {"model": "talker", "max_output_tokens": 24, "temperature": 0, "extra_body": {"seed": 1}}
    reply = client.responses.create(input="the cat", **asked)
    assert reply.output_text == written
    assert reply.status in ("completed", "incomplete")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    events = list(client.responses.create(input=HELLO, stream=True, **asked))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == written
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    last: Any = events[-1]
    assert last.response.output_text == written
    assert last.response.usage.model_dump() == reply.usage.model_dump()
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(input="a", previous_response_id="resp_1", model="talker")


def test_openai_responses_call_functions_and_read_their_results(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "roll", "parameters": SCHEMA, "strict": True}
    asked: dict[str, Any] = {"model": "talker", "tools": [tool], "tool_choice": "required", "max_output_tokens": 60}
    reply: Any = client.responses.create(input="roll", **asked)
    call = reply.output[0]
    assert (call.type, call.name) == ("function_call", "roll")
    assert json.loads(call.arguments)["n"] in (1, 2)
    with client.responses.stream(input="roll", **asked) as stream:
        final: Any = stream.get_final_response()
    assert json.loads(final.output[0].arguments)["n"] in (1, 2)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "ok"}
    again = client.responses.create(
        model="talker", input=[*HELLO, call.model_dump(), result], tools=[tool], tool_choice="none", max_output_tokens=5
    )
    assert again.output_text


def test_anthropic(live: Live, written: str) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=live.url.removesuffix("/v1"), api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "talker", "messages": HELLO, "max_tokens": 24, "extra_body": {"temperature": 0}}
    reply = client.messages.create(**asked)
    assert reply.content[0].text == written
    assert reply.stop_reason in ("end_turn", "max_tokens")
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == written
        final = stream.get_final_message()
    assert final.usage.output_tokens == reply.usage.output_tokens
    assert client.messages.count_tokens(model="talker", messages=HELLO).input_tokens == reply.usage.input_tokens
    tools = [{"name": "roll", "description": "rolls", "input_schema": SCHEMA}]
    asked = {"model": "talker", "messages": HELLO, "max_tokens": 60, "tools": tools, "tool_choice": {"type": "any"}}
    call = client.messages.create(**asked)
    assert (call.stop_reason, call.content[0].name) == ("tool_use", "roll")
    assert call.content[0].input["n"] in (1, 2)
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_message().content[0].input["n"] in (1, 2)
    result = [{"type": "tool_result", "tool_use_id": call.content[0].id, "content": "ok"}]
    history = [*HELLO, {"role": "assistant", "content": call.content}, {"role": "user", "content": result}]
    assert client.messages.create(**{**asked, "messages": history, "tool_choice": {"type": "none"}}).content
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="talker", messages=HELLO, max_tokens=0)
    with pytest.raises(anthropic.NotFoundError, match="not served"):
        client.messages.create(model="claude", messages=HELLO, max_tokens=5)


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_is_told_at_which_stop_an_answer_was_cut(live: Live, written: str, stream: bool) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=live.url.removesuffix("/v1"), api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "talker", "messages": HELLO, "max_tokens": 24, "extra_body": {"temperature": 0}}
    late = written[8:11]
    early = written[: written.index(late)][4:6]
    for stops in ([late, early], [early, late]):  # the text's first, whatever their order
        asked["stop_sequences"] = ["nowhere in it", *stops]
        if stream:
            with client.messages.stream(**asked) as parts:
                reply = parts.get_final_message()
        else:
            reply = client.messages.create(**asked)
        assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", early)
        assert reply.content[0].text == written[: written.index(early)]
    asked["stop_sequences"] = ["nowhere in it"]
    reply = client.messages.create(**asked)
    assert (reply.stop_reason in ("end_turn", "max_tokens"), reply.stop_sequence) == (True, None)


def test_anthropics_key_is_taken(start: Any) -> None:
    from unmask.serving.api.settings import Settings

    locked = start(settings=Settings(keys=("open-sesame",)))
    body = {"model": "talker", "messages": HELLO, "max_tokens": 2}
    assert locked.send("/v1/messages", body, headers={"x-api-key": "open-sesame"})[0] == 200
    status, reply = locked.send("/v1/messages", body, headers={"x-api-key": "wrong"})
    assert (status, reply["type"], reply["error"]["type"]) == (401, "error", "authentication_error")


def test_ollama(live: Live, written: str) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=live.url.removesuffix("/v1"))
    assert {model.model for model in client.list().models} == set(live.models)
    options = {"temperature": 0, "num_predict": 24, "seed": 1}
    reply = client.chat(model="talker", messages=HELLO, options=options)
    assert reply.message.content == written
    assert reply.done
    parts = list(client.chat(model="talker", messages=HELLO, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == written
    assert parts[-1].eval_count == reply.eval_count
    formed = client.chat(model="talker", messages=HELLO, format=SCHEMA, options={"num_predict": 40})
    assert json.loads(formed.message.content)["n"] in (1, 2)
    text = client.generate(model="canvas", prompt="the cat", options={"num_predict": 8, "seed": 1})
    assert text.response == live.models["canvas"].generate("the cat", 8, seed=1).text
    with pytest.raises(ollama.ResponseError, match="not served"):
        client.chat(model="llama3", messages=HELLO)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "roll"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_tools_on_a_template_that_knows_none(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    tools: Any = [{"type": "function", "function": {"name": "roll", "parameters": SCHEMA}}]
    asked: dict[str, Any] = {"model": "talker", "messages": HELLO, "tools": tools, "tool_choice": choice}
    asked |= {"max_tokens": 60, "temperature": 1.0}
    if stream:
        parts = list(client.chat.completions.create(**asked, stream=True))
        calls = [call for part in parts for call in part.choices[0].delta.tool_calls or ()]
        name, arguments = calls[0].function.name, "".join(call.function.arguments or "" for call in calls)
        assert parts[-1].choices[0].finish_reason == "tool_calls"
    else:
        choice_made = client.chat.completions.create(**asked).choices[0]
        call: Any = (choice_made.message.tool_calls or [None])[0]
        name, arguments = call.function.name, call.function.arguments
        assert choice_made.finish_reason == "tool_calls"
    assert name == "roll"
    assert json.loads(arguments)["n"] in (1, 2)


def test_a_history_of_calls_on_a_template_that_knows_none(client: openai.OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "roll", "arguments": ""},
    }  # as some clients write {}
    history: Any = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "roll", "content": "2"},
    ]
    assert client.chat.completions.create(model="talker", messages=history, max_tokens=4).choices[0].message.content


def test_allowed_tools(live: Live) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("roll", "flip")]
    one = {"type": "function", "function": {"name": "flip"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [one]}}
    body = {"model": "talker", "messages": HELLO, "tools": tools, "tool_choice": choice, "max_tokens": 60}
    status, reply = live.send("/v1/chat/completions", body)
    assert status == 200, reply
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "flip"


@pytest.mark.parametrize(
    "given",
    [
        {"structured_outputs": {"choice": ["yes (a.b)", "no"]}},
        {"guided_choice": ["yes (a.b)", "no"]},
        {"guided_regex": "yes \\(a\\.b\\)|no"},
    ],
)
def test_choices(live: Live, given: dict[str, Any]) -> None:
    body = {"model": "talker", "messages": HELLO, "max_tokens": 30, "temperature": 1.0, **given}
    status, reply = live.send("/v1/chat/completions", body)
    assert status == 200, reply
    assert reply["choices"][0]["message"]["content"] in ("yes (a.b)", "no")


def test_guided_json(live: Live) -> None:
    for given in (
        {"guided_json": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": json.dumps(SCHEMA)},
    ):
        status, reply = live.send("/v1/completions", {"model": "left", "prompt": "a", "max_tokens": 30, **given})
        assert status == 200, reply
        assert json.loads(reply["choices"][0]["text"])["n"] in (1, 2)


def test_tokenize_and_back(live: Live) -> None:
    lm = live.models["talker"]
    status, reply = live.send("/tokenize", {"model": "talker", "prompt": "the cat é", "return_token_strs": True})
    assert (status, reply["count"], reply["max_model_len"]) == (200, len(reply["tokens"]), lm.config.max_length)
    assert live.send("/detokenize", {"model": "talker", "tokens": reply["tokens"]})[1]["prompt"] == "the cat é"
    chat = live.send("/tokenize", {"model": "talker", "messages": HELLO})[1]
    answered = live.send("/v1/chat/completions", {"model": "talker", "messages": HELLO, "max_tokens": 2})[1]
    assert chat["count"] == answered["usage"]["prompt_tokens"]
    assert live.send("/detokenize", {"model": "talker", "tokens": [10**6]})[0] == 400
    assert live.send("/tokenize", {"model": "talker"})[0] == 400


def test_version_and_length(live: Live) -> None:
    import unmask

    assert live.send("/version")[1] == {"version": unmask.__version__}
    for card in live.send("/v1/models")[1]["data"]:
        assert card["max_model_len"] == live.models[card["id"]].config.max_length


def test_echo(live: Live) -> None:
    body = {"model": "canvas", "prompt": ["the cat", "a dog"], "max_tokens": 4, "seed": 1}
    plain, echoed = (live.send("/v1/completions", {**body, **more})[1]["choices"] for more in ({}, {"echo": True}))
    assert [choice["text"] for choice in echoed] == [
        prompt + choice["text"] for prompt, choice in zip(body["prompt"], plain, strict=True)
    ]


def prompt_scores(lm: DiffusionLM, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [L - 1, V] of each token after those before it, as in `likelihood` never the mask."""
    logits = lm.logits(torch.tensor([ids]), layout="causal")[0, 1:].double()
    logits[:, lm.config.mask_token_id] = -torch.inf
    return logits.log_softmax(-1)


@pytest.mark.parametrize(
    ("model", "mode", "chunk"), [("left", "ar", 4), ("talker", "verify", 4), ("talker", "ar", 256)]
)
def test_echo_with_logprobs_scores_the_prompt(start: Any, model: str, mode: str, chunk: int) -> None:
    """What lm-eval's local-completions and others compute likelihoods from."""
    live = start(limits=Limits(slots=8, queue=8, prefill_chunk=chunk))
    lm = live.models[model]
    prompts = ["the cat sat on the mat. the dog é sat", "a dog", "the"]
    rows = [lm.encode(prompt)[0] for prompt in prompts]
    body = {"model": model, "mode": mode, "echo": True, "logprobs": 3, "temperature": 0.7, "top_k": 2, "seed": 1}
    body |= {"presence_penalty": 1.0, "logit_bias": {"7": 5}}
    for prompt, most in ((prompts, 1), (rows, 0), (rows, 5)):
        status, reply = live.send("/v1/completions", {**body, "prompt": prompt, "max_tokens": most})
        assert status == 200, reply
        plain = {name: value for name, value in body.items() if name not in ("echo", "logprobs")}
        alone = live.send("/v1/completions", {**plain, "prompt": prompt, "max_tokens": most or 1})[1]
        for choice, other, ids, text in zip(reply["choices"], alone["choices"], rows, prompts, strict=True):
            told = choice["logprobs"]
            assert choice["text"] == text + (other["text"] if most else "")
            assert told["tokens"][: len(ids)] == [lm.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
            assert len(told["tokens"]) <= len(ids) + most
            assert told["token_logprobs"][0] is None
            assert told["top_logprobs"][0] is None
            right = prompt_scores(lm, ids) if len(ids) > 1 else torch.zeros(0, 1)
            wanted = [float(row[i]) for row, i in zip(right, ids[1:], strict=True)]
            assert told["token_logprobs"][1 : len(ids)] == pytest.approx(wanted, abs=1e-4)
            for row, best in zip(right, told["top_logprobs"][1:], strict=False):
                assert max(best.values()) == pytest.approx(float(row.max()), abs=1e-4)


@pytest.mark.parametrize("model", ["canvas", "blocks", "noisy"])
def test_echo_with_logprobs_is_of_causal_models(live: Live, model: str) -> None:
    body = {"model": model, "prompt": "w1 w2 a", "max_tokens": 1, "echo": True, "logprobs": 1}
    status, reply = live.send("/v1/completions", body)
    assert (status, reply["error"]["param"]) == (400, "model")
    assert "left" in reply["error"]["message"]
    assert live.send("/v1/completions", {**body, "model": "left", "stream": True})[0] == 400
    assert live.send("/v1/completions", {**body, "model": "left", "echo": False, "max_tokens": 0})[0] == 400


def test_chat_template_kwargs_reach_the_template(live: Live) -> None:
    body = {"model": "talker", "messages": HELLO, "max_tokens": 2, "chat_template_kwargs": {"enable_thinking": False}}
    assert live.send("/v1/chat/completions", body)[0] == 200
    body["chat_template_kwargs"] = {"messages": 1}
    assert live.send("/v1/chat/completions", body)[0] == 400


@pytest.mark.parametrize(
    "given",
    [
        {"repetition_penalty": 1.0}, {"top_k": -1}, {"min_p": 0}, {"ignore_eos": False}, {"top_logprobs": 0},
        {"functions": None}, {"chat_template_kwargs": {}}, {"reasoning_effort": "none"}, {"prompt_cache_key": "k"},
        {"safety_identifier": "s"}, {"presence_penalty": 0}, {"frequency_penalty": 0}, {"logit_bias": {}},
        {"stream_options": {"include_usage": True}, "stream": False}, {"min_tokens": 0}, {"stop_token_ids": []},
        {"realtime": True}, {"metadata": {}}, {"n": 1}, {"service_tier": "auto"}, {"stop": []},
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["diffusion", "ar", "verify"])
def test_fields_at_values_that_change_nothing(live: Live, given: dict[str, Any], mode: str) -> None:
    body = {"model": "talker", "messages": HELLO, "max_tokens": 6, "seed": 1, "mode": mode}
    plain = live.send("/v1/chat/completions", body)[1]["choices"][0]["message"]
    status, reply = live.send("/v1/chat/completions", {**body, **given})
    assert status == 200, reply
    assert reply["choices"][0]["message"] == plain


def test_what_other_servers_clients_send_and_what_is_null_changes_nothing(live: Live) -> None:
    body = {"model": "talker", "messages": HELLO, "max_tokens": 6, "seed": 1}
    plain = live.send("/v1/chat/completions", body)[1]["choices"][0]["message"]
    for name, values in NEUTRAL.items():
        for value in values:
            status, reply = live.send("/v1/chat/completions", {**body, name: value, f"other_{name}": None})
            assert (status, reply["choices"][0]["message"]) == (200, plain), name
        status, reply = live.send("/v1/chat/completions", {**body, name: "odd"})
        assert (status, reply["error"]["param"]) == (400, name)
    assert live.send("/v1/chat/completions", {**body, "tools": [], "tool_choice": "auto"})[0] == 200


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_templates_get_what_a_history_says(name: str, live: Live) -> None:
    """Reasoning, names and calls without arguments, for a template that reads them, with or without tools."""
    lm = live.models["talker"]
    assert lm.tokenizer is not None
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "null"}}
    history: list[Any] = [
        {"role": "user", "content": "a", "name": "Ann"},
        {"role": "assistant", "content": "b", name: "because"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    template = "{% for m in messages %}{{ m.name }}{{ m.content }}{{ m.reasoning_content }}{% endfor %}"
    body = ChatRequest.model_validate({"model": "talker", "messages": history})
    for tools in ("", "{{ tools }}"):
        described: Any = SimpleNamespace(templates={"default": template + tools}, special_tokens={}, answer_schema=None)
        read = Planner(Models({"talker": DiffusionLM(lm.model, lm.tokenizer, None, "talker", described)}))
        assert lm.tokenizer.decode(read.prompt_of(body)).startswith("Annabbecause")


def test_answers_go_back_as_clients_dump_them(live: Live, client: openai.OpenAI) -> None:
    said = client.chat.completions.create(model="talker", messages=HELLO, max_tokens=4).choices[0].message
    call = {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}}
    history = [
        *HELLO,
        {**said.model_dump(), "annotations": [], "reasoning": "so"},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "2"}]},
    ]
    status, reply = live.send("/v1/chat/completions", {"model": "talker", "messages": history, "max_tokens": 2})
    assert status == 200, reply


@pytest.mark.parametrize(
    ("path", "part", "field"),
    [
        ("/v1/chat/completions", {"type": "image_url", "image_url": {"url": "data:"}}, "messages.0.content.0"),
        ("/v1/messages", {"type": "image", "source": {"type": "base64", "data": ""}}, "messages.0.content.0"),
        ("/v1/responses", {"type": "input_image", "image_url": "data:"}, "input.0.content.0"),
    ],
)
def test_parts_that_are_not_text_are_named(live: Live, path: str, part: dict[str, Any], field: str) -> None:
    messages = [{"role": "user", "content": [part]}]
    body = {"model": "talker", "max_output_tokens" if "resp" in path else "max_tokens": 2}
    status, reply = live.send(path, {**body, "input" if "resp" in path else "messages": messages})
    assert status == 400
    assert f"'{field}': type '{part['type']}' is not taken" in reply["error"]["message"]


def test_options_of_ollama(live: Live) -> None:
    usual = {"num_ctx": 2048, "repeat_last_n": 64, "mirostat": 0, "mirostat_tau": 5.0, "tfs_z": 1.0, "use_mlock": True}
    body = {"model": "talker", "messages": HELLO, "stream": False, "options": {**usual, "num_predict": 3}}
    assert live.send("/api/chat", {**body, "model": "talker:latest"})[0] == 200
    for odd in ({"repeat_last_n": 64, "repeat_penalty": 1.1}, {"mirostat": 2}, {"unheard_of": 1}):
        status, reply = live.send("/api/chat", {**body, "options": odd})
        assert status == 400
        assert next(iter(odd)) in reply["error"]


@pytest.mark.parametrize(
    "given",
    [
        {"presence_penalty": 1.5}, {"frequency_penalty": 1.0}, {"repetition_penalty": 1.3}, {"min_p": 0.2},
        {"logit_bias": {"5": 100}}, {"stop_token_ids": [7]}, {"min_tokens": 5}, {"ignore_eos": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["diffusion", "ar", "verify"])
def test_sampling_fields_are_those_of_generate(live: Live, given: dict[str, Any], mode: str) -> None:
    lm = live.models["talker"]
    body = {"model": "talker", "messages": HELLO, "max_tokens": 12, "seed": 1, "temperature": 0.8, "mode": mode}
    status, reply = live.send("/v1/chat/completions", {**body, **given})
    try:
        out = lm.generate(HELLO, 12, mode=mode, seed=1, temperature=0.8, **given)
    except Exception:
        assert status == 400
    else:
        assert reply["choices"][0]["message"]["content"] == out.text


def _messages(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


RESPONSES, MESSAGES, OLLAMA = "/v1/responses", "/v1/messages", "/api/chat"


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        (RESPONSES, {"n": 5}, "field 'n'"),
        (RESPONSES, {"tool_choice": "required"}, "tool_choice needs tools"),
        (RESPONSES, {"include": ["message.output_text.logprobs"]}, "field 'include.0'"),
        (RESPONSES, {"input": [{"role": "user"}]}, "type 'message' needs 'content'"),
        (RESPONSES, {"input": [{"content": "a"}]}, "type 'message' needs 'role'"),
        (RESPONSES, {"input": [{"role": "user", "content": "a", "arguments": "{}"}]}, "does not take 'arguments'"),
        (RESPONSES, {"input": [{"type": "function_call", "call_id": "a", "arguments": ""}]}, "needs 'name'"),
        (RESPONSES, {"input": [{"type": "function_call_output", "output": "x"}]}, "needs 'call_id'"),
        (RESPONSES, {"input": [{"type": "reasoning", "summary": []}]}, "holds no message"),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "a"}}}, "needs 'schema'"),
        (RESPONSES, {"text": {"format": {"type": "json_object", "schema": {}}}}, "does not take 'schema'"),
        (MESSAGES, _messages({"type": "text"}), "type 'text' needs 'text'"),
        (MESSAGES, _messages({"type": "text", "text": "a", "input": {}}), "does not take 'input'"),
        (MESSAGES, _messages({"type": "tool_result", "content": "a"}), "needs 'tool_use_id'"),
        (MESSAGES, _messages({"type": "tool_use", "id": "a", "input": {}}), "needs 'name'"),
        (MESSAGES, {"tool_choice": {"type": "tool"}}, "type 'tool' needs 'name'"),
        (MESSAGES, {"tool_choice": {"type": "auto", "name": "a"}}, "does not take 'name'"),
        (MESSAGES, {"stop_sequences": [""]}, "field 'stop_sequences.0'"),
        (OLLAMA, {"options": {"num_predict": -5}}, "field 'options.num_predict'"),
        (OLLAMA, {"options": {"repeat_penalty": "x"}}, "field 'options.repeat_penalty'"),
        (OLLAMA, {"options": {"stop": ["a"] * 9}}, "field 'options.stop' holds 9 entries"),
    ],
)
def test_another_apis_fields_are_honoured_or_named(live: Live, path: str, change: dict[str, Any], says: str) -> None:
    """Nothing is dropped on the way to a chat, and what is wrong is said in the client's own terms."""
    own = {RESPONSES: {"input": "a"}, MESSAGES: {"messages": HELLO, "max_tokens": 2}, OLLAMA: {"messages": HELLO}}[path]
    status, reply = live.send(path, {"model": "talker", **own, **change})
    assert status == 400
    assert says in str(reply["error"])


@pytest.mark.parametrize("name", ["template", "name", "self", "messages", "tools", "special_tokens"])
def test_a_template_variable_of_any_name_is_a_variable_or_refused(live: Live, name: str) -> None:
    body = {"model": "talker", "messages": HELLO, "max_tokens": 1, "chat_template_kwargs": {name: "x"}}
    status, reply = live.send("/v1/chat/completions", body)
    assert status == 200 if name in ("template", "name", "self") else "field of its own" in reply["error"]["message"]


@pytest.mark.parametrize("token", ["1_0", " 1", "1.0", "\u0661", "+1", ""])
def test_a_token_of_a_bias_is_a_number_in_digits(live: Live, token: str) -> None:
    body = {"model": "talker", "messages": HELLO, "max_tokens": 1, "logit_bias": {token: 1}}
    status, reply = live.send("/v1/chat/completions", body)
    assert status == 400
    assert "logit_bias must give a number for each token id" in reply["error"]["message"]
