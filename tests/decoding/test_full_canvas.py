"""Full-canvas decoding against every recorded run of LLaDA, LLaDA-MoE, Dream, Fast-dLLM and dllm's MDLM sampler,
and against the samplers written down again plainly, at other sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conformance.checks.full_canvas import decode
from unmask import DiffusionLM
from unmask.backends.torch import TorchBackend
from unmask.decoding.feed import Feed
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

FIXTURES = Path(__file__).parent.parent / "conformance"
VOCAB, MASK = 23, 22


def cases(family: str) -> list[Any]:
    read = json.loads((FIXTURES / family / "generate.json").read_text())["cases"]
    own = [c for c in read if "bd3lm" not in c["sampler"]]
    return [pytest.param(family, c, id=f"{family}-{c['name']}") for c in own]


RECORDED = [case for family in ("llada", "llada_moe", "dream", "a2d_qwen3") for case in cases(family)]
WASTED = {"old_threshold0.01_cache_prefix", "old_threshold0.01_cache_dual"}


@cache
def model(family: str) -> DiffusionLM:
    return DiffusionLM.from_pretrained(FIXTURES / family)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows and columns of every forward."""
    seen: list[list[int]] = []
    forward = TorchBackend.forward

    def noted(self: TorchBackend, feed: Feed) -> Any:
        seen.append(list(feed.ids.shape))
        return forward(self, feed)

    monkeypatch.setattr(TorchBackend, "forward", noted)
    return seen


@pytest.mark.parametrize(("family", "case"), RECORDED)
def test_recorded_runs(family: str, case: dict[str, Any], shapes: list[list[int]]) -> None:
    """Canvases before every forward, final ids, number of forwards, and how much each forward read."""
    ours, recorded, deviation = decode(model(family), case, {})
    assert ours.differs_from(recorded) == ""
    assert bool(deviation) == (case["name"] in WASTED)
    assert len(shapes) == recorded.forwards
    if "forward_input_shapes" in case:
        assert shapes == case["forward_input_shapes"]
    elif "forward_input_lengths" in case and not deviation and len(case["prompt_ids"]) == 1:
        assert [width for _, width in shapes] == case["forward_input_lengths"]


def test_a_forward_on_a_finished_block_is_said_and_left_out() -> None:
    case = next(c.values[1] for c in RECORDED if c.values[1]["name"] == "old_threshold0.01_cache_dual")
    ours, recorded, deviation = decode(model("llada"), case, {})
    assert (case["forward_passes"], ours.forwards, recorded.forwards) == (4, 2, 2)
    assert "4 forwards" in deviation
    assert recorded.final == case["final_ids"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"remasking": "random"}, "random"),
        ({"top_h": 0.5}, "top_h"),
        ({"prompt_attention_mask": [[1, 1, 1, 1, 1, 1, 0]]}, "pads"),
    ],
)
def test_a_case_that_is_not_understood_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnmaskError, match=named):
        decode(model("llada"), {**RECORDED[0].values[1], **change}, {})


# --- the samplers again, plainly ----------------------------------------------------------------------------

Rank = Callable[[Tensor], Tensor]


def confidence(p: Tensor) -> Tensor:
    return p.amax(-1)


def narrowness(p: Tensor) -> Tensor:
    return (p * (p + 1e-10).log()).sum(-1)


def gap(p: Tensor) -> Tensor:
    best = p.topk(2, -1).values
    return best[:, 0] - best[:, 1]


@cache
def toy(shift: bool) -> DiffusionLM:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=48,
        max_length=64,
        shift=shift,
        tie_embeddings=False,
        mask_in_softmax=True,
        mask_token_id=MASK,
    )
    network = Transformer(config).initialise(4, std=0.4).eval()
    network.state_dict()["head.weight"][MASK] *= 0.01  # as in the fixtures, [MASK] is never the likeliest
    return DiffusionLM(network, None)


@torch.inference_mode()
def by_hand(
    lm: DiffusionLM,
    prompt: list[int],
    blocks: list[int],
    steps: int,
    counts: Callable[[int], list[int]],
    rank: Rank = confidence,
    guidance: float = 0.0,
) -> tuple[list[list[int]], list[int]]:
    """Blocks of given lengths one after another; `counts` of a block's masks says what its steps write."""
    x, start, seen = torch.tensor([prompt + [MASK] * sum(blocks)]), len(prompt), []
    blind = x.clone()
    for length in blocks:
        for count in counts(length):
            seen.append(x[0].tolist())
            logits = lm.logits(x)
            if guidance:
                blind = torch.where(torch.arange(x.shape[1]) < len(prompt), MASK, x)
                without = lm.logits(blind)
                logits = without + (guidance + 1) * (logits - without)
            p = logits[0, start : start + length].softmax(-1)
            token = p.argmax(-1)
            open_ = x[0, start : start + length] == MASK
            order = torch.where(open_, rank(p), -torch.inf).sort(descending=True, stable=True).indices[:count]
            x[0, start + order] = token[order]
        start += length
    return seen, x[0].tolist()


prompts = st.lists(st.integers(0, MASK - 1), min_size=1, max_size=7)


@settings(deadline=None, max_examples=15)
@given(prompts, st.integers(1, 6), st.integers(1, 3), st.integers(1, 8), st.sampled_from([0.0, 0.8]))
def test_llada_as_written_down(prompt: list[int], block: int, blocks: int, steps: int, guidance: float) -> None:
    """Steps beyond a block's masks are paid for; guidance reads the canvas without its prompt."""
    case = {
        "name": "llada",
        "sampler": "ML-GSAI/LLaDA generate.py:generate",
        "prompt_ids": [prompt],
        "prompt_attention_mask": [[1] * len(prompt)],
        "mask_id": MASK,
        "steps": steps * blocks,
        "gen_length": block * blocks,
        "block_length": block,
        "temperature": 0.0,
        "cfg_scale": guidance,
        "remasking": "low_confidence",
    }

    def counts(masks: int) -> list[int]:
        return [masks // steps + (i < masks % steps) for i in range(steps)]

    seen, final = by_hand(toy(False), prompt, [block] * blocks, steps, counts, guidance=guidance)
    agrees(toy(False), case, seen, final)


@settings(deadline=None, max_examples=15)
@given(prompts, st.integers(1, 12), st.integers(1, 14), st.sampled_from(["entropy", "maskgit_plus", "topk_margin"]))
def test_dream_as_written_down(prompt: list[int], new: int, steps: int, alg: str) -> None:
    """Steps that write nothing are paid for."""
    case = {
        "name": "dream",
        "sampler": "_sample",
        "prompt_ids": [prompt],
        "mask_id": MASK,
        "max_new_tokens": new,
        "steps": steps,
        "alg": alg,
        "temperature": 0.0,
        "eps": 1e-3,
    }

    def counts(masks: int) -> list[int]:
        times, out = torch.linspace(1, 1e-3, steps + 1), []
        for i in range(steps):
            count = int(torch.tensor(masks) * (1 - times[i + 1] / times[i])) if i < steps - 1 else masks
            out.append(count)
            masks -= count
        return out

    rank = {"entropy": narrowness, "maskgit_plus": confidence, "topk_margin": gap}[alg]
    seen, final = by_hand(toy(True), prompt, [new], steps, counts, rank)
    agrees(toy(True), case, seen, final)


@settings(deadline=None, max_examples=15)
@given(prompts, st.integers(1, 12), st.integers(1, 6), st.integers(1, 14), st.sampled_from([0.0, 0.8]))
def test_dllm_as_written_down(prompt: list[int], new: int, block: int, steps: int, guidance: float) -> None:
    """Steps that write nothing are left out; the last block may be short."""
    case = {
        "name": "dllm",
        "sampler": "MDLMSampler.sample",
        "prompts": [prompt],
        "mask_id": MASK,
        "max_new_tokens": new,
        "block_size": block,
        "steps": steps,
        "temperature": 0.0,
        "cfg_scale": guidance,
    }
    lengths = [min(block, new - i) for i in range(0, new, block)]
    each = -(-steps // len(lengths))

    def counts(masks: int) -> list[int]:
        out = []
        for i in range(each):
            s, t = (np.float32((each - j) / each) for j in (i + 1, i))
            count = min(masks, round(masks * (1 - float((1 - (1 - s)) / (1 - (1 - t))))))
            out.append(count)
            masks -= count
        return [count for count in out if count]

    seen, final = by_hand(toy(False), prompt, lengths, each, counts, guidance=guidance)
    agrees(toy(False), case, seen, final)


@settings(deadline=None, max_examples=15)
@given(prompts, st.integers(1, 3), st.integers(1, 5), st.sampled_from([0.2, 0.4, 0.7, 1.0]))
def test_fast_dllms_threshold_for_dream_as_written_down(prompt: list[int], each: int, steps: int, level: float) -> None:
    """What a step may write and does not is carried to the next, and beyond the last."""
    new = each * steps
    case = {
        "name": "fast",
        "sampler": "_sample",
        "prompt_ids": [prompt],
        "mask_id": MASK,
        "max_new_tokens": new,
        "steps": steps,
        "alg": "confidence_threshold",
        "threshold": level,
        "temperature": 0.0,
        "eps": 1e-3,
    }
    x, seen, carried, step = torch.tensor([prompt + [MASK] * new]), [], 0, 0
    while MASK in x[0].tolist():
        seen.append(x[0].tolist())
        p = toy(True).logits(x)[0].softmax(-1)
        sure = torch.where(x[0] == MASK, p.amax(-1), -torch.inf)
        may = (each if step < steps else 0) + carried
        order = sure.sort(descending=True, stable=True).indices[:may]
        keep = [int(i) for n, i in enumerate(order) if n == 0 or sure[i] >= level]
        x[0, keep] = p[keep].argmax(-1)
        carried, step = may - len(keep), step + 1
    agrees(toy(True), case, seen, x[0].tolist())


def agrees(lm: DiffusionLM, case: dict[str, Any], seen: list[list[int]], final: list[int]) -> None:
    """The driver reads the case as the plain sampler does."""
    record = {"canvas_before_each_forward": [[canvas] for canvas in seen], "final_ids": [final]}
    ours, recorded, deviation = decode(lm, {**case, **record, "forward_passes": len(seen)}, {})
    assert ours.differs_from(recorded) == ""
    assert deviation == ""
