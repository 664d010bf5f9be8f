"""DiffusionGemma's network against recorded numbers of transformers, its config, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask import DiffusionLM, UnmaskError
from unmask.checkpoints.families import diffusion_gemma
from unmask.models.config import ModelConfig

FOLDER = Path(__file__).parent.parent / "conformance" / "diffusion_gemma"


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return DiffusionLM.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def numbers() -> dict[str, Tensor]:
    return load_file(FOLDER / "forward.safetensors")


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def joined(numbers: dict[str, Tensor], text: str = "input_ids") -> Tensor:
    return torch.cat([numbers[text], numbers["canvas_ids"]], 1)


def test_text_is_scored_by_the_column_before(lm: DiffusionLM, numbers: dict[str, Tensor]) -> None:
    theirs = numbers["encoder_ar_logits"][:, :-1]
    close(lm.logits(numbers["input_ids"], layout="causal")[:, 1:], theirs)
    # a canvas behind it changes nothing
    close(lm.logits(joined(numbers))[:, 1 : theirs.shape[1] + 1], theirs)
    mask = torch.ones_like(numbers["input_ids"])
    close(lm.logits(numbers["input_ids"], layout="causal", attention_mask=mask)[:, 1:], theirs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(lm: DiffusionLM, numbers: dict[str, Tensor], side: str) -> None:
    ids, canvas = joined(numbers, "left_pad.input_ids"), numbers["canvas_ids"].shape[1]
    mask = torch.cat([numbers["left_pad.attention_mask"], torch.ones_like(numbers["canvas_ids"])], 1)
    theirs = numbers["left_pad.logits"]
    if side == "left":
        close(lm.logits(ids, attention_mask=mask)[:, -canvas:], theirs)
        return
    for row, valid in enumerate(mask.bool()):  # the same tokens with the padding at the end
        count = int(valid.sum())
        moved = torch.cat([ids[row, valid], torch.zeros(len(valid) - count, dtype=torch.long)])
        ours = lm.logits(moved[None], attention_mask=(torch.arange(len(valid)) < count)[None].long())
        close(ours[0, count - canvas : count], theirs[row])


def test_likelihood_is_that_of_the_text(lm: DiffusionLM, numbers: dict[str, Tensor]) -> None:
    from unmask.objectives.likelihood import exact_causal

    row = numbers["input_ids"]
    log_p = numbers["encoder_ar_logits"][:, :-1].log_softmax(-1).gather(-1, row[:, 1:, None])[..., 0]
    with torch.inference_mode():
        nats, _ = exact_causal(lm.model, row, torch.arange(row.shape[1]).expand_as(row) > 0)
    torch.testing.assert_close(nats, -log_p.double().sum(1), rtol=0, atol=1e-3)


def test_a_vision_tower_is_left_out_and_not_lost_in_silence(tmp_path: Path) -> None:
    folder = tmp_path / "seeing"
    shutil.copytree(FOLDER, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.vision_tower.patch.weight"] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors")
    lm = DiffusionLM.from_pretrained(folder)
    assert lm.logits([[3, 4, 5]], layout="causal").shape == (1, 3, lm.config.vocab_size)
    with pytest.raises(UnmaskError, match="saving would lose them"):
        lm.save_pretrained(tmp_path / "copy")


@pytest.mark.parametrize("layout", ["bidirectional", "block_causal", "drafts", "nonsense"])
def test_layouts_it_does_not_have_are_refused(lm: DiffusionLM, layout: str) -> None:
    with pytest.raises(UnmaskError, match="use causal, canvas"):
        lm.logits([[1, 2, 3]], layout=layout)


def test_what_makes_no_sense_is_refused_in_one_line(lm: DiffusionLM, numbers: dict[str, Tensor]) -> None:
    with pytest.raises(UnmaskError, match="text before a canvas of 8"):
        lm.logits(numbers["canvas_ids"])
    with pytest.raises(UnmaskError, match="cannot fill gaps"):
        lm.fill("The [[mask:2]].")
    with pytest.raises(UnmaskError, match="rule is entropy_bound"):
        lm.generate([3, 4], rule="threshold")
    with pytest.raises(UnmaskError, match="decodes in mode diffusion"):
        lm.generate([3, 4], mode="ar")
    with pytest.raises(UnmaskError, match="prompt of 510 tokens and 8 new"):
        lm.generate([3] * 510, max_new_tokens=2)


def raw(**changes: Any) -> dict[str, Any]:
    config = json.loads((FOLDER / "config.json").read_text())
    top = {name: changes.pop(name) for name in ("tie_word_embeddings", "canvas_length") if name in changes}
    text = {**config["text_config"], **changes}
    return {**config, **top, "text_config": {name: value for name, value in text.items() if value is not None}}


def read(config: dict[str, Any]) -> ModelConfig:
    return diffusion_gemma.FAMILY.config(config, "config.json")


def test_config_of_the_released_kind() -> None:
    """Heads of full layers said in two numbers instead of layer by layer, and layer types by their pattern."""
    changes: dict[str, Any] = {"per_layer_config": None, "layer_types": None, "rope_parameters": None}
    config = read(raw(**changes, global_head_dim=32, num_global_key_value_heads=1, num_hidden_layers=7))
    full = [not layer.window for layer in config.attention]
    assert full == [False, False, False, False, False, True, True]  # every sixth, and the last always
    assert [layer.head_dim for layer in config.attention] == [32 if f else 8 for f in full]
    assert [layer.num_kv_heads for layer in config.attention] == [1 if f else 2 for f in full]
    assert [layer.rotated_pairs for layer in config.attention] == [4 for _ in full]
    assert config.attention[0].rope_theta == 10_000
    assert config.attention[-1].rope_theta == 1_000_000
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": "all"}, "read causally"),
        ({"hidden_activation": "relu"}, "hidden_activation 'relu'"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "linear", "full_attention"]}, "layer_types"),
        ({"per_layer_config": {"2": {"hidden_size": 3}}}, "per_layer_config of layer 2"),
        ({"per_layer_config": [1]}, "per_layer_config of layer 0"),
        ({"per_layer_config": {"2": {"head_dim": 7}}}, "attention of layer 2 is impossible"),
        ({"num_key_value_heads": 3}, "multiple of num_kv_heads"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "rope_parameters of sliding_attention"),
        ({"rope_parameters": {"sliding_attention": 3}}, "rope_parameters of sliding_attention"),
        ({"num_experts": None}, "num_experts"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers"),
        ({"sliding_window": -1}, "attention of layer 0 is impossible"),
        ({"canvas_length": 0}, "block_length"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnmaskError, match=message):
        read(raw(**changes))


def test_a_config_without_text_is_refused() -> None:
    with pytest.raises(UnmaskError, match="text_config"):
        read({"model_type": "diffusion_gemma"})
