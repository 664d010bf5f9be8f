"""Recorded runs of block-causal decoders against ours: SDAR, LLaDA2, Stable-DiffCoder, Fast-dLLM v2, dllm's BD3LM.

The references read a finished block once more to store its keys and values, and the prompt before its first
step. Ours stores them with the next block's first step, so such passes are left out of what is compared:
canvases and counts are of passes that decide tokens. Rows of a recorded batch are compared one by one, without
the passes in which a row only waited for others.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from conformance.checks.block_traces import (
    NAIVE,
    Asked,
    greedy_only,
    joined,
    laid,
    one_prompt,
    request_of,
    spliced,
    stored_apart,
    until,
    whole,
)
from conformance.checks.outcome import Trace
from unmask.canvas import Array
from unmask.decoding.convention import CONVENTIONS, Convention
from unmask.decoding.methods import denoise, edit, sub_blocks
from unmask.decoding.request import MethodOptions, Request
from unmask.decoding.rules import RuleOptions
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM

Result = tuple[Trace, Trace, str]
_EVERYWHERE = {"name", "sampler", "prompt_ids", "mask_id", "temperature", "forward_passes", "notes"}


def decode(lm: DiffusionLM, case: dict[str, Any], noise: dict[str, Array]) -> Result:
    """Ours, recorded and the deviation, if the case records a defect, of an entry of a block decoder's cases.

    Raises UnmaskError for a family that these drivers do not know and for a field that they do not read.
    """
    family = None if lm.loaded is None or lm.loaded.family is None else lm.loaded.family.name
    if family not in _DRIVERS:
        raise UnmaskError(f"model '{lm.name}' is not of a family that decodes in blocks: {', '.join(_DRIVERS)}")
    fields, driver = _DRIVERS[family]
    unread = set(case) - _EVERYWHERE - set(fields.split())
    if unread:
        raise UnmaskError(f"case '{case.get('name')}' has fields that are not read: {', '.join(sorted(unread))}")
    return driver(lm, case)


def _sdar(lm: DiffusionLM, case: dict[str, Any]) -> Result:
    prompt, block, steps = one_prompt(case), case["block_length"], case["denoising_steps"]
    top_k, greedy = case.get("top_k", 0), case.get("top_k", 0) != 1
    if greedy:  # multinomial was replaced by argmax, of distributions that we only have at temperature 1
        greedy_only(case, (0.0, 1.0))
        if top_k or case.get("top_p", 1.0) < 1:
            raise UnmaskError(f"case '{case.get('name')}' draws from filtered distributions: not recorded")
    strategy, entropy = case["remasking_strategy"], False
    rule = RuleOptions(schedule="block", convention=Convention(strict=True, confidence_dtype="native", ending="block"))
    if strategy == "low_confidence_static":
        rule = replace(rule, name="quota")
    elif strategy == "low_confidence_dynamic":
        rule = replace(rule, name="threshold", threshold=case["confidence_threshold"])
    elif strategy == "sequential":
        rule = replace(rule, name="sequential")
    elif strategy == "entropy_bounded":  # JetEngine's rule: the number of steps plays no part
        entropy, rule = True, replace(rule, name="entropy_bound", entropy_bound=case["eb_threshold"])
    else:
        raise UnmaskError(f"case '{case.get('name')}': remasking_strategy '{strategy}' is unknown")
    length = -(-(len(prompt) + case["gen_length"]) // block) * block
    request = request_of(
        prompt, length, case["mask_id"], rule, block_length=block,
        max_denoising_steps=None if entropy else steps, temperature=0.0 if greedy else 1.0, top_k=0 if greedy else 1,
    )  # fmt: skip
    eos = frozenset(case.get("stopping_criteria_idx") or [])
    asked = Asked(lm, case["mask_id"], block, [request], eos, whole)
    recorded = stored_apart(request.ids, case, [f["store_kv"] for f in case["forwards"]])
    ours = asked.run()[0]
    if entropy and "JetEngine" not in (case.get("notes") or ""):
        said = (
            "SDAR's generate.py takes the entropy of the chosen token alone, summed over the block, so that positions "
            "come in order; we bound the entropy of each position's distribution as JetEngine does; "
        )
        return ours, asked.run(use_cache=False)[0], said + NAIVE
    states = [canvas[0] for canvas in [*(recorded.canvases or []), recorded.final]]
    for step, (before, after) in enumerate(pairwise(states)):
        lost = [i for i, token in enumerate(before) if token not in (case["mask_id"], after[i])]
        if lost:  # this step is right but for the tokens it lost, and nothing after it can be compared
            kept = [before[i] if i in lost else token for i, token in enumerate(after)]
            said = (
                "SDAR's generate.py gives a step its quota even where fewer masks are left, and writes over tokens of "
                "the prompt or of the block; we never do; after that step "
            )
            return ours, spliced([*states[: step + 1], kept], asked.run(use_cache=False)[0]), said + NAIVE
    return ours, recorded, ""


def _llada2(lm: DiffusionLM, case: dict[str, Any]) -> Result:
    greedy_only(case)
    prompt, block, new, eos_id = one_prompt(case), case["block_length"], case["gen_length"], case["eos_id"]
    early, edits = case.get("eos_early_stop", False), "editing_threshold" in case
    least = {"num_to_transfer": case["num_to_transfer"]} if "num_to_transfer" in case else {}
    ending: Any = "text" if early and not edits else "block"
    convention = Convention(strict=True, confidence_dtype="native", ending=ending, **least)
    rule, steps = RuleOptions("threshold", convention, threshold=case["threshold"]), None
    method: MethodOptions = denoise.Options()
    if edits:  # 2.1
        own = {name: case[name] for name in ("editing_threshold", "max_post_steps") if name in case}
        rule, method = replace(rule, name="token_edit"), edit.Options(**own)
    else:
        steps, rule = min(case["steps"], new // case.get("minimal_topk", 1)), replace(rule, schedule="block")
    length = -(-(len(prompt) + new) // block) * block
    # 2.0 stops after a block with an end of text in any case, 2.1 only if asked to
    eos = frozenset() if eos_id is None or (edits and not early) else frozenset([eos_id])
    request = request_of(
        prompt, length, case["mask_id"], rule, block_length=block, max_denoising_steps=steps, method=method
    )  # fmt: skip

    def cut(canvas: list[int], request: Request, end: int) -> list[int]:
        return until(eos_id, 0, canvas[len(prompt) : len(prompt) + new])

    asked = Asked(lm, case["mask_id"], block, [request], eos, cut)
    ours, canvases = asked.run()[0], case["canvas_before_each_forward"]
    if early and not edits:
        for forward, (canvas,) in enumerate(canvases):
            written = until(eos_id, 0, canvas[len(prompt) :])
            if written[-1:] == [eos_id] and case["mask_id"] not in written:
                said = (
                    "LLaDA2.0's generate looks for the end of text only in a step that writes one; we stop once all "
                    "before it is written; the forwards up to there are compared."
                )
                return ours, Trace(canvases[:forward], case["output_ids"], forward), said
    return ours, Trace(canvases, case["output_ids"], case["forward_passes"]), ""


def _stable_diffcoder(lm: DiffusionLM, case: dict[str, Any]) -> Result:
    greedy_only(case)
    prompt, block, new = one_prompt(case), case["block_length"], case["gen_length"]
    if case.get("remasking", "low_confidence") != "low_confidence" or case.get("shift"):
        raise UnmaskError(f"case '{case.get('name')}' has a remasking or a shift that is not recorded")
    threshold, eos_id, mask_id = case.get("threshold"), case.get("eos_id"), case["mask_id"]
    convention = Convention(ending="block")
    rule = RuleOptions("quota", convention)
    if threshold is not None:
        rule = RuleOptions("threshold", convention, threshold=threshold)
    steps = case["steps"] // (new // block) if threshold is None else None  # a threshold goes on to the last mask
    options = {"block_length": block, "max_denoising_steps": steps}
    request = request_of(prompt, len(prompt) + new, mask_id, rule, **options)

    def cut(canvas: list[int], request: Request, end: int) -> list[int]:
        kept = until(eos_id, len(prompt), canvas[:end])
        return kept + kept[-1:] * (end - len(kept))  # the rest of a block that ends the text is filled with its end

    asked = Asked(lm, mask_id, block, [request], frozenset() if eos_id is None else frozenset([eos_id]), cut)
    ours, forwards = asked.run()[0], case["forwards"]
    recorded = stored_apart(request.ids, case, [mask_id not in forward["input_ids"] for forward in forwards])
    starts = [forward["start"] for forward in forwards if mask_id in forward["input_ids"]] + [len(recorded.final[0])]
    states = [canvas[0] for canvas in [*(recorded.canvases or []), recorded.final]]
    for step, (state, start) in enumerate(zip(states, starts, strict=True)):
        if mask_id in state[:start]:
            said = (
                "Stable-DiffCoder's generate_block leaves masks where the steps of a block run out under a threshold; "
                "we write them all; from there on "
            )
            return ours, spliced(states[:step], asked.run(use_cache=False)[0]), said + NAIVE
    return ours, recorded, ""


def _fast_dllm_v2(lm: DiffusionLM, case: dict[str, Any]) -> Result:
    greedy_only(case)
    prompts, block, mask_id, stop = case["prompt_ids"], case["block_size"], case["mask_id"], case["stop_token"]
    rule = RuleOptions("threshold", CONVENTIONS["fast-dllm"], threshold=case["threshold"])
    cache = "dual" if case.get("use_block_cache") else "exact"

    def asking(prompts: list[list[int]], start: int) -> Asked:
        requests = []
        for prompt in prompts:
            # whole blocks, and the token that the last one gives
            length = len(prompt) // block * block + case["max_new_tokens"] // block * block + 1
            options = {
                "block_length": block,
                "method": sub_blocks.Options(sub_block_length=case["small_block_size"]),
                "cache": cache,
            }
            requests.append(request_of(prompt, length, mask_id, rule, **options))
        eos = frozenset() if stop is None else frozenset([stop])
        return Asked(lm, mask_id, block, requests, eos, lambda canvas, request, end: until(stop, start, canvas))

    asked = asking(prompts, len(prompts[0]))
    if len(prompts) == 1 and len(prompts[0]) == block and case["forwards"][0]["input_ids"] == [mask_id] * block:
        unread, theirs = asking([[]], 0), Trace(None, [case["final_ids"][0][block:]], case["forward_passes"])
        theirs = replace(_row(case, 0, [], unread.requests[0], stop), final=theirs.final)
        without = unread.run()[0]
        if without.differs_from(theirs):
            return without, theirs, ""
        said = (
            "Fast-dLLM v2's generate never reads a prompt of exactly one block and writes as if there were none (an "
            "empty prompt gives their canvases); we read it; "
        )
        return asked.run()[0], asked.run(use_cache=False)[0], said + NAIVE
    rows = [_row(case, b, prompt, asked.requests[b], stop) for b, prompt in enumerate(prompts)]
    return joined(asked.run()), joined(rows), ""


def _row(case: dict[str, Any], row: int, prompt: list[int], request: Request, stop: int | None) -> Trace:
    """One row's forwards: its slices of the block on whole canvases, without those whose outcome is not used."""
    canvas, canvases = request.ids, list[list[list[int]]]()
    for forward in case["forwards"]:
        ids, start = forward["input_ids"], forward["past_len"] + (forward["replace_position"] or 0)
        ids = ids[row] if isinstance(ids[0], list) else ids
        if forward["update_past"] and start + len(ids) < len(prompt):
            continue
        canvas = laid(canvas, start, ids)
        written = until(stop, len(prompt), canvas)
        if written[-1] == stop and case["mask_id"] not in written[len(prompt) :]:
            break
        if [canvas] not in canvases[-1:]:  # else it waits for another row
            canvases.append([canvas])
    return Trace(canvases, [until(stop, len(prompt), case["final_ids"][row])], len(canvases))


def _bd3lm(lm: DiffusionLM, case: dict[str, Any]) -> Result:
    greedy_only(case)
    block, new, mask_id, eos_id = case["block_size"], case["max_new_tokens"], case["mask_id"], case["eos_id"]
    rule = RuleOptions("quota", replace(CONVENTIONS["dllm"], ending="block"), schedule="linear")
    steps = -(-case["steps"] // -(-new // block))
    options = {"block_length": block, "max_denoising_steps": steps}
    requests = [request_of(p, len(p) + new, mask_id, rule, **options) for p in case["prompts"]]
    eos = frozenset() if eos_id is None else frozenset([eos_id])
    asked = Asked(lm, mask_id, block, requests, eos, lambda canvas, request, end: canvas[:end])
    rows = []
    for b, (prompt, request) in enumerate(zip(case["prompts"], requests, strict=True)):
        padding = len(case["histories"][0][b]) - len(prompt)  # on the left, up to a multiple of the block
        last = case["final_ids"][b][padding:]
        ends = range(len(prompt) + block, len(last), block)
        end = next((e for e in ends if eos_id in last[e - block : e]), len(last))  # a batch goes on with all its rows
        states = [laid(request.ids, 0, state[b][padding:]) for state in case["histories"]]
        states = [state for state in states if mask_id in state[len(prompt) : end]]
        rows.append(Trace([[state] for state in states], [last[:end]], len(states)))
    return joined(asked.run()), joined(rows), ""


_SDAR = "stopping_criteria_idx remasking_strategy confidence_threshold eb_threshold denoising_steps top_k top_p"
_PASSES = "gen_length block_length forwards final_ids denoise_passes store_kv_passes"
_EDITING = "editing_threshold max_post_steps num_to_transfer"
_DRIVERS = {
    "SDAR": (f"{_SDAR} {_PASSES}", _sdar),
    "LLaDA2": (
        f"block_length gen_length steps threshold minimal_topk eos_id eos_early_stop {_EDITING} "
        "canvas_before_each_forward forward_input_lengths output_ids",
        _llada2,
    ),
    "Stable-DiffCoder": (f"threshold eos_id steps remasking shift nfe_reported {_PASSES}", _stable_diffcoder),
    "Fast-dLLM v2": (
        "stop_token pad_id threshold use_block_cache max_new_tokens block_size small_block_size forwards final_ids",
        _fast_dllm_v2,
    ),
    "tiny-A2D": (
        "prompts eos_id pad_id max_new_tokens block_size steps forward_input_shapes histories final_ids",
        _bd3lm,
    ),
}
