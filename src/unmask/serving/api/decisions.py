"""Typed decisions: bodies and answers of OpenAI's Decisions API, and the canvases that answer them as jobs."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from unmask.decoding.decisions import Deciding
from unmask.decoding.forms import Canvas
from unmask.decoding.questions import CHOICES, QUESTIONS, Decision
from unmask.decoding.request import Alternatives
from unmask.lm import DiffusionLM
from unmask.serving.api.errors import refuse
from unmask.serving.api.execution import Execution
from unmask.serving.api.openai_responses import InputText, Item, messages_of
from unmask.serving.api.planner import Planner, check_characters, plain
from unmask.serving.api.schema import Message, Strict, text_of
from unmask.serving.api.work import Workers
from unmask.serving.engine import Done, Engine

Name = Annotated[str, Field(min_length=1, max_length=256)]


class ChoiceOption(Strict):
    value: Annotated[str, Field(min_length=1, max_length=1024)] | bool
    description: str | None = None


class ScoreLevel(Strict):
    label: str = Field(min_length=1, max_length=1024)
    description: str | None = None


class DecisionQuestion(Strict):
    """A question: `choice` has choices, `score` levels or a range of whole numbers, `predicate` is yes or no."""

    type: Literal["predicate", "choice", "score"]
    name: Name | None = None
    instructions: str | Annotated[list[InputText], Field(fail_fast=True, max_length=64)] = ""
    choices: Annotated[list[ChoiceOption], Field(fail_fast=True, min_length=2, max_length=CHOICES)] | None = None
    levels: Annotated[list[ScoreLevel], Field(fail_fast=True, min_length=2, max_length=CHOICES)] | None = None
    range: Annotated[list[Annotated[int, Field(ge=-(2**31), le=2**31)]], Field(min_length=2, max_length=2)] | None = (
        None
    )


class DecisionRequest(Strict):
    """Body of /v1/decisions. `form` and `threshold` are ours."""

    model: str | None = Field(None, max_length=256, description="One of /v1/models; the first served if left out.")
    input: str | Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=4096)] = Field(
        description="The state: text, or messages."
    )
    questions: Annotated[list[DecisionQuestion], Field(fail_fast=True, min_length=1, max_length=QUESTIONS)]
    form: str | None = Field(None, description="Text of the answer with a slot [[name]] for each question, in order.")
    threshold: float | None = Field(
        None, ge=0, le=1, description="Answers so confident are written, and the others read again."
    )
    user: str | None = Field(None, max_length=256, description="Goes into the server's log.")
    seed: int | None = Field(None, description="Taken; nothing is drawn.")
    safety_identifier: str | None = Field(None, max_length=256, description="Taken, and not read.")
    prompt_cache_key: str | None = Field(None, max_length=256, description="Taken, and not read.")


class DecisionAnswer(BaseModel):
    """An answer: `probability` of a predicate; `choice`, or `score` (the expected level), with all probabilities."""

    type: Literal["predicate", "choice", "score"]
    name: str | None
    probability: float | None = None
    choice: str | bool | None = None
    score: float | None = None
    confidence: float
    probabilities: list[dict[str, Any]] | None = None
    reads: int


class DecisionReply(BaseModel):
    """An answer of /v1/decisions, in the order of the questions."""

    model: str
    answers: list[DecisionAnswer]
    usage: dict[str, Any]


@dataclass
class DecisionPlan:
    """A checked request: what yields canvases, and the first of them."""

    name: str
    lm: DiffusionLM
    body: DecisionRequest
    deciding: Deciding
    canvases: list[Canvas]

    @property
    def prompt_tokens(self) -> int:
        return len(self.canvases[0].ids)


def plan(planner: Planner, body: DecisionRequest) -> DecisionPlan:
    """Checks a request; raises APIError or UnmaskError for what cannot be done as asked."""
    name, lm = planner.models.find(body.model)
    questions = [
        {**question.model_dump(exclude_none=True), "instructions": text_of(question.instructions)}
        for question in body.questions
    ]
    state: Any = body.input
    if isinstance(state, list):
        state = [plain(Message.model_validate(message)) for message in messages_of(state)]
    for text in [state] if isinstance(state, str) else [message["content"] for message in state]:
        check_characters(text or "", lm)
    deciding = lm.prepare_decisions(state, questions, body.form, body.threshold)
    canvases = next(deciding)
    if len(canvases) > planner.limits.canvases:
        most = planner.limits.canvases
        raise refuse("questions", f"have labels that take {len(canvases)} canvases; at most {most} are read")
    planner.check_prompt(len(canvases[0].ids))
    return DecisionPlan(name, lm, body, deciding, canvases)


async def run(engine: Engine, workers: Workers, plan: DecisionPlan) -> dict[str, Any]:
    """Reads what a plan asks for, among all other requests; the answer's body."""
    canvases = plan.canvases
    read = 0
    while True:
        told: list[dict[int, Alternatives]] = [{} for _ in canvases]
        prepared = plan.lm.preparer.read(canvases)
        with closing(Execution(engine, plan.name, prepared, resumed=read > 0, quiet=True)) as execution:
            async for number, event in execution:
                if isinstance(event, Done):
                    told[number] = event.logprobs
        read += len(canvases)
        canvases, decisions = await workers.do(partial(_send, plan.deciding, told), 0)
        if decisions:
            return _reply(plan, decisions, read)


def _send(deciding: Deciding, told: list[dict[int, Alternatives]]) -> tuple[list[Canvas], list[Decision]]:
    """The canvases to read next, or the decisions."""
    try:
        return deciding.send(told), []
    except StopIteration as decided:
        return [], decided.value


def _reply(plan: DecisionPlan, decisions: list[Decision], read: int) -> dict[str, Any]:
    tokens = plan.prompt_tokens
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
        "canvases": read,
    }
    pairs = zip(decisions, plan.body.questions, strict=True)
    return {"model": plan.name, "answers": [_answer(one, asked.name) for one, asked in pairs], "usage": usage}


def _answer(decision: Decision, name: str | None) -> dict[str, Any]:
    kind = decision.question.type
    head = {"type": kind, "name": name, "confidence": decision.confidence, "reads": decision.reads}
    if kind == "predicate":
        return {**head, "probability": decision.mean}
    told = [
        {"value": value, "probability": p} | ({"label": label} if kind == "score" else {})
        for value, label, p in zip(
            decision.question.values, decision.question.labels, decision.probabilities, strict=True
        )
    ]
    own = {"choice": decision.answer} if kind == "choice" else {"score": decision.mean}
    return {**head, **own, "probabilities": told}
