"""Models as SDAR folders: read back by our own reader of SDAR they are the same, and what SDAR lacks is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from unmask.checkpoints.families import llama
from unmask.checkpoints.save import SGLANG_MASK, sdar_config
from unmask.cli.main import app
from unmask.decoding.methods import DecodingDefaults
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer

SDAR: dict[str, Any] = {
    "layout": "block_causal", "block_length": 4, "qk_norm": True, "mask_in_softmax": True, "num_kv_heads": 2,
    "vocab_size": 300, "mask_token_id": 1, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "experts_per_token": 2, "expert_size": 24, "router_normalise": True}
OPTIONS = {**llama.SDAR.defaults, "threshold": 0.3, "temperature": 0.7, "seed": 5}  # both decode as SDAR does


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer("bpe", ["the cat sat on the mat. the dog sat on the log. " * 4], 300)


@pytest.mark.parametrize("more", [{}, {"tie_embeddings": False, "head_dim": 12, "rope_theta": 5e5}, EXPERTS])
def test_reads_back_the_same(
    tiny: Callable[..., Transformer], tokenizer: Any, tmp_path: Path, more: dict[str, Any]
) -> None:
    mine = DiffusionLM(tiny(7, **SDAR, **more), tokenizer, DecodingDefaults(threshold=0.8, eos_token_ids=(5,)), "mine")
    mine.save_pretrained(tmp_path / "sdar", layout="sdar")
    theirs = DiffusionLM.from_pretrained(tmp_path / "sdar")
    assert theirs.loaded is not None
    assert theirs.loaded.family is not None
    assert theirs.loaded.family.name == "SDAR"
    assert theirs.config == mine.config
    assert theirs.defaults.eos_token_ids == (5,)
    ids = torch.arange(40).view(2, 20) * 7 % 300
    assert torch.equal(theirs.logits(ids), mine.logits(ids))
    for prompt in ("the cat", "the dog sat on"):
        ours, others = (lm.generate(prompt, 24, **OPTIONS) for lm in (mine, theirs))
        assert ours.canvas.tolist() == others.canvas.tolist()
        assert ours.text == others.text


def test_what_other_engines_read(tiny: Callable[..., Transformer], tokenizer: Any, tmp_path: Path) -> None:
    network = tiny(7, **SDAR).to(torch.bfloat16)
    DiffusionLM(network, tokenizer, DecodingDefaults(threshold=0.8), "mine").save_pretrained(tmp_path / "x", "sdar")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["architectures"] == ["SDARForCausalLM"]
    assert (config["block_size"], config["mask_token_id"], config["torch_dtype"]) == (4, 1, "bfloat16")
    assert (tmp_path / "x" / "sglang.yaml").read_text() == "block_size: 4\nthreshold: 0.8\n"
    named = json.loads((tmp_path / "x" / "tokenizer_config.json").read_text())
    assert (named["mask_token"], named["eos_token"]) == ("<|mask|>", "<|endoftext|>")
    assert json.loads((tmp_path / "x" / "generation_config.json").read_text())["eos_token_id"] == [0]


def test_config_class_is_python_that_transformers_takes(
    tiny: Callable[..., Transformer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DiffusionLM(tiny(7, **SDAR), None, None, "mine").save_pretrained(tmp_path / "x", "sdar")
    stand_in = ModuleType("transformers")
    stand_in.PretrainedConfig = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    known: dict[str, Any] = {}
    exec((tmp_path / "x" / "configuration_sdar.py").read_text(), known)
    assert known["SDARConfig"].model_type == "sdar"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layout": "bidirectional", "block_length": 0}, "layout is 'bidirectional'"),
        ({"layout": "causal", "block_length": 0, "shift": True}, "layout is 'causal'"),
        ({"shift": True}, "shift is True"),
        ({"adapter_rank": 2}, "adapter_rank is 2"),
        ({"qk_norm": False}, "qk_norm is False"),
        ({"mask_in_softmax": False}, "mask_in_softmax is False"),
        ({"qkv_bias": True}, "qkv_bias is True"),
        ({"head_bias": True}, "head_bias is True"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"rope_fraction": 0.5}, "rope_fraction is 0.5"),
        ({"rope_scale": 1.1}, "rope_scale is"),
        ({"learned_positions": True}, "learned_positions is True"),
        ({"time_condition_size": 8}, "time_condition_size is 8"),
        ({"corruption": "uniform", "mask_token_id": None}, "corruption is 'uniform'"),
        ({"logit_softcap": 3.0}, "logit_softcap is 3.0"),
        ({"output": "log_score"}, "output is 'log_score'"),
        ({"mask_token_id": None}, "no mask token"),
        ({**EXPERTS, "router": "sigmoid"}, "router is 'sigmoid'"),
        ({**EXPERTS, "shared_expert_size": 8}, "shared_expert_size is 8"),
    ],
)
def test_what_sdar_cannot_say_is_refused(tiny: Callable[..., Transformer], change: dict[str, Any], reason: str) -> None:
    config = replace(tiny(0, **SDAR).config, **change)
    with pytest.raises(UnmaskError, match=reason) as caught:
        sdar_config(config, "mine")
    assert "\n" not in str(caught.value)


def test_shipped_models_and_full_folders_are_refused(tiny: Callable[..., Transformer], tmp_path: Path) -> None:
    for name in ("austen", "austen-ar"):
        with pytest.raises(UnmaskError, match="layout is"):
            DiffusionLM.from_pretrained(name).save_pretrained(tmp_path / "x", layout="sdar")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "notes").write_text("mine")
    with pytest.raises(UnmaskError, match="holds something"):
        DiffusionLM(tiny(7, **SDAR), None, None, "mine").save_pretrained(tmp_path / "y", "sdar")
    assert [each.name for each in tmp_path.iterdir()] == ["y"]


def test_command_says_whether_sglang_would_decode(tiny: Callable[..., Transformer], tmp_path: Path) -> None:
    sizes = {"vocab_size": SGLANG_MASK + 1, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    for name, more in (("small", {}), ("qwen", {**sizes, "mask_token_id": SGLANG_MASK})):
        folder = tmp_path / name
        DiffusionLM(tiny(7, **{**SDAR, **more}), None, None, name).save_pretrained(folder)
        done = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out" / name)])
        assert done.exit_code == 0, done.exception
        assert ("would not decode" in done.stdout) == (name == "small")
        again = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "out2" / name), "--json"])
        assert json.loads(again.stdout)["sglang_mask"] == (name == "qwen")


def test_trained_here_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of docs/serving.md, for a few steps."""
    from accelerate.state import AcceleratorState

    from unmask.training.recipe import read_recipe
    from unmask.training.trainer import Trainer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("the cat sat on the mat and the dog lay on the log.\n" * 40)
    (tmp_path / "mine.yaml").write_text(
        """
        name: mine
        seed: 0
        objective: {kind: bd3lm, block_length: 4, forbid_mask: false}
        model: {hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, intermediate_size: 48,
                layout: block_causal, block_length: 4, qk_norm: true, mask_in_softmax: true}
        data: {files: [corpus.txt], tokenizer: byte, length: 32}
        training: {steps: 6, batch_size: 4, learning_rate: 1.0e-2, warmup_steps: 1, threads: 1}
        """
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = Trainer(read_recipe(Path("mine.yaml"), []), tmp_path / "run", Console(quiet=True)).run()
    AcceleratorState._reset_state(reset_partial_state=True)
    trained = DiffusionLM.from_pretrained(folder)
    trained.save_pretrained(tmp_path / "sdar", layout="sdar")
    exported = DiffusionLM.from_pretrained(tmp_path / "sdar")
    ids = torch.tensor([list(b"the cat sat on the m")]) + 2
    assert torch.equal(exported.logits(ids), trained.logits(ids))
    ours, theirs = (lm.generate("the cat", 16, **OPTIONS) for lm in (trained, exported))
    assert ours.canvas.tolist() == theirs.canvas.tolist()
