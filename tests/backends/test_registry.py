"""The allow-lists: whatever a config says is honoured by a backend, compared with torch, or refused by its name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask import DiffusionLM, UnmaskError
from unmask.backends import BACKENDS, refusal
from unmask.checkpoints.save import write_checkpoint
from unmask.decoding.feed import Columns, Feed, Sampling
from unmask.layout import Layout
from unmask.models.config import ModelConfig, StateSpace
from unmask.models.transformer import Transformer

SIZES: dict[str, Any] = {
    "vocab_size": 75,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_length": 256,
    "layout": "causal",
    "shift": True,
    "mask_token_id": 74,
}
EXPERTS: dict[str, Any] = {"num_experts": 6, "experts_per_token": 2, "expert_size": 32}
# a value of every field that is not its default, with what else must change for the config to be possible
OTHER: dict[str, list[dict[str, Any]]] = {
    "vocab_size": [{"vocab_size": 90}],
    "hidden_size": [{"hidden_size": 96}, {"hidden_size": 40}],
    "num_layers": [{"num_layers": 3}],
    "num_heads": [{"num_heads": 3, "num_kv_heads": 3}, {"num_heads": 3, "num_kv_heads": 1, "head_dim": 16}],
    "intermediate_size": [{"intermediate_size": 128}, {"intermediate_size": 100}],
    "num_kv_heads": [{"num_kv_heads": 1}],
    "head_dim": [{"head_dim": size} for size in (64, 16, 80, 24)],
    "max_length": [{"max_length": 300}],
    "norm": [{"norm": "layer"}],
    "norm_eps": [{"norm_eps": 0.3}],
    "norm_bias": [{"norm": "layer", "norm_bias": True}],
    "rope_theta": [{"rope_theta": 50.0}],
    "rope_fraction": [{"rope_fraction": 0.5}, {"rope_fraction": 0.0}],
    "rope_factors": [{"rope_factors": (4.0,) * 16}],
    "rope_scale": [{"rope_scale": 1.2}],
    "query_beta": [{"query_beta": 0.3, "query_length": 8}],
    "query_length": [{"query_beta": 0.5, "query_length": 16}],
    "learned_positions": [{"learned_positions": True}],
    "qk_norm": [{"qk_norm": True}, {"qk_norm": True, "norm": "layer", "norm_bias": True}],
    "qkv_bias": [{"qkv_bias": True}],
    "out_bias": [{"out_bias": True}],
    "mlp_bias": [{"mlp_bias": True}, {"mlp_bias": True, "activation": "gelu", "intermediate_size": 72}],
    "activation": [{"activation": name} for name in ("geglu_tanh", "gelu", "gelu_tanh")],
    "tie_embeddings": [{"tie_embeddings": False}],
    "head_bias": [{"head_bias": True}],
    "num_experts": [EXPERTS, {**EXPERTS, "mlp_bias": True}, {**EXPERTS, "activation": "gelu"}],
    "experts_per_token": [{**EXPERTS, "experts_per_token": 1}, {**EXPERTS, "experts_per_token": 6}],
    "expert_size": [{**EXPERTS, "expert_size": 40}],
    "shared_expert_size": [{**EXPERTS, "shared_expert_size": 64}],
    "first_dense_layers": [{**EXPERTS, "first_dense_layers": 1}],
    "router": [{**EXPERTS, "router": "sigmoid"}],
    "router_bias": [{**EXPERTS, "router_bias": True}],
    "router_normalise": [{**EXPERTS, "router_normalise": True}],
    "router_scale": [{**EXPERTS, "router_scale": 2.0}],
    "expert_groups": [{**EXPERTS, "expert_groups": 3}, {**EXPERTS, "expert_groups": 6, "expert_groups_kept": 3}],
    "expert_groups_kept": [{**EXPERTS, "expert_groups_kept": 2, "expert_groups": 3, "router": "sigmoid"}],
    "time_condition_size": [{"time_condition_size": 32}, {"time_condition_size": 24, "loops": 2, **EXPERTS}],
    "time_conditioned": [{"time_condition_size": 32, "time_conditioned": True}],
    "adapter_rank": [{"adapter_rank": 4, "layout": "drafts"}],
    "adapter_width": [{"adapter_width": 32, "layout": "drafts", "block_length": 4}],
    "chain_width": [{"chain_width": 32, "layout": "drafts", "block_length": 4}],
    "attention": [{"layout": "canvas", "block_length": 4, "attention": [[32, 2, 1e4, 16]] * 2}],
    "mixers": [{"mixers": ("mamba2",)}, {"mixers": ("attention", "mamba2")}],
    "state_space": [{"mixers": ("mamba2",), "state_space": StateSpace(state_size=8)}],
    "logit_softcap": [{"logit_softcap": 2.0}],
    "loops": [{"loops": 2}],
    "grid": [{"grid": grid, "layout": "bidirectional", "max_length": 40} for grid in ((5, 8, 0, 0), (4, 10, 2, 5))],
    "shift": [{"shift": False}],
    "in_place": [{"layout": name, "block_length": 8, "in_place": True} for name in ("causal_blocks", "causal_window")],
    "corruption": [{"corruption": "uniform"}, {"corruption": "uniform", "mask_token_id": None}],
    "noise_schedule": [{"noise_schedule": "geometric"}],
    "noise_range": [{"noise_range": (1e-2, 2.0)}],
    "output": [{"output": "log_score"}],
    "score_scaled": [{"output": "log_score", "score_scaled": True, "time_condition_size": 32}],
    "layout": [
        {"layout": "bidirectional"},
        {"layout": "block_causal", "block_length": 8},
        {"layout": "causal_blocks", "block_length": 8},
    ],
    "block_length": [{"layout": "block_causal", "block_length": 32}],
    "local_layers": [{"local_layers": [1], "local_theta": 100.0}],
    "local_theta": [{"local_layers": [1], "local_theta": 100.0}],
    "embedding_scale": [{"embedding_scale": 6.0}],
    "norm_offset": [{"norm_offset": 1.0}],
    "output_norms": [{"output_norms": True}],
    "attention_scale": [{"attention_scale": 0.3}],
    "mask_in_softmax": [{"mask_in_softmax": True}],
    "mask_token_id": [{"mask_token_id": 3}, {"mask_token_id": None}],
    **{name: [{name: 5}] for name in ("eos_token_id", "bos_token_id", "pad_token_id")},
    "delete_token_id": [{"delete_token_id": 5, "insert_token_id": 6}],
    "insert_token_id": [{"delete_token_id": 6, "insert_token_id": 5}],
}
# as far as rounding moves probabilities of these networks (total variation)
NEAR = {"native": 0.04, "native-q4": 0.3, "native-f32": 1e-4}
CASES = [(f.name, other) for f in fields(ModelConfig) for other in OTHER.get(f.name, [{}])]


def config_of(other: dict[str, Any]) -> ModelConfig:
    values = {**SIZES, **other}
    if "attention" in values:
        from unmask.models.config import LayerAttention

        values["attention"] = tuple(LayerAttention(*layer) for layer in values["attention"])
    return ModelConfig(**values)


def probabilities(lm: DiffusionLM) -> np.ndarray:
    """Of every position of two texts, read in one forward by the model's own layout."""
    rng = np.random.default_rng(0)
    length = 40
    texts = [np.where(rng.random(length) < 0.3, 3, rng.integers(0, 70, length)) for _ in range(2)]
    place = np.arange(length)
    none = np.full(length, -1)
    requests = [Columns(ids, place, none, place, place, time=time) for ids, time in zip(texts, (0.2, 1.5), strict=True)]
    lm.backend.open(Layout(lm.config.layout, max(lm.config.block_length, 1)), 2, 64, True)
    n = 2 * length
    sampling = Sampling(np.ones(n), np.zeros(n, int), np.ones(n), np.full(n, 0.5), np.full(n, 0.5))
    return lm.backend.forward(Feed.of(requests, np.zeros(2, np.int64))).probabilities(np.arange(n), sampling)


def saved(config: ModelConfig, folder: Path) -> Path:
    network = Transformer(config).initialise(0, std=0.15)
    for name, parameter in network.named_parameters():  # what starts as the identity would hide what is left out
        if name.endswith("bias") or "norm" in name or "modulation" in name:
            parameter.data += 0.3 * torch.arange(parameter.numel()).sin().view(parameter.shape)
    write_checkpoint(folder, config.to_dict(), dict(network.named_parameters()), None)
    return folder


def test_every_field_has_another_value() -> None:
    for field in fields(ModelConfig):
        plain = getattr(config_of({}), field.name)
        assert any(getattr(config_of(other), field.name) != plain for other in OTHER[field.name]), field.name


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "torch"])
@pytest.mark.parametrize(("field", "other"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_a_field_is_honoured_or_refused(
    name: str, field: str, other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    if refusal(name, config_of({})) is not None:
        pytest.skip(f"{name} cannot run here")
    config = config_of(other)
    if config.attention:  # another network, of DiffusionGemma
        assert "attention" in str(refusal(name, config)) or "layout" in str(refusal(name, config))
        return
    if (reason := refusal(name, config)) is not None:
        assert any(f" {changed} " in reason for changed in (*other, field))
        write_checkpoint(tmp_path / "model", config.to_dict(), {}, None)
        with pytest.raises(UnmaskError, match=r"does not implement .*; use backend='torch'"):
            DiffusionLM.from_pretrained(tmp_path / "model", backend=name)
        return
    folder = saved(config, tmp_path / "model")
    exact = probabilities(DiffusionLM.from_pretrained(folder, backend="torch"))
    compiled = probabilities(DiffusionLM.from_pretrained(folder, backend=name))
    off = 0.5 * np.abs(exact - compiled).sum(-1)
    # rounding may move a column's choice of experts, which is another network for it
    assert (np.median(off) if config.num_experts and name != "native-f32" else off.mean()) < NEAR[name]
