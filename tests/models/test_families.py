"""Families against numbers of their public reference implementations: logits to 1e-4, tensors to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask import DiffusionLM, UnmaskError
from unmask.attention import doubled
from unmask.layout import Coordinates, Layout

FIXTURES = Path(__file__).parent.parent / "conformance"
FAMILIES = [
    "llada", "llada_moe", "llada2_moe", "dream", "sdar", "a2d_qwen3", "fast_dllm_v2", "stable_diffcoder",
    "mdlm", "bd3lm", "bd3lm_adaln", "duo",
]  # fmt: skip


def load(family: str) -> tuple[DiffusionLM, dict[str, Tensor]]:
    return DiffusionLM.from_pretrained(FIXTURES / family), load_file(FIXTURES / family / "forward.safetensors")


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llada", "bidirectional"),
        ("llada_moe", "bidirectional"),
        ("dream", "bidirectional"),
        ("a2d_qwen3", "bidirectional"),
        ("sdar", "bidirectional"),
        ("llada2_moe", "bidirectional"),
        ("stable_diffcoder", "bidirectional"),
    ],
)
def test_plain_forward(family: str, layout: str) -> None:
    lm, numbers = load(family)
    close(lm.logits(numbers["input_ids"], layout=layout), numbers.get("logits_shifted", numbers["logits"]))


@pytest.mark.parametrize(
    ("family", "name", "block"),
    [
        ("sdar", "block_causal", 4),
        ("a2d_qwen3", "block8", 8),
        ("a2d_qwen3", "block32", 32),
        ("stable_diffcoder", "block4", 4),
        ("llada2_moe", "block8", 8),
    ],
)
def test_block_causal_forward(family: str, name: str, block: int) -> None:
    lm, numbers = load(family)
    ids = numbers.get(f"{name}.input_ids", numbers["input_ids"])
    close(lm.logits(ids, layout="block_causal", block_length=block), numbers[f"{name}.logits"])


def test_block_causal_forward_of_a_shifted_head() -> None:
    lm, numbers = load("fast_dllm_v2")
    ours = lm.logits(numbers["input_ids"], layout="block_causal", block_length=8)
    # the reference shifts inside its input; the raw logits at i - 1 score position i
    close(ours[:, 1:], numbers["block8.logits"][:, :-1])


@pytest.mark.parametrize(
    ("family", "side"),
    [("llada", "left"), ("llada", "right"), ("dream", "left"), ("a2d_qwen3", "right"), ("llada_moe", "left")],
)
def test_padded_forward(family: str, side: str) -> None:
    lm, numbers = load(family)
    mask = numbers[f"{side}_pad.attention_mask"].bool()
    ours = lm.logits(numbers[f"{side}_pad.input_ids"], attention_mask=mask)
    theirs = numbers[f"{side}_pad.logits"]
    if lm.config.shift:  # their raw logits at i - 1 are ours at i
        inside = mask[:, 1:] & mask[:, :-1]
        close(ours[:, 1:][inside], theirs[:, :-1][inside])
    else:
        close(ours[mask], theirs[mask])


@pytest.mark.parametrize(
    ("family", "name", "block"),
    [
        ("sdar", "train", 4),
        ("a2d_qwen3", "train_block8", 8),
        ("llada2_moe", "train_block8", 8),
        ("bd3lm", "train", 4),
        ("bd3lm_adaln", "train", 4),
    ],
)
def test_training_pass(family: str, name: str, block: int) -> None:
    """One forward over [x_t ; x_0] under the block-diffusion predicate."""
    lm, numbers = load(family)
    x_t, x_0 = numbers[f"{name}.x_t"], numbers[f"{name}.x_0"]
    length = x_0.shape[1]
    q = doubled(Coordinates.of(torch.arange(length)))
    with torch.inference_mode():
        logits = lm.model(torch.cat([x_t, x_0], 1), q.position[None], Layout("block_diffusion", block).dense(q, q))
    theirs = numbers[f"{name}.logits"]  # of all positions, or of the first half only
    close(logits[:, : theirs.shape[1]], theirs)


def test_router_of_llada2() -> None:
    lm, numbers = load("llada2_moe")
    chosen: dict[int, tuple[Tensor, Tensor]] = {}
    for layer in (1, 2):
        router = lm.model.blocks[layer].mlp.router  # type: ignore[union-attr]
        router.register_forward_hook(lambda _m, _i, out, layer=layer: chosen.__setitem__(layer, out))
    lm.logits(numbers["input_ids"], layout="block_causal", block_length=8)
    for layer, (index, weight) in chosen.items():
        theirs, order = numbers[f"block_causal.router{layer}.topk_idx"].sort(-1)
        ours, our_order = index.sort(-1)
        assert torch.equal(ours, theirs)
        expected = numbers[f"block_causal.router{layer}.topk_weight"].gather(1, order)
        torch.testing.assert_close(weight.gather(1, our_order), expected, rtol=0, atol=1e-5)


def test_time_conditioning_of_the_dit() -> None:
    lm, numbers = load("mdlm")
    with torch.inference_mode():
        close(lm.model(numbers["input_ids"]), numbers["sigma0.logits"])
        close(lm.model(numbers["input_ids"], time_B=numbers["sigma"]), numbers["sigma_conditioned.logits"])
    lm, numbers = load("duo")
    with torch.inference_mode():
        close(lm.model(numbers["input_ids"], time_B=numbers["sigma"]), numbers["logits"])


@pytest.mark.parametrize("family", ["bd3lm", "bd3lm_adaln"])
def test_sampling_pass_of_bd3lm(family: str) -> None:
    lm, numbers = load(family)
    close(lm.logits(numbers["sample_mode.input_ids"], layout="block_causal"), numbers["sample_mode.logits"])


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_writes_the_familys_own_layout(family: str, tmp_path: Path) -> None:
    lm = DiffusionLM.from_pretrained(FIXTURES / family, dtype="auto")
    lm.save_pretrained(tmp_path)
    before, after = load_file(FIXTURES / family / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (FIXTURES / family / "config.json").read_text()
    )


def copy(family: str, folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / family / name, folder / name)
    return folder


def test_shards_are_read(tmp_path: Path) -> None:
    folder = copy("sdar", tmp_path / "sharded")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in halves.items():
        save_file({n: tensors[n] for n in part}, folder / shard)
    index = {"weight_map": {n: shard for shard, part in halves.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(DiffusionLM.from_pretrained(folder).logits(ids), load("sdar")[0].logits(ids))
    (folder / "b.safetensors").unlink()
    with pytest.raises(UnmaskError, match=r"b\.safetensors is missing"):
        DiffusionLM.from_pretrained(folder)
    for hostile in ("../../etc/passwd", 7, "weights.bin"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": hostile}}))
        with pytest.raises(UnmaskError, match="not a safetensors file"):
            DiffusionLM.from_pretrained(folder)


def test_unknown_families_and_pickles_are_refused(tmp_path: Path) -> None:
    folder = copy("sdar", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "novel", "architectures": ["Novel"]}))
    with pytest.raises(UnmaskError, match="no known family") as caught:
        DiffusionLM.from_pretrained(folder)
    assert "SDAR" in str(caught.value)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnmaskError, match="pickle"):
        DiffusionLM.from_pretrained(folder)


def test_a_mask_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = copy("sdar", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mask_token_id": 5000}))
    with pytest.raises(UnmaskError, match="mask_token_id 5000"):
        DiffusionLM.from_pretrained(folder)
