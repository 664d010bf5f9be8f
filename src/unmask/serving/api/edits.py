"""Edits the way Mercury's clients ask for them: code with markers in one user message, code in a fence as the answer.

A model that fills writes into the gap at the cursor, or over the whole region where there is no cursor. A model that
chats is told what the markers mean and asked for the new region, or the whole file for an update.
"""

from __future__ import annotations

import re
from dataclasses import replace

from unmask.serving.api.errors import refuse
from unmask.serving.api.options import max_tokens
from unmask.serving.api.planner import Plan, Planner, can_fill
from unmask.serving.api.schema import CompletionRequest, EditRequest, Message, Writing, text_of

EDIT = (
    "The user shows a file. Rewrite the code between <|code_to_edit|> and <|/code_to_edit|> as the recent edits "
    "suggest. Answer with the new code between triple backticks and nothing else, or with None to leave it."
)
APPLY = (
    "The user shows a file between <|original_code|> and <|/original_code|> and an update between <|update_snippet|> "
    "and <|/update_snippet|>. Answer with the whole updated file between triple backticks and nothing else."
)
CURSOR = "<|cursor|>"
SHARED = tuple(Writing.model_fields)  # of a body, for the request that it becomes


def plan_edit(planner: Planner, body: EditRequest) -> Plan:
    """Rewrites the marked region."""
    text = _only_message(body)
    region = _between(text, "code_to_edit")
    _, lm = planner.models.find(body.model)
    if not can_fill(lm):
        return _chat(planner, body, text, EDIT)
    content = _between(text, "current_file_content") if "<|current_file_content|>" in text else text
    before, _, after = content.partition("<|code_to_edit|>")
    rest = after.partition("<|/code_to_edit|>")[2]
    # with a cursor the gap is there, else all of the region is written anew
    head, _, tail = region.partition(CURSOR) if CURSOR in region else ("", "", "")
    given = {name: getattr(body, name) for name in SHARED if name in body.model_fields_set}
    fill = CompletionRequest(prompt=before + head, suffix=tail + rest, max_tokens=max_tokens(body), **given)
    return replace(planner.completion(fill), wrap=lambda written: _fenced(head + written + tail))


def plan_apply(planner: Planner, body: EditRequest) -> Plan:
    """Merges an update into a file."""
    text = _only_message(body)
    for name in ("original_code", "update_snippet"):
        _between(text, name)
    return _chat(planner, body, text, APPLY)


def _chat(planner: Planner, body: EditRequest, text: str, task: str) -> Plan:
    messages = [Message(role="system", content=task), Message(role="user", content=text)]
    return replace(planner.dialogue(body.model_copy(update={"messages": messages})), wrap=_answered)


def _only_message(body: EditRequest) -> str:
    if body.diffusing:
        raise refuse("diffusing", "is not offered for edits: a region is answered with as a whole")
    if len(body.messages) != 1 or body.messages[0].role != "user":
        raise refuse("messages", "must be one message of the user")
    text = text_of(body.messages[0].content)
    if not text:
        raise refuse("messages", "hold no text")
    return text


def _between(text: str, name: str) -> str:
    found = re.search(rf"<\|{name}\|>(.*?)<\|/{name}\|>", text, re.DOTALL)
    if found is None:
        raise refuse("messages", f"must hold <|{name}|> and after it <|/{name}|>")
    return found[1]


def _fenced(code: str) -> str:
    return f"```\n{code}\n```"


def _answered(text: str) -> str:
    """The code of an answer in one fence, or None as the model said."""
    if text.strip().strip("`").strip() == "None":
        return "None"
    found = re.search(r"```[^\n]*\n(.*?)(?:\n?```|$)", text, re.DOTALL)
    return _fenced(found[1] if found else text.strip("\n"))
