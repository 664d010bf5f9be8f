"""Families without a recorded run of their own, through one of the same network; and networks of log scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask import DiffusionLM, UnmaskError

FIXTURES = Path(__file__).parent.parent / "conformance"


def load(family: str) -> tuple[DiffusionLM, dict[str, Tensor]]:
    return DiffusionLM.from_pretrained(FIXTURES / family), load_file(FIXTURES / family / "forward.safetensors")


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["sedd_absorb", "sedd_uniform"])
def test_log_scores_of_sedd(family: str) -> None:
    lm, numbers = load(family)
    ids = numbers["input_ids"]
    with torch.inference_mode():
        ours = lm.model(ids, time_B=numbers["sigma"])
    close(ours, numbers["log_score"])
    assert (ours.gather(-1, ids[..., None]) == 0).all()  # the ratio of a token to itself
    assert (lm.config.mask_token_id is None) == (lm.config.corruption == "uniform")
    with pytest.raises(UnmaskError, match="noise level"):
        lm.logits(ids)
    bound = lm.likelihood(ids=[[5, 6, 7]], given=[[3, 4]], samples=4)[0]
    assert (bound.method, bound.tokens, bound.greedy) == ("nelbo", 3, None)
    with pytest.raises(UnmaskError, match="score-entropy"):
        lm.likelihood(ids=[[5]], given=[[3]], method="exact")


def dressed(family: str, folder: Path, root: str = "", **config: object) -> DiffusionLM:
    """A fixture's weights under another family's config and, where it has one, its root of names."""
    folder.mkdir(parents=True)
    raw = json.loads((FIXTURES / family / "config.json").read_text())
    tensors = load_file(FIXTURES / family / "model.safetensors")
    if root:
        tensors = {k.replace("model.", root, 1).replace("lm_head", "diffusion_head"): v for k, v in tensors.items()}
    (folder / "config.json").write_text(json.dumps({**raw, **config}))
    save_file(tensors, folder / "model.safetensors")
    lm = DiffusionLM.from_pretrained(folder)
    lm.save_pretrained(folder / "again")
    again = load_file(folder / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in again)
    return lm


def test_families_that_share_a_network_with_a_fixture(tmp_path: Path) -> None:
    """The same tensors under another family's config give the fixture's numbers: names, layout and shift hold."""
    numbers = load_file(FIXTURES / "stable_diffcoder" / "forward.safetensors")
    ids, plain = numbers["input_ids"], numbers["logits"]
    shifted = torch.cat([plain[:, :1], plain[:, :-1]], 1)
    lm = dressed("stable_diffcoder", tmp_path / "illada", architectures=["ILLaDAForCausalLM"], model_type="illada")
    close(lm.logits(ids), plain)
    assert (lm.loaded.family.name, lm.config.mask_token_id) == ("iLLaDA", 5)
    lm = dressed("stable_diffcoder", tmp_path / "my-diffullama-7b", architectures=["LlamaForCausalLM"])
    close(lm.logits(ids), shifted)
    assert lm.loaded.family.name == "DiffuLLaMA"
    lm = dressed("stable_diffcoder", tmp_path / "plain", architectures=["LlamaForCausalLM"])
    assert lm.loaded.family.name == "Llama"
    nemotron = {"architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion"}
    lm = dressed("stable_diffcoder", tmp_path / "nemotron", "encoder.", **nemotron)
    close(lm.logits(ids, layout="bidirectional"), shifted)  # of text; a block is scored in place
    assert lm.config.mask_token_id == 100

    dream = load_file(FIXTURES / "dream" / "forward.safetensors")
    lm = dressed("dream", tmp_path / "dcoder", architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    close(lm.logits(dream["input_ids"]), dream["logits_shifted"])
    assert lm.loaded.family.name == "Open-dCoder"
    lm = dressed("dream", tmp_path / "qwen", architectures=["Qwen2ForCausalLM"], mask_token_id=None)
    assert lm.loaded.family.name == "Qwen2"  # a plain one

    moe = load_file(FIXTURES / "llada_moe" / "forward.safetensors")
    sizes = {"moe_intermediate_size": 24, "intermediate_size": 96, "norm_topk_prob": False}
    lm = dressed("llada_moe", tmp_path / "sdar_moe", architectures=["SDARMoeForCausalLM"], **sizes)
    close(lm.logits(moe["input_ids"], layout="bidirectional"), moe["logits"])
    assert (lm.config.layout, lm.config.block_length) == ("block_causal", 4)
    lm = dressed("llada_moe", tmp_path / "rnd1", architectures=["RND1LM"], model_type="rnd1", **sizes)
    close(lm.logits(moe["input_ids"]), torch.cat([moe["logits"][:, :1], moe["logits"][:, :-1]], 1))
    assert (lm.loaded.family.name, lm.config.layout) == ("RND1", "bidirectional")

    sdar = DiffusionLM.from_pretrained(FIXTURES / "sdar")
    own = {"architectures": ["DreamForCausalLM"], "model_type": "Dream", "block_size": sdar.config.block_length}
    lm = dressed("sdar", tmp_path / "reasoner", **own)
    close(lm.logits(ids[:, :20] % 90), sdar.logits(ids[:, :20] % 90))
    assert lm.loaded.family.name == "Dream-Reasoner"


def test_router_of_sdar_moe_weighs_the_best_experts_to_one(tmp_path: Path) -> None:
    sizes = {"moe_intermediate_size": 24, "intermediate_size": 96, "norm_topk_prob": True}
    lm = dressed("llada_moe", tmp_path / "sdar_moe", architectures=["SDARMoeForCausalLM"], **sizes)
    router = lm.model.blocks[0].mlp.router  # type: ignore[union-attr]
    x = torch.randn(5, lm.config.hidden_size, generator=torch.Generator().manual_seed(0))
    index, weight = router(x)
    p = (x @ router.weight.T).softmax(-1)
    best = p.topk(2, -1)
    assert torch.equal(index, best.indices)
    torch.testing.assert_close(weight, best.values / best.values.sum(-1, keepdim=True))


def test_sdar_moe_with_dense_layers_is_refused(tmp_path: Path) -> None:
    sizes = {"moe_intermediate_size": 24, "intermediate_size": 96, "mlp_only_layers": [0]}
    with pytest.raises(UnmaskError, match="every layer"):
        dressed("llada_moe", tmp_path / "m", architectures=["SDARMoeForCausalLM"], **sizes)


def test_nemotrons_queries_are_scaled_by_their_position(tmp_path: Path) -> None:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    raw = {"architectures": ["NemotronLabsDiffusionModel"], "rope_parameters": rope, "rope_theta": None}
    lm = dressed("stable_diffcoder", tmp_path / "nemotron", "encoder.", **raw)
    assert (lm.config.query_beta, lm.config.query_length) == (0.1, 64)
    assert lm.config.max_length > 64
    assert len(lm.config.rope_factors) == lm.config.rotary_size // 2
    assert lm.config.rope_scale == 1.0
    assert lm.config.rope_theta == 1e6
