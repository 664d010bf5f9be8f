"""A client that speaks Mercury's API over plain HTTP, as its documentation shows, against ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from live_server import Live

EDIT = (
    "<|recently_viewed_code_snippets|>\n\n<|/recently_viewed_code_snippets|>\n\n<|current_file_content|>\n"
    "current_file_path: cat.py\ndef f():\n<|code_to_edit|>    return the <|cursor|>cat\n<|/code_to_edit|>\n"
    "<|/current_file_content|>\n\n<|edit_diff_history|>\n\n<|/edit_diff_history|>\n"
)
APPLY = "<|original_code|>\na cat\n<|/original_code|>\n\n<|update_snippet|>\na dog\n<|/update_snippet|>\n"


class Client:
    """Posts bodies and reads streams."""

    def __init__(self, url: str) -> None:
        self.url, self.session = url, requests.Session()
        self.session.headers["Authorization"] = "Bearer none"

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = self.session.post(self.url + path, json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def chunks(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        with self.session.post(self.url + path, json={**body, "stream": True}, stream=True, timeout=60) as reply:
            lines = [line[6:] for line in reply.iter_lines() if line.startswith(b"data: ")]
        assert lines[-1] == b"[DONE]"
        return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[Client]:
    made = Client(live.url)
    yield made
    made.session.close()


def test_a_diffusing_chat_is_replaced_and_a_plain_one_appended(client: Client) -> None:
    asked = {
        "model": "talker", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 30, "temperature": 0.75,
        "seed": 3, "reasoning_effort": "medium", "stop": ["never there"],
    }  # fmt: skip
    whole = client.post("/chat/completions", asked)
    text, shown, appended = whole["choices"][0]["message"]["content"], "", ""
    parts = client.chunks("/chat/completions", {**asked, "diffusing": True, "stream_options": {"include_usage": True}})
    for part in parts:
        for choice in part["choices"]:
            shown = choice["delta"].get("content") or shown
    assert shown == text
    assert parts[-1]["usage"] == whole["usage"]
    assert any("░" in str(part) for part in parts)
    for part in client.chunks("/chat/completions", asked):
        appended += part["choices"][0]["delta"].get("content") or ""
    assert appended == text


def test_the_middle_is_filled(client: Client) -> None:
    asked = {"model": "canvas", "prompt": "the cat", "suffix": " the mat.", "max_tokens": 512, "temperature": 0.0}
    text = client.post("/fim/completions", asked)["choices"][0]["text"]
    assert text
    assert client.post("/fim/completions", {**asked, "presence_penalty": 1.5})["choices"][0]["text"]
    stop = text[1:3]
    cut = client.post("/fim/completions", {**asked, "stop": [stop]})["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(stop)], "stop")
    parts = client.chunks("/fim/completions", {**asked, "stop": stop})
    assert "".join(part["choices"][0]["text"] for part in parts) == cut["text"]


def test_a_region_is_rewritten_and_an_update_applied(client: Client) -> None:
    for path, model, text in (("edit", "canvas", EDIT), ("apply", "talker", APPLY)):
        asked = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 12, "temperature": 0.3}
        answer = client.post(f"/{path}/completions", asked)
        assert answer["object"] == f"{path}.completion"
        content = answer["choices"][0]["message"]["content"]
        more = {"stream_options": {"include_usage": True}, "stream": False, "nextEdit": True, "realtime": True}
        penalised = client.post(f"/{path}/completions", {**asked, **more, "presence_penalty": 1.0, "seed": 1})
        assert penalised["choices"][0]["message"]["content"]
        streamed = client.chunks(f"/{path}/completions", {**asked, "seed": 1})
        same = client.post(f"/{path}/completions", {**asked, "seed": 1})["choices"][0]["message"]["content"]
        assert "".join(part["choices"][0]["delta"].get("content") or "" for part in streamed) == same
        assert content == "None" or (content.startswith("```") and content.endswith("```"))
