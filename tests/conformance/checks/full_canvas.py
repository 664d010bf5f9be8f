"""Full-canvas decoding beside recorded runs of LLaDA, Fast-dLLM, Dream and dllm.

A case names its sampler and its parameters; the pads that a reference puts around the rows of a batch are
taken off, because ours decodes rows of different length together as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from conformance.checks.outcome import Trace
from unmask.backends.torch import TorchBackend
from unmask.canvas import Array
from unmask.decoding.convention import CONVENTIONS, Convention
from unmask.decoding.loop import Decoder
from unmask.decoding.request import Request
from unmask.decoding.rules import RuleName, RuleOptions
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.lm import DiffusionLM

SAID = {"name", "sampler", "notes", "final_ids", "forward_passes", "nfe_reported", "mask_id", "temperature", "steps"}
SHAPE = {"forward_input_lengths", "forward_input_shapes", "canvas_before_each_forward", "histories", "eos_id", "pad_id"}
LLADA = {"prompt_ids", "prompt_attention_mask", "gen_length", "block_length", "remasking", "cfg_scale"}
LLADA |= {"threshold", "factor"}
DREAM = {"prompt_ids", "prompt_attention_mask", "max_new_tokens", "alg", "alg_temp", "top_p", "top_k", "eps"}
DREAM |= {"threshold", "block_length", "dual_cache"}
DLLM = {"prompts", "max_new_tokens", "block_size", "cfg_scale"}
DREAM_RULES: dict[str, RuleName] = {"entropy": "entropy", "maskgit_plus": "quota", "topk_margin": "margin"}


@dataclass(frozen=True)
class Rows:
    """Prompts of a batch without pads; in the record row b begins at column starts[b]."""

    prompts: list[list[int]]
    starts: list[int]
    new: int  # tokens to write after each

    def cut(self, canvas: list[list[int]]) -> list[list[int]]:
        """The rows of a recorded canvas without pads."""
        ends = [a + len(p) + self.new for a, p in zip(self.starts, self.prompts, strict=True)]
        return [row[a:b] for row, a, b in zip(canvas, self.starts, ends, strict=True)]


def decode(lm: DiffusionLM, case: dict[str, Any], noise: dict[str, Array]) -> tuple[Trace, Trace, str]:
    """Ours and the recorded run of one case, and why they differ where the reference is wrong.

    Raises UnmaskError for a case whose parameters are not understood.
    """
    if case["temperature"] != 0:
        raise UnmaskError(
            f"case '{case['name']}' samples at temperature {case['temperature']}; its draws are not known"
        )
    if "alg" in case:
        rows, options = _rows(case, "max_new_tokens"), _dream(case)
    elif "remasking" in case:
        rows, options = _rows(case, "gen_length"), _llada(case)
    else:
        rows, options = _rows(case, "max_new_tokens"), _dllm(case)
    ours = _run(lm, rows, options, case["mask_id"])
    canvases = case.get("canvas_before_each_forward", case.get("histories"))
    forwards = case["forward_passes"]
    kept = None if canvases is None else [rows.cut(canvas) for canvas in canvases[:forwards]]
    recorded = Trace(kept, rows.cut(case["final_ids"]), forwards)
    if options.cache in ("prefix", "dual"):
        return ours, *_without_waste(recorded, rows, options, case)
    return ours, recorded, ""


def _rows(case: dict[str, Any], new: str) -> Rows:
    if "prompts" in case:  # padded on the right, if at all
        return Rows(case["prompts"], [0] * len(case["prompts"]), case[new])
    prompts = case["prompt_ids"]
    valid = case.get("prompt_attention_mask") or [[1] * len(row) for row in prompts]
    starts = [row.index(1) for row in valid]
    if any(0 in row[a:] for row, a in zip(valid, starts, strict=True)):
        raise UnmaskError(f"case '{case['name']}' has pads inside or after a prompt")
    return Rows([row[a:] for row, a in zip(prompts, starts, strict=True)], starts, case[new])


def _llada(case: dict[str, Any]) -> Request:
    """LLaDA's generate.py, or Fast-dLLM's: without a cache, with a prefix's or a dual one."""
    _know(case, LLADA)
    if case["remasking"] != "low_confidence":
        raise UnmaskError(f"case '{case['name']}' remasks by '{case['remasking']}'; its draws are not known")
    fast, sampler = "Fast-dLLM" in case.get("sampler", ""), case.get("sampler", "")
    cache = "prefix" if "prefix_cache" in sampler else "dual" if "dual_cache" in sampler else "none"
    convention = CONVENTIONS["unmask" if fast else "llada"]
    steps = None  # threshold and factor go on until the block is written
    if case.get("threshold") is not None:
        rule = RuleOptions("threshold", convention, threshold=case["threshold"])
    elif case.get("factor") is not None:
        rule = RuleOptions("factor", convention, factor=case["factor"])
    else:
        rule, steps = RuleOptions("quota", convention), case["steps"] // (case["gen_length"] // case["block_length"])
    return _request(rule, steps, case["block_length"], cache, case.get("cfg_scale", 0.0))


def _dream(case: dict[str, Any]) -> Request:
    """Dream's generation_utils.py, and Fast-dLLM's with confidence_threshold and with blocks and caches."""
    _know(case, DREAM)
    alg, blocks = case["alg"], "dual_cache" in case
    for name in ("alg_temp", "top_p", "top_k"):
        if case.get(name):
            raise UnmaskError(f"case '{case['name']}' has {name} {case[name]}, which is not compared")
    if alg != "confidence_threshold" and alg not in DREAM_RULES:
        raise UnmaskError(
            f"case '{case['name']}' decodes by '{alg}'; known: confidence_threshold, {', '.join(DREAM_RULES)}"
        )
    steps = case["steps"]
    if blocks:
        steps //= case["max_new_tokens"] // case["block_length"]
    if alg == "confidence_threshold":
        bound: Any = "least" if blocks else "most"
        convention = Convention(confidence_dtype="native", due_is=bound, first_step="one")
        rule = RuleOptions("threshold", convention, threshold=case["threshold"])
        steps = None if blocks else steps
    else:
        rule = RuleOptions(
            "entropy" if blocks else DREAM_RULES[alg],  # with blocks theirs ranks by entropy whatever is asked
            replace(CONVENTIONS["dream"], schedule_eps=case["eps"]),
            schedule="timesteps",
        )
    cache = "none" if not blocks else "dual" if case["dual_cache"] else "prefix"
    return _request(rule, steps, case.get("block_length"), cache, 0.0)


def _dllm(case: dict[str, Any]) -> Request:
    """dllm's MDLMSampler."""
    _know(case, DLLM)
    blocks = -(-case["max_new_tokens"] // case["block_size"])
    rule = RuleOptions("quota", CONVENTIONS["dllm"], schedule="linear")
    return _request(rule, -(-case["steps"] // blocks), case["block_size"], "none", case.get("cfg_scale", 0.0))


def _know(case: dict[str, Any], own: set[str]) -> None:
    unknown = sorted(k for k, v in case.items() if k not in SAID | SHAPE | own and v is not None)
    if unknown:
        raise UnmaskError(f"case '{case['name']}' has fields that are not understood: {', '.join(unknown)}")


def _request(rule: RuleOptions, steps: int | None, block: int | None, cache: Any, guidance: float) -> Request:
    own = {"block_length": block, "max_denoising_steps": steps, "cache": cache, "guidance": guidance}
    return Request([], [], rule=rule, **own)


def _run(lm: DiffusionLM, rows: Rows, options: Request, mask_id: int) -> Trace:
    """All rows in one batch."""
    requests = []
    for prompt in rows.prompts:
        given = [True] * len(prompt) + [False] * rows.new
        requests.append(replace(options, ids=prompt + [mask_id] * rows.new, given=given))
    backend = TorchBackend(lm.model)
    backend.config = replace(lm.config, mask_token_id=mask_id)  # small models' files do not say it
    decoder = Decoder(backend, Layout("bidirectional"), requests)

    def written() -> list[list[int]]:
        return [decoder.canvas.ids[b, : len(r.ids)].tolist() for b, r in enumerate(requests)]

    canvases = [written()]
    for _ in decoder.run():
        canvases.append(written())
    return Trace(canvases[:-1], canvases[-1], max(decoder.steps))


def _without_waste(recorded: Trace, rows: Rows, options: Request, case: dict[str, Any]) -> tuple[Trace, str]:
    """The record without forwards that read a block again though nothing of it was left to write."""
    lengths, block = case.get("forward_input_lengths"), options.block_length or rows.new
    if recorded.canvases is None or lengths is None:
        return recorded, ""
    kept, start = [], len(rows.prompts[0]) - block
    whole = rows.starts[0] + len(rows.prompts[0]) + rows.new
    for canvas, length in zip(recorded.canvases, lengths, strict=True):
        start += block if length == whole else 0
        if length == whole or case["mask_id"] in canvas[0][start : start + block]:
            kept.append(canvas)
    if len(kept) == len(recorded.canvases):
        return recorded, ""
    theirs, deviation = recorded.forwards, "theirs reads a block again after its first forward has written all of it"
    deviation += f" ({theirs} forwards); ours goes on to the next block ({len(kept)}), which changes no token"
    return Trace(kept, recorded.final, len(kept)), deviation
