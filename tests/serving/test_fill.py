"""Gaps over HTTP: templates, suffixes, and edits as Mercury's clients ask for them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from live_server import Live


def test_infill_fills_as_the_library_does(live: Live) -> None:
    lm = live.models["canvas"]
    for template in ("the [[mask:4]] sat on", "[[mask:3]] and a [[mask:2-5]] sat.[[mask:1]]"):
        out = lm.fill(template, seed=4, temperature=0.7)
        status, reply = live.send(
            "/v1/infill", {"model": "canvas", "template": template, "seed": 4, "temperature": 0.7}
        )
        assert status == 200, reply
        choice = reply["choices"][0]
        assert (choice["text"], tuple(choice["gaps"])) == (out.text, out.gaps)
        assert choice["finish_reason"] == "stop"
        assert reply["usage"]["completion_tokens"] == len(out.token_ids)
        assert reply["usage"]["steps"] == out.steps


def test_segments_are_never_read_as_gaps(live: Live) -> None:
    segments = ["a [[mask:2]] cat", {"mask": 3}, " sat", {"mask": {"min": 1, "max": 3}}]
    status, reply = live.send("/v1/infill", {"model": "canvas", "segments": segments, "seed": 1, "n": 2})
    assert status == 200, reply
    for choice in reply["choices"]:
        assert choice["text"].startswith("a [[mask:2]] cat")
        assert len(choice["gaps"]) == 2


def test_a_streamed_infill_adds_up(live: Live) -> None:
    asked = {"model": "canvas", "template": "the [[mask:4]] sat [[mask:1-3]].", "seed": 3}
    _, whole = live.send("/v1/infill", asked)
    _, body = live.send("/v1/infill", {**asked, "stream": True, "stream_options": {"frames": True}})
    parts = [json.loads(line[6:]) for line in body.split("\n\n") if line and "[DONE]" not in line]
    choices = [part["choices"][0] for part in parts]
    assert "".join(c["text"] for c in choices) == whole["choices"][0]["text"]
    assert next(c["gaps"] for c in choices if "gaps" in c) == whole["choices"][0]["gaps"]
    texts = choices[0]["canvas"]["texts"]
    assert texts[0] == "the"
    for choice in choices:
        frame = choice.get("frame", {"positions": [], "texts": []})
        for position, text in zip(frame["positions"], frame["texts"], strict=True):
            texts[position] = text
    assert len(texts) == whole["usage"]["total_tokens"]
    assert None not in texts


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/fim/completions"])
def test_a_suffix_is_seen_and_not_repeated(live: Live, path: str) -> None:
    asked: dict[str, Any] = {"model": "canvas", "prompt": "the cat", "suffix": " the mat.", "max_tokens": 9, "seed": 2}
    status, reply = live.send(path, asked)
    assert status == 200, reply
    assert 1 <= reply["usage"]["completion_tokens"] <= 9
    other = live.send(path, {**asked, "suffix": " a dog and a dog and a cat"})[1]
    assert other["choices"][0]["text"] != reply["choices"][0]["text"]  # it depends on what follows
    client = openai.OpenAI(base_url=live.url, api_key="none", max_retries=0)
    assert client.completions.create(**asked).choices[0].text == reply["choices"][0]["text"]


def test_only_models_that_see_what_follows_fill(live: Live) -> None:
    for model in ("talker", "left", "blocks", "noisy"):
        for path, body in (
            ("/v1/infill", {"template": "a [[mask:2]] b"}),
            ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ):
            status, reply = live.send(path, {"model": model, **body})
            assert status == 400
            assert "canvas can" in reply["error"]["message"]


EDIT = (
    "<|current_file_content|>\ndef f():\n<|code_to_edit|>    return the {}cat\n<|/code_to_edit|>\n"
    "<|/current_file_content|>\n<|edit_diff_history|>\n<|/edit_diff_history|>"
)


def edit(live: Live, path: str, model: str, text: str, **more: Any) -> tuple[int, Any]:
    return live.send(path, {"model": model, "messages": [{"role": "user", "content": text}], **more})


def test_edits_as_mercurys_clients_ask(live: Live) -> None:
    for text in (EDIT.format("<|cursor|>"), EDIT.format("")):
        status, reply = edit(live, "/v1/edit/completions", "canvas", text, max_tokens=8, seed=1)
        assert status == 200, reply
        content = reply["choices"][0]["message"]["content"]
        assert reply["object"] == "edit.completion"
        assert content.startswith("```\n")
        assert content.endswith("\n```")
        if "<|cursor|>" in text:
            assert content[4:].startswith("    return the ")
            assert content[:-4].endswith("cat\n")
    status, reply = edit(live, "/v1/edit/completions", "talker", "<|code_to_edit|>a<|/code_to_edit|>", max_tokens=8)
    assert status == 200, reply
    assert reply["choices"][0]["message"]["content"].startswith("```") or "None" in str(reply)
    assert edit(live, "/v1/edit/completions", "canvas", "no markers")[0] == 400


def test_updates_are_applied_by_models_that_chat(live: Live) -> None:
    text = "<|original_code|>a<|/original_code|>\n<|update_snippet|>b<|/update_snippet|>"
    status, reply = edit(live, "/v1/apply/completions", "talker", text, max_tokens=8)
    assert (status, reply["object"]) == (200, "apply.completion")
    status, reply = edit(live, "/v1/apply/completions", "canvas", text)
    assert status == 400
    assert "talker can" in reply["error"]["message"]
    whole = edit(live, "/v1/apply/completions", "talker", text, max_tokens=8, seed=1)[1]
    status, body = edit(live, "/v1/apply/completions", "talker", text, max_tokens=8, seed=1, stream=True)
    parts = [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")]
    streamed = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert (status, streamed) == (200, whole["choices"][0]["message"]["content"])
