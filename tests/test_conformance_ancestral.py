"""Recorded runs of the stochastic samplers, and runs recorded here by textbook loops of other sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as torch_file

from conformance.checks import forward
from conformance.checks.ancestral import decode
from unmask import DiffusionLM, UnmaskError
from unmask.canvas import Array

FIXTURES = Path(__file__).parent / "conformance"
FAMILIES = ["mdlm", "duo", "bd3lm", "bd3lm_adaln", "sedd_absorb", "sedd_uniform"]


def cases(family: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FIXTURES / family / "generate.json").read_text())["cases"]
    return found


ALL = [(family, number) for family in FAMILIES for number in range(len(cases(family)))]


@pytest.mark.parametrize(("family", "number"), ALL, ids=[f"{f}-{cases(f)[n]['name']}" for f, n in ALL])
def test_every_canvas_as_recorded(family: str, number: int) -> None:
    lm, noise = (
        DiffusionLM.from_pretrained(FIXTURES / family),
        load_file(FIXTURES / family / "sampler_noise.safetensors"),
    )
    case = cases(family)[number]
    ours, recorded, deviation = decode(lm, case, noise)
    assert ours.differs_from(recorded) == ""
    assert len(ours.canvases or []) == len(recorded.canvases or []) == case["forward_passes"]
    assert deviation == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recorded_number_is_checked(family: str) -> None:
    """Single steps and posteriors too: no tensor of these fixtures is left unread."""
    lm = DiffusionLM.from_pretrained(FIXTURES / family)
    outcomes = forward.outcomes(family, lm, torch_file(FIXTURES / family / "forward.safetensors"))
    assert [f"{o.name}: {o.detail}" for o in outcomes if not o.holds] == []
    steps = {"mdlm": 4, "duo": 2, "sedd_absorb": 3, "sedd_uniform": 3}.get(family, 0)
    assert sum(o.name.startswith(("step.", "posterior")) for o in outcomes) == steps


def test_what_is_not_understood_is_refused() -> None:
    lm, noise = (
        DiffusionLM.from_pretrained(FIXTURES / "mdlm"),
        load_file(FIXTURES / "mdlm" / "sampler_noise.safetensors"),
    )
    case = cases("mdlm")[0]
    for broken, says in (
        ({**case, "guidance": 2.0}, "field 'guidance' is not understood"),
        ({k: v for k, v in case.items() if k != "steps"}, "'steps' is missing"),
        ({**case, "mask_id": 3}, "is not the model's"),
        ({**case, "sampler": "diffusion.py:_sample predictor=guess"}, "name is 'guess'"),
    ):
        with pytest.raises(UnmaskError, match=says):
            decode(lm, broken, noise)
    lm, noise = DiffusionLM.from_pretrained(FIXTURES / "duo"), load_file(FIXTURES / "duo" / "sampler_noise.safetensors")
    with pytest.raises(UnmaskError, match="noise 'Square"):
        decode(lm, {**cases("duo")[0], "noise": "Square eps 1e-3"}, noise)
    lm, noise = (
        DiffusionLM.from_pretrained(FIXTURES / "bd3lm"),
        load_file(FIXTURES / "bd3lm" / "sampler_noise.safetensors"),
    )
    case = cases("bd3lm")[0]
    twice = {case["uniform_noise_tensor"]: np.repeat(noise[case["uniform_noise_tensor"]], 2, 1)}
    with pytest.raises(UnmaskError, match="one text at a time"):
        decode(lm, case, twice)


# textbook loops, batch by batch


def clean(lm: DiffusionLM, canvas: Array, layout: str = "bidirectional", block: int | None = None) -> Array:
    """Float64 distributions [B, L, V] of clean tokens, the mask left out."""
    logits = lm.logits(torch.from_numpy(canvas), layout=layout, block_length=block).double()
    logits[..., lm.config.mask_token_id] = -torch.inf
    return logits.softmax(-1).numpy()


def first_to_arrive(weights: Array, u: Array) -> Array:
    return (weights / (1e-10 - np.log(u + 1e-10))).argmax(-1)


def mdlm_run(lm: DiffusionLM, cached: bool, batch: int, length: int, steps: int, seed: int) -> tuple[Any, Any]:
    mask, eps = lm.config.mask_token_id, 1e-5
    u = np.random.default_rng(seed).random((steps, batch, length, lm.config.vocab_size)).astype(np.float32)
    canvas, p = np.full((batch, length), mask), None
    read = []
    for step in range(steps):
        t, s = 1 - step * (1 - eps) / steps, 1 - (step + 1) * (1 - eps) / steps
        t, s = (t, s) if cached else (t * (1 - 1e-3), s * (1 - 1e-3))
        if p is None:
            read.append(canvas.tolist())
            p = clean(lm, canvas)
        q = p * (t - s)
        q[..., mask] = s
        after = np.where(canvas == mask, first_to_arrive(q, u[step]), canvas)
        if not cached or (after != canvas).any():
            p = None
        canvas = after
    read.append(canvas.tolist())
    canvas = np.where(canvas == mask, clean(lm, canvas).argmax(-1), canvas)
    name = "ddpm_cache" if cached else "ddpm"
    return {
        "name": name,
        "sampler": f"_sample predictor={name}",
        "batch": batch,
        "length": length,
        "steps": steps,
        "eps": eps,
        "mask_id": mask,
        "noise_removal": True,
        "time_conditioning": False,
        "uniform_noise_tensor": "u",
        "forward_passes": len(read),
        "canvas_before_each_forward": read,
        "final_ids": canvas.tolist(),
    }, {"u": u}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("batch", "length", "steps"), [(3, 9, 40), (1, 5, 60), (2, 14, 3), (2, 6, 1)])
def test_a_batch_shares_its_forwards(cached: bool, batch: int, length: int, steps: int) -> None:
    """A cached distribution is dropped as soon as any row of their batch changes; a full canvas is still read."""
    lm = DiffusionLM.from_pretrained(FIXTURES / "mdlm")
    case, noise = mdlm_run(lm, cached, batch, length, steps, seed=steps)
    ours, recorded, _ = decode(lm, case, noise)
    assert ours.differs_from(recorded) == ""
    assert recorded.forwards < steps + 1 or not cached or steps < 10


def bd3_run(lm: DiffusionLM, strides: int, block: int, steps: int, p_most: float, seed: int) -> tuple[Any, Any, bool]:
    mask, rng, read, draws, divided = lm.config.mask_token_id, np.random.default_rng(seed), [], [], False
    canvas = np.full((1, block), mask)
    canvas[0, 0] = 5
    for stride in range(strides):
        canvas = canvas if stride == 0 else np.concatenate([canvas, np.full((1, block), mask)], 1)
        p = None
        for step in range(steps):
            if not (canvas == mask).any():
                break
            t = 1 - step / (steps - 1)
            if p is None:
                read.append(canvas.tolist())
                p = clean(lm, canvas, "block_causal", block)[:, -block:]
                if p_most < 1:
                    for row in p[0]:
                        order = (-row).argsort()
                        drop = row[order].cumsum() > p_most
                        drop[0] = False
                        row[order[drop]] = 0
                        row /= row.sum()
            with np.errstate(divide="ignore", invalid="ignore"):
                stays = np.float64(t - 1 / steps) / np.float64(t)
                q = p * (1 - stays)
            q[..., mask] = stays
            draws.append(rng.random((1, block, lm.config.vocab_size)))
            divided |= t == 0
            own = canvas[:, -block:]
            after = np.where(own == mask, first_to_arrive(q, draws[-1]), own)
            if (after != own).any():
                p = None
            canvas = np.concatenate([canvas[:, :-block], after], 1)
    case = {
        "name": "steps",
        "sampler": "_semi_ar_sampler",
        "num_strides": strides,
        "block_size": block,
        "num_steps": steps,
        "first_hitting": False,
        "nucleus_p": p_most,
        "kv_cache": False,
        "mask_id": mask,
        "bos_id": 5,
        "np_uniforms": [],
        "randint_draws": [],
        "uniform_noise_tensor": "u",
        "forward_passes": len(read),
        "sampling_steps_reported": len(read),
        "canvas_before_each_forward": read,
        "final_ids": canvas.tolist(),
    }
    return case, {"u": np.stack(draws)}, divided


@pytest.mark.parametrize("p_most", [1.0, 0.7])
@pytest.mark.parametrize(("strides", "block", "steps"), [(2, 8, 2), (3, 5, 3), (2, 4, 30), (1, 12, 7)])
def test_blocks_to_the_end_of_time(strides: int, block: int, steps: int, p_most: float) -> None:
    """Where their last step divides by zero it is said, and the run goes on alike."""
    lm = DiffusionLM.from_pretrained(FIXTURES / "bd3lm")
    case, noise, divided = bd3_run(lm, strides, block, steps, p_most, seed=steps)
    ours, recorded, deviation = decode(lm, case, noise)
    assert ours.differs_from(recorded) == ""
    assert bool(deviation) == divided
    assert divided or steps > 2


@pytest.mark.parametrize("number", range(len(cases("bd3lm"))))
def test_a_cached_run_is_compared_block_by_block(number: int) -> None:
    """With kv_cache the reference reads the last block alone, and a finished one once more: the same draws, the same
    canvases. The case is a recorded one without, rewritten."""
    lm, noise = DiffusionLM.from_pretrained(FIXTURES / "bd3lm"), load_file(FIXTURES / "bd3lm/sampler_noise.safetensors")
    case = cases("bd3lm")[number]
    size, mask_id, final = case["block_size"], case["mask_id"], case["final_ids"][0]
    slices: list[list[list[int]]] = []
    for (canvas,) in case["canvas_before_each_forward"]:
        finished = len(canvas) // size - 1
        if slices and sum(mask_id not in block for (block,) in slices) < finished:
            slices.append([final[(finished - 1) * size : finished * size]])
        slices.append([canvas[-size:]])
    slices.append([final[-size:]])
    cached = {**case, "kv_cache": True, "canvas_before_each_forward": slices, "forward_passes": len(slices)}
    ours, recorded, _ = decode(lm, cached, noise)
    assert recorded.canvases == case["canvas_before_each_forward"]
    assert ours.differs_from(recorded) == ""
    assert ours.forwards == case["forward_passes"]
