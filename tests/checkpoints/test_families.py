"""Families against numbers of their public reference implementations: logits to 1e-4, tensors to the byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conformance.checks import forward
from conformance.checks.run import saved_again
from unmask import DiffusionLM, UnmaskError

FIXTURES = Path(__file__).parent.parent / "conformance"
FAMILIES = sorted(path.parent.name for path in FIXTURES.glob("*/forward.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_forwards(family: str) -> None:
    """Plain, block-causal, padded, cached, conditioned, over [x_t ; x_0]: whatever the reference recorded."""
    lm = DiffusionLM.from_pretrained(FIXTURES / family)
    outcomes = forward.outcomes(family, lm, load_file(FIXTURES / family / "forward.safetensors"))
    assert any(o.holds for o in outcomes)
    assert [f"{o.name}: {o.detail}" for o in outcomes if o.holds is False] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_writes_the_familys_own_layout(family: str) -> None:
    assert saved_again(FIXTURES / family) == ""


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
    sharded, whole = DiffusionLM.from_pretrained(folder), DiffusionLM.from_pretrained(FIXTURES / "sdar")
    assert torch.equal(sharded.logits(ids), whole.logits(ids))
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
    assert "no known family" in str(caught.value)
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


def test_what_llada2_leaves_unsaid_is_as_its_class_has_it(tmp_path: Path) -> None:
    folder = copy("llada2_moe", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    bare = {
        key: value for key, value in config.items() if key not in ("routed_scaling_factor", "partial_rotary_factor")
    }
    (folder / "config.json").write_text(json.dumps({**bare, "rotary_dim": 8, "router_dtype": "fp32"}))
    ids = torch.arange(8)[None]
    ours, whole = DiffusionLM.from_pretrained(folder), DiffusionLM.from_pretrained(FIXTURES / "llada2_moe")
    assert torch.equal(ours.logits(ids), whole.logits(ids))
    without = {key: value for key, value in bare.items() if key not in ("n_group", "topk_group")}
    (folder / "config.json").write_text(json.dumps(without))
    assert DiffusionLM.from_pretrained(folder).config.expert_groups == 8
