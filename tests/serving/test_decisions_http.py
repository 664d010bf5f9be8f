"""/v1/decisions: OpenAI's client, the library's numbers, company, refusals."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from live_server import Live

STATE = "the cat sat on the mat"
ASKED: list[dict[str, Any]] = [
    {
        "type": "choice",
        "name": "who",
        "instructions": "who sat",
        "choices": [{"value": "cat"}, {"value": "dog", "description": "a dog"}, {"value": True}],
    },
    {"type": "predicate", "instructions": "the cat sat"},
    {"type": "score", "name": "rank", "instructions": "how", "levels": [{"label": "log"}, {"label": "mat"}]},
]


@pytest.mark.parametrize("model", ["canvas", "blocks", "left", "talker"])
def test_openai_client(live: Live, model: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=live.url, api_key="none")
    if not hasattr(client, "decisions"):
        pytest.skip("this client has no decisions")
    reply = client.decisions.create(model=model, input=STATE, questions=ASKED)
    told = live.models[model].decide(STATE, ASKED)
    assert reply.model == model
    assert [answer.name for answer in reply.answers] == ["who", None, "rank"]
    who, sat, rank = reply.answers
    assert (who.type, sat.type, rank.type) == ("choice", "predicate", "score")
    assert [entry.value for entry in who.probabilities] == ["cat", "dog", True]
    for answer, decision in zip((who, rank), (told[0], told[2]), strict=True):
        assert [p.probability for p in answer.probabilities] == pytest.approx(decision.probabilities, abs=1e-5)
        assert answer.confidence == pytest.approx(decision.confidence, abs=1e-4)
    assert who.choice == told[0].answer
    assert sat.probability == pytest.approx(told[1].mean, abs=1e-5)
    assert rank.score == pytest.approx(told[2].mean, abs=1e-5)
    assert [(entry.label, entry.value) for entry in rank.probabilities] == [("log", 0), ("mat", 1)]
    assert reply.usage.total_tokens == reply.usage.input_tokens > 0


def test_threshold_and_form(live: Live) -> None:
    questions = [{"type": "choice", "name": n, "choices": [{"value": "cat"}, {"value": "dog"}]} for n in "ab"]
    form = " the [[a]] sat on the [[b]]."
    body = {"model": "canvas", "input": STATE, "questions": questions, "form": form, "threshold": 0}
    status, reply = live.send("/v1/decisions", body)
    assert status == 200, reply
    assert [answer["reads"] for answer in reply["answers"]] == [1, 1]
    assert reply["usage"]["canvases"] == 1
    lm = live.models["canvas"]
    once = lm.decide(STATE, [{**q, "choices": ["cat", "dog"]} for q in questions], form)
    surest = max(decision.confidence for decision in once)
    status, reply = live.send("/v1/decisions", {**body, "threshold": surest - 1e-6})
    assert sorted(answer["reads"] for answer in reply["answers"]) == [1, 2]


def test_decisions_wait_for_nobody_and_hold_up_nobody(live: Live) -> None:
    """They join the steps of a text that is being written, and that text is what it is alone."""
    body = {"model": "blocks", "prompt": STATE, "max_tokens": 60, "seed": 3}
    alone = live.send("/v1/completions", body)[1]["choices"][0]["text"]
    texts: list[str] = []
    with live.gated(pause=0.02):
        writing = threading.Thread(
            target=lambda: texts.append(live.send("/v1/completions", body)[1]["choices"][0]["text"])
        )
        writing.start()
        while live.server.engine.running == 0:
            pass
        status, reply = live.send("/v1/decisions", {"model": "blocks", "input": STATE, "questions": ASKED})
        assert status == 200
        assert writing.is_alive()
        writing.join()
    assert texts == [alone]
    told = live.models["blocks"].decide(STATE, ASKED)
    assert reply["answers"][1]["probability"] == pytest.approx(told[1].mean, abs=1e-5)


QUESTION = {"type": "choice", "name": "q", "choices": [{"value": "cat"}, {"value": "dog"}]}
MANY = [{"value": f"{a} {b} sat"} for a in "abcdefghij" for b in "abcdefghij"]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"questions": []}, "questions"),
    ({"questions": [{**QUESTION, "choices": [{"value": "cat"}]}]}, "choices"),
    ({"questions": [{**QUESTION, "levels": [{"label": "a"}, {"label": "b"}]}]}, "does not take"),
    ({"questions": [{"type": "score", "name": "s"}]}, "needs levels or else range"),
    ({"questions": [QUESTION, QUESTION]}, "two questions"),
    ({"temperature": 1}, "unknown"),
    ({"threshold": 1.5}, "threshold"),
    ({"model": "left", "threshold": 0.5}, "left to right"),
    ({"model": "noisy"}, "no slots"),
    ({"form": "nothing"}, "in their order"),
    ({"input": "the cat " * 500}, "do not fit"),
    ({"questions": [{**QUESTION, "choices": MANY}], "form": " the [[q]]"}, "canvases; at most 64 are read"),
    ({"questions": [{**QUESTION, "choices": [*MANY, *MANY[1:]]}], "form": " the [[q]]"}, "alike"),
    ({"input": [{"role": "user", "content": STATE}]}, "chat template"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_refusals(live: Live, change: dict[str, Any], message: str) -> None:
    status, reply = live.send("/v1/decisions", {"model": "canvas", "input": STATE, "questions": [QUESTION], **change})
    assert status == 400, reply
    assert message in reply["error"]["message"]
    assert "\n" not in reply["error"]["message"]


def test_messages(live: Live) -> None:
    messages = [{"role": "system", "content": "the dog"}, {"role": "user", "content": STATE}]
    status, reply = live.send("/v1/decisions", {"model": "talker", "input": messages, "questions": ASKED})
    assert status == 200
    told = live.models["talker"].decide(messages, ASKED)
    assert reply["answers"][1]["probability"] == pytest.approx(told[1].mean, abs=1e-5)
