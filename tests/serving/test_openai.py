"""The openai client, unchanged, against a live server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import Live

from unmask.serving.api.access import read_keys
from unmask.serving.api.settings import Settings
from unmask.serving.engine import Limits

HELLO: list[Any] = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=live.url, api_key="none", max_retries=0, timeout=60)


def test_chat_is_what_generate_writes(client: openai.OpenAI, live: Live) -> None:
    for mode in ("diffusion", "ar", "verify"):
        for temperature in (0.0, 1.0):
            reply = client.chat.completions.create(
                model="talker", messages=HELLO, max_tokens=24, seed=5, temperature=temperature,
                extra_body={"mode": mode},
            )  # fmt: skip
            out = live.models["talker"].generate(HELLO, 24, mode=mode, seed=5, temperature=temperature)
            assert reply.choices[0].message.content == out.text
            assert reply.usage is not None
            assert reply.usage.completion_tokens == len(out.token_ids)
            assert reply.usage.model_dump()["steps"] == out.steps
            assert reply.choices[0].finish_reason == ("length" if len(out.token_ids) == 24 else "stop")
            assert reply.object == "chat.completion"


@pytest.mark.parametrize("model", ["talker", "canvas", "left", "blocks", "noisy"])
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_streams_add_up_to_the_whole(client: openai.OpenAI, live: Live, model: str, temperature: float) -> None:
    asked: dict[str, Any] = {"model": model, "max_tokens": 28, "temperature": temperature}
    asked["prompt"] = prompt = "w5 w6 w7" if model == "noisy" else "the dog"
    for seed in range(2):
        whole = client.completions.create(**asked, seed=seed)
        parts = list(client.completions.create(**asked, seed=seed, stream=True, stream_options={"include_usage": True}))
        assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text
        assert parts[-1].usage == whole.usage
        assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == whole.choices[0].finish_reason
        assert whole.choices[0].text == live.models[model].generate(
            prompt, 28, temperature=temperature, seed=seed
        ).text  # fmt: skip


def test_async_requests_share_steps_and_do_not_touch_each_other(live: Live) -> None:
    """Law 7 through the front door."""

    async def all_of_them() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=live.url, api_key="none", max_retries=0, timeout=60) as client:
            asked = [
                client.chat.completions.create(
                    model="talker", messages=HELLO, max_tokens=20 + i, seed=i, temperature=0.9,
                    extra_body={"mode": ("ar", "verify", "diffusion")[i % 3]},
                )
                for i in range(9)
            ]  # fmt: skip
            stream = await client.completions.create(model="canvas", prompt="a", max_tokens=30, seed=3, stream=True)
            text = "".join([part.choices[0].text async for part in stream])
            return [*(reply.choices[0].message.content for reply in await asyncio.gather(*asked)), text]

    *together, text = asyncio.run(all_of_them())
    lm = live.models["talker"]
    for i, written in enumerate(together):
        mode = ("ar", "verify", "diffusion")[i % 3]
        assert written == lm.generate(HELLO, 20 + i, seed=i, temperature=0.9, mode=mode).text
    assert text == live.models["canvas"].generate("a", 30, seed=3).text


def test_several_texts_have_seeds_that_follow_each_other(client: openai.OpenAI, live: Live) -> None:
    reply = client.completions.create(
        model="canvas", prompt=["the cat", "a dog"], n=2, seed=10, temperature=1.0, max_tokens=12
    )
    lm = live.models["canvas"]
    texts = [
        lm.generate(p, 12, seed=10 + i, temperature=1.0).text
        for i, p in enumerate(["the cat", "the cat", "a dog", "a dog"])
    ]
    assert [choice.text for choice in reply.choices] == texts
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]


def test_stops_are_cut_across_tokens_and_in_streams(client: openai.OpenAI, live: Live) -> None:
    asked: dict[str, Any] = {"model": "talker", "messages": HELLO, "max_tokens": 60, "temperature": 1.0}
    for seed in range(3):
        full = client.chat.completions.create(**asked, seed=seed).choices[0].message.content or ""
        if len(full) < 12:
            continue
        stop = full[5:8]
        cut = client.chat.completions.create(**asked, seed=seed, stop=["never there", stop])
        parts = list(client.chat.completions.create(**asked, seed=seed, stop=["never there", stop], stream=True))
        expected = full[: full.index(stop)]
        assert cut.choices[0].message.content == expected
        assert cut.choices[0].finish_reason == "stop"
        assert "".join(p.choices[0].delta.content or "" for p in parts) == expected
        assert cut.usage is not None
        assert cut.usage.completion_tokens < 60


def test_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "talker", "messages": HELLO, "max_tokens": 12, "seed": 1}
    reply = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs and reply.choices[0].logprobs.content
    assert content
    assert reply.usage is not None
    assert len(content) == reply.usage.completion_tokens
    assert all(c.top_logprobs[0].logprob == max(t.logprob for t in c.top_logprobs) for c in content)
    assert all(len(c.top_logprobs) == 3 and c.logprob <= 0 for c in content)
    parts = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3, stream=True)
    streamed = [c for p in parts if (lp := p.choices[0].logprobs) and lp.content for c in lp.content]
    assert streamed == content
    text = client.completions.create(model="canvas", prompt="the", max_tokens=9, seed=1, logprobs=2).choices[0]
    assert text.logprobs is not None
    assert len(text.logprobs.tokens or []) == len(text.logprobs.top_logprobs or []) > 0
    bare = client.chat.completions.create(**asked).choices[0].logprobs
    assert bare is None


@pytest.mark.parametrize("content", ["🦙 é 日本語", "the cat ☕"])
def test_bytes_of_logprobs_are_the_tokens_own(client: openai.OpenAI, content: str) -> None:
    """Tokens of part of a character, forced by a grammar: joined, the bytes are the content's."""
    reply = client.chat.completions.create(
        model="talker", messages=HELLO, max_tokens=60, logprobs=True, extra_body={"guided_choice": [content]}
    )
    choice = reply.choices[0]
    assert choice.message.content == content
    assert choice.logprobs is not None
    entries = [entry.bytes or [] for entry in choice.logprobs.content or [] if entry.token != "<|endoftext|>"]
    assert b"".join(map(bytes, entries)).decode() == content


def test_a_canvas_model_near_its_limit_writes_what_fits(live: Live) -> None:
    lm = live.models["noisy"]
    block = lm.room(0) and lm.config.block_length
    prompt = [1] * (lm.config.max_length - block - 3)
    status, reply = live.send("/v1/completions", {"model": "noisy", "prompt": prompt, "seed": 1})
    assert status == 200, reply
    assert 0 < reply["usage"]["completion_tokens"] <= 16


def test_models_and_errors_are_openais(client: openai.OpenAI) -> None:
    assert {m.id for m in client.models.list()} == {"talker", "canvas", "left", "blocks", "noisy"}
    assert client.models.retrieve("canvas").model_dump()["can_fill"] is True
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="canvas"):
        client.completions.create(model="left", prompt="a", suffix="b")
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model="canvas", messages=HELLO)


def test_refusals_are_openais_exceptions(start: Any, live: Live, key_file: Path) -> None:
    def of(served: Live, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=served.url, api_key=key, max_retries=0, timeout=60)

    closed = start(settings=Settings(keys=read_keys(key_file)))
    with pytest.raises(openai.AuthenticationError):
        of(closed, "wrong").models.list()
    assert len(list(of(closed, "open-sesame").models.list())) == 5
    small = start(Limits(slots=1, queue=0))
    with of(small).chat.completions.create(model="talker", messages=HELLO, max_tokens=300, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="full"):
            of(small).chat.completions.create(model="talker", messages=HELLO)
    hasty = start(settings=Settings(seconds=0.0))
    with pytest.raises(openai.APIStatusError, match="longer"):
        of(hasty).completions.create(model="canvas", prompt="a")
    with pytest.raises(openai.APIError, match="longer"):
        list(of(hasty).completions.create(model="canvas", prompt="a", stream=True))

    async def wrongly() -> None:
        async with openai.AsyncOpenAI(base_url=live.url, api_key="none", max_retries=0) as client:
            await client.chat.completions.create(model="talker", messages=HELLO, temperature=3)

    with pytest.raises(openai.BadRequestError, match="temperature"):
        asyncio.run(wrongly())


def test_several_streamed_texts_are_told_apart(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "talker",
        "messages": HELLO,
        "max_tokens": 16,
        "temperature": 1.0,
        "seed": 4,
        "n": 3,
    }
    whole, texts = client.chat.completions.create(**asked), ["", "", ""]
    for part in client.chat.completions.create(**asked, stream=True):
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1


def test_frames_and_snapshots(live: Live) -> None:
    """Both lead to the text that the plain answer has."""
    client = openai.OpenAI(base_url=live.url, api_key="none", max_retries=0, timeout=60)
    asked: dict[str, Any] = {"model": "canvas", "prompt": "the cat", "max_tokens": 24, "seed": 2, "stream": True}
    lm, text = live.models["canvas"], live.models["canvas"].generate("the cat", 24, seed=2).text
    tokens: list[Any] = [None] * 24
    for part in client.completions.create(**asked, extra_body={"stream_options": {"frames": True}}):
        choice = part.choices[0].model_dump()
        if "canvas" in choice:
            assert choice["canvas"]["texts"] == [None] * 24
        frame = choice.get("frame") or {"positions": [], "tokens": [], "kinds": []}
        assert frame["kinds"] == ["unmask"] * len(frame["tokens"])
        for position, token in zip(frame["positions"], frame["tokens"], strict=True):
            tokens[position] = token
    assert None not in tokens
    end = tokens.index(0) if 0 in tokens else 24
    assert lm.tokenizer is not None
    assert lm.tokenizer.decode(tokens[:end]) == text
    shots = [p.choices[0].text for p in client.completions.create(**asked, extra_body={"diffusing": True})]
    assert shots[-2] == text
    assert any("░" in shot for shot in shots)
    chat = client.chat.completions.create(
        model="talker", messages=HELLO, max_tokens=16, stream=True, extra_body={"diffusing": True}
    )
    last = [p.choices[0].delta.content for p in chat if p.choices[0].delta.content][-1]
    assert last == live.models["talker"].generate(HELLO, 16).text


def test_events_are_json_lines_that_end_with_done(live: Live) -> None:
    status, body = live.send("/v1/completions", {"model": "canvas", "prompt": "été", "max_tokens": 8, "stream": True})
    assert status == 200
    lines = [line for line in body.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])
