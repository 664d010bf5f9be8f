"""Block decoders from the public surface: the families' own defaults, and options that reach the loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unmask import DiffusionLM
from unmask.cli.main import app
from unmask.errors import UnmaskError

FIXTURES = Path(__file__).parent / "conformance"


def folder(family: str, tmp_path: Path, mask_id: int, **extra: Any) -> Path:
    """A fixture's checkpoint whose config names the mask, which the family's usual id is too large for."""
    out = tmp_path / family
    out.mkdir()
    shutil.copy(FIXTURES / family / "model.safetensors", out)
    raw = json.loads((FIXTURES / family / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**raw, "mask_token_id": mask_id, **extra}))
    return out


def recorded(family: str, name: str) -> dict[str, Any]:
    cases = json.loads((FIXTURES / family / "generate.json").read_text())["cases"]
    found: dict[str, Any] = next(c for c in cases if c["name"] == name)
    return found


def test_sdar() -> None:
    """Whole blocks are decoded, and what was not asked for is cut off."""
    lm, case = DiffusionLM.from_pretrained(FIXTURES / "sdar"), recorded("sdar", "low_confidence_dynamic_0.5")
    prompt = case["prompt_ids"][0]
    out = lm.generate(prompt, case["gen_length"], threshold=case["confidence_threshold"])
    theirs = case["final_ids"][0]
    assert out.token_ids == theirs[len(prompt) : len(prompt) + case["gen_length"]]
    assert out.steps == case["denoise_passes"]
    assert out.canvas.tolist() == theirs


def test_what_is_not_asked_for_is_not_waited_for() -> None:
    lm = DiffusionLM.from_pretrained(FIXTURES / "sdar")
    out = lm.generate([87, 80, 12, 37], 5, rule="sequential")
    assert len(out.token_ids) == 5
    assert out.steps == 5  # of 8 masks


def test_llada2(tmp_path: Path) -> None:
    case = recorded("llada2_moe", "llada2_threshold0.95")
    lm = DiffusionLM.from_pretrained(folder("llada2_moe", tmp_path, case["mask_id"], block_size=case["block_length"]))
    out = lm.generate(case["prompt_ids"][0], case["gen_length"])
    assert out.token_ids == case["output_ids"][0]
    case = recorded("llada2_moe", "llada21_threshold0.95_edit0.9")
    edited = lm.generate(
        case["prompt_ids"][0], case["gen_length"], rule="token_edit", editing_threshold=case["editing_threshold"]
    )
    assert edited.token_ids == case["output_ids"][0]
    assert edited.steps == case["forward_passes"]


def test_fast_dllm_v2(tmp_path: Path) -> None:
    case = recorded("fast_dllm_v2", "long_prompt_threshold0.9")
    lm = DiffusionLM.from_pretrained(folder("fast_dllm_v2", tmp_path, case["mask_id"]))
    prompt, part = case["prompt_ids"][0], case["small_block_size"]
    new = len(case["final_ids"][0]) - len(prompt) - 1
    for cache in ("auto", "dual"):
        out = lm.generate(prompt, new, sub_block_length=part, cache=cache)
        assert out.token_ids == case["final_ids"][0][len(prompt) : -1]


def test_bd3lm(tmp_path: Path) -> None:
    case = recorded("a2d_qwen3", "bd3lm_block8_steps_lt")
    lm = DiffusionLM.from_pretrained(folder("a2d_qwen3", tmp_path, case["mask_id"]))
    out = lm.generate(
        case["prompts"][0], case["max_new_tokens"], layout="block_causal",
        block_length=case["block_size"], max_denoising_steps=4,
    )  # fmt: skip
    assert out.token_ids == case["final_ids"][0][-case["max_new_tokens"] :]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "dual", "sub_block_length": None}, "dual"),
        ({"sub_block_length": 0}, "sub_block_length"),
        ({"rule": "token_edit", "editing_threshold": 1.5}, "editing_threshold"),
        ({"convention": {"num_to_transfer": 0}}, "num_to_transfer"),
        ({"rule": "token_edit", "max_post_steps": -1}, "max_post_steps"),
        ({"layout": "causal"}, "layout"),
    ],
)
def test_options_that_do_not_suit_are_named(options: dict[str, Any], said: str) -> None:
    lm = DiffusionLM.from_pretrained(FIXTURES / "sdar")
    with pytest.raises(UnmaskError, match=said):
        lm.generate([1, 2], 8, **options)


def test_left_to_right_models_have_no_blocks() -> None:
    lm = DiffusionLM.from_pretrained("default")
    for options in ({"layout": "block_causal"}, {"rule": "token_edit"}):
        with pytest.raises(UnmaskError, match=next(iter(options))):
            lm.generate([1, 2], 8, **options)


def test_the_command_line_takes_any_option() -> None:
    result = CliRunner().invoke(app, ["generate", "--option", "schedule", "-m", "austen", "x"], catch_exceptions=True)
    assert isinstance(result.exception, UnmaskError)
    assert "NAME=VALUE" in str(result.exception)
    plain = ["generate", "Emma", "-m", "austen", "-n", "8", "--json", "--seed", "1"]
    result = CliRunner().invoke(
        app, [*plain, "--rule", "token_edit", "--editing-threshold", "0.5", "-o", "max_post_steps=2"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] >= 1
