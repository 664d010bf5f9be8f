"""SEDD (arXiv 2310.16834): MDLM's DiT without a prefix; its head gives log scores at a noise level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unmask.checkpoints.families import dit
from unmask.checkpoints.families.family import Family, Names
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor


def recognises(raw: dict[str, Any], hint: str) -> bool:
    """Its config.json is the training run's: no model_type, but a graph, tokens and a model."""
    return "model_type" not in raw and {"graph", "tokens", "model"} <= raw.keys()


def read(raw: dict[str, Any]) -> dict[str, Any]:
    graph = raw.get("graph")
    model = raw.get("model")
    tokens = raw.get("tokens")
    kind = graph.get("type") if isinstance(graph, dict) else graph
    if kind not in ("absorb", "uniform"):
        raise UnmaskError(f"model config: graph.type {kind!r:.40} is not supported; SEDD has 'absorb' and 'uniform'")
    if not isinstance(model, dict):
        raise UnmaskError(f"model config: model must be a mapping of sizes, got {model!r:.40}")
    absorbs = kind == "absorb"  # then the mask is one token more than the vocabulary
    return {
        **dit.network(model.get("hidden_size")),
        "vocab_size": tokens + 1 if absorbs and isinstance(tokens, int) else tokens,
        "num_layers": model.get("n_blocks"),
        "num_heads": model.get("n_heads"),
        "max_length": model.get("length"),
        "time_condition_size": model.get("cond_dim"),
        "time_conditioned": True,
        "corruption": "absorbing" if absorbs else "uniform",
        **_noise(raw.get("noise"), absorbs),
        "output": "log_score",
        "score_scaled": model.get("scale_by_sigma", False),
        "mask_token_id": tokens if absorbs else None,
    }


def _noise(said: Any, absorbs: bool) -> dict[str, Any]:
    """The schedule that config.json says; where it says none, the one that suits the graph."""
    said = said if isinstance(said, dict) else {"type": "loglinear" if absorbs else "geometric"}
    schedules = {"loglinear": "log_linear", "geometric": "geometric"}
    if said.get("type") not in schedules:
        raise UnmaskError(
            f"model config: noise.type {said.get('type')!r:.40} is not supported; SEDD has {list(schedules)}"
        )
    span = (said.get("sigma_min", 1e-3), said.get("sigma_max", 1.0))
    return {"noise_schedule": schedules[said["type"]], "noise_range": span}


def names(config: ModelConfig) -> Names:
    return dit.names(config, root="")


def constants(config: ModelConfig, raw: dict[str, Any]) -> dict[str, Tensor]:
    return {"rotary_emb.inv_freq": dit.frequencies(config)}


FAMILY = Family(
    name="SEDD",
    model_types=(),
    architectures=("SEDD",),
    read=read,
    names=names,
    recognises=recognises,
    constants=constants,
    defaults={"sampler": "analytic", "temperature": 1.0, "noise_removal": "ancestral"},
)
