"""From the fields of a request to the options of a model; what a model reads is the decoding registry's to say."""

from __future__ import annotations

from typing import Any

from unmask.decoding.methods import choose
from unmask.lm import DiffusionLM
from unmask.serving.api.errors import refuse
from unmask.serving.api.schema import OPTIONS, ChatRequest, Dialogue, Steering, Writing

EFFORTS = {"instant": 4.0, "low": 2.0, "medium": 1.0, "high": 0.5}  # doubt allowed, and steps saved
WIDEST_WINDOW = 32  # of a drafting model: the work of a check grows with its square


def decoding_options(body: Steering, lm: DiffusionLM) -> dict[str, Any]:
    """The options that a request gives, for `DiffusionLM.prepare`, which refuses those that the model does not read."""
    given = {name: value for name in OPTIONS if (value := getattr(body, name)) is not None}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    block = given.get("block_length")
    if block is not None and lm.config.layout == "drafts" and block > WIDEST_WINDOW:
        raise refuse("block_length", f"must be at most {WIDEST_WINDOW} for model '{lm.name}'")
    if body.reasoning_effort in EFFORTS:
        given = effort_options(EFFORTS[body.reasoning_effort], body.mode, given, lm) | given
    return given if body.mode is None else {**given, "mode": body.mode}


def effort_options(by: float, mode: str | None, given: dict[str, Any], lm: DiffusionLM) -> dict[str, Any]:
    """Steps and threshold of an effort: the model's own at `medium`; fields that are given stand."""
    defaults = lm.defaults
    way = choose(lm.name, lm.config, defaults, mode, given)
    out = dict[str, Any]()
    if defaults.max_denoising_steps is not None and "max_denoising_steps" in way.reads:
        out["max_denoising_steps"] = max(1, round(defaults.max_denoising_steps / by))
    if "threshold" in way.reads:
        out["threshold"] = max(0.0, 1 - (1 - defaults.threshold) * by)
    if not out.keys() - given.keys():
        raise refuse("reasoning_effort", f"has nothing to set: {way.name} reads neither steps nor a threshold")
    return out


def stop_list(body: Writing) -> list[str]:
    stop = body.stop
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else stop


def alternatives(body: Steering) -> int | None:
    """How many alternatives of each token are asked for; None for no log-probabilities at all."""
    if not isinstance(body, ChatRequest):
        return getattr(body, "logprobs", None)
    if body.top_logprobs and not body.logprobs:
        raise refuse("top_logprobs", "needs logprobs to be true")
    return (body.top_logprobs or 0) if body.logprobs else None


def max_tokens(body: Dialogue) -> int | None:
    one = body.max_tokens
    other = body.max_completion_tokens
    if one is not None and other is not None and one != other:
        raise refuse("max_tokens", "and max_completion_tokens are two names of one thing and must agree")
    return other if one is None else one


def check_stream(body: Steering) -> None:
    """Raises APIError for what only streams have."""
    frames = body.stream_options is not None and body.stream_options.frames
    if body.diffusing and not body.stream:
        raise refuse("diffusing", "needs stream to be true")
    if frames and not body.stream:
        raise refuse("stream_options.frames", "needs stream to be true")
    if body.diffusing and frames:
        raise refuse("diffusing", "sends whole texts and stream_options.frames changes; ask for one of them")
