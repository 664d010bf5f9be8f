"""From the fields of a request to the options of a model: everything is honoured or refused by name."""

from __future__ import annotations

from typing import Any

from unmask.decoding.methods import DecodingDefaults
from unmask.decoding.request import MODES
from unmask.lm import DiffusionLM
from unmask.serving.api.errors import APIError
from unmask.serving.api.schema import ChatRequest, CompletionRequest, Steering, Writing

READ_BY = {
    "threshold": ("threshold", "checked", "token_edit"),
    "editing_threshold": ("token_edit",),
    "factor": ("factor",),
    "entropy_bound": ("entropy_bound",),
}
RULE_PARAMETERS = tuple(READ_BY)
DIFFUSION_ONLY = ("rule", *RULE_PARAMETERS, "max_denoising_steps", "remask_budget", "reasoning_effort")
EFFORTS = {"instant": 4.0, "low": 2.0, "medium": 1.0, "high": 0.5}  # doubt allowed, and steps saved
WIDEST_WINDOW = 32  # of a drafting model: the work of a check grows with its square


def refuse(field: str, why: str) -> APIError:
    return APIError(400, f"{field} {why}", param=field)


def decoding_options(body: Steering, lm: DiffusionLM) -> dict[str, Any]:
    """Options for `DiffusionLM.prepare`. Raises APIError 400 naming a field that could not be honoured."""
    given = {name: value for name in DIFFUSION_ONLY if (value := getattr(body, name)) is not None}
    options = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k", "seed")}
    modes = MODES[lm.config.layout]
    mode = (body.mode if isinstance(body, Writing) else None) or modes[0]
    if mode not in modes:
        raise refuse("mode", f"'{mode}' is not one of model '{lm.name}', which has {' and '.join(modes)}")
    if isinstance(body, Writing):
        options |= {"mode": mode, "block_length": body.block_length, "stop": stop_list(body)}
        if body.block_length is not None:
            _check_block(body.block_length, mode, lm)
    if mode != "diffusion":
        for name in given:
            raise refuse(name, f"is of mode diffusion; mode '{mode}' of model '{lm.name}' does not read it")
        return options
    rule = body.rule or lm.defaults.rule
    for name in RULE_PARAMETERS:
        if name in given and rule not in READ_BY[name]:
            readers = " and ".join(READ_BY[name])
            raise refuse(name, f"is of rule {readers}, and the request decodes by rule {rule}")
    if rule == "checked" and "max_denoising_steps" in given:
        raise refuse("max_denoising_steps", "is not read by rule checked, which writes what holds")
    effort = given.pop("reasoning_effort", None)
    return {**options, **(effort_options(effort, rule, given, lm.defaults) if effort else {}), **given}


def effort_options(effort: str, rule: str, given: dict[str, Any], defaults: DecodingDefaults) -> dict[str, Any]:
    """Steps and threshold of an effort: the model's own at `medium`; fields that are given stand."""
    by, out = EFFORTS[effort], dict[str, float]()
    if defaults.max_denoising_steps is not None and rule != "checked":
        out["max_denoising_steps"] = max(1, round(defaults.max_denoising_steps / by))
    if rule in READ_BY["threshold"]:
        out["threshold"] = max(0.0, 1 - (1 - defaults.threshold) * by)
    left = {name: value for name, value in out.items() if name not in given}
    if not left:
        raise refuse("reasoning_effort", "has nothing to set: this model and rule take neither steps nor a threshold")
    return left


def _check_block(block: int, mode: str, lm: DiffusionLM) -> None:
    if mode == "ar":
        raise refuse("block_length", "is not read in mode 'ar', which writes one token at a time")
    if mode == "verify" and block < 2:
        raise refuse("block_length", "must be at least 2 in mode 'verify': one sure token and a draft")
    if lm.config.layout == "drafts" and block > WIDEST_WINDOW:
        raise refuse("block_length", f"must be at most {WIDEST_WINDOW} for model '{lm.name}'")


def stop_list(body: Writing) -> list[str]:
    stop = body.stop
    return [] if stop is None else [stop] if isinstance(stop, str) else stop


def alternatives(body: ChatRequest | CompletionRequest) -> int | None:
    """How many alternatives of each token are asked for; None for no log-probabilities at all."""
    if not isinstance(body, ChatRequest):
        return body.logprobs
    if body.top_logprobs is not None and not body.logprobs:
        raise refuse("top_logprobs", "needs logprobs to be true")
    return (body.top_logprobs or 0) if body.logprobs else None


def check_stream(body: Steering) -> None:
    """What only streams have is refused elsewhere."""
    if body.stream:
        frames = body.stream_options is not None and body.stream_options.frames
        if body.diffusing and frames:
            raise refuse("diffusing", "sends whole texts and stream_options.frames changes; ask for one of them")
        return
    for name in ("diffusing", "stream_options"):
        if getattr(body, name):
            raise refuse(name, "needs stream to be true")
