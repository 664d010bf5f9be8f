"""Plain autoregressive checkpoints (Llama and SmolLM2, Qwen2, Qwen3, Mistral): bases to adapt, and judges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unmask.checkpoints.families import llama, sdar
from unmask.checkpoints.families.family import Family, Names
from unmask.models.config import ModelConfig


def read(raw: dict[str, Any]) -> dict[str, Any]:
    return {**llama.read(raw), "layout": "causal", "shift": True}


def read_qwen2(raw: dict[str, Any]) -> dict[str, Any]:
    return {**read(raw), "qkv_bias": True, "out_bias": False}  # it has them always and says nothing


def read_qwen3(raw: dict[str, Any]) -> dict[str, Any]:
    return {**sdar.read_qwen3(raw), "layout": "causal", "shift": True}


def read_mistral(raw: dict[str, Any]) -> dict[str, Any]:
    """Every layer may see a window of the last positions only; texts up to its length are read, where it shows all."""
    window = raw.get("sliding_window")
    fields = read({**raw, "sliding_window": None, "layer_types": None})
    if isinstance(window, int) and isinstance(fields["max_length"], int):
        fields["max_length"] = min(window, fields["max_length"])
    return fields


def _family(
    name: str,
    reader: Callable[[dict[str, Any]], dict[str, Any]],
    architectures: tuple[str, ...],
    model_types: tuple[str, ...] = (),
    names: Callable[[ModelConfig], Names] = llama.names,
) -> Family:
    return Family(name, model_types, architectures, reader, names, kind="AR", borrows_mask=True)


# diffusion models share the model_types "llama" and "qwen2"; there the architecture decides
LLAMA = _family("Llama", read, ("LlamaForCausalLM",))
QWEN2 = _family("Qwen2", read_qwen2, ("Qwen2ForCausalLM",))
QWEN3 = _family("Qwen3", read_qwen3, ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"), ("qwen3", "qwen3_moe"), sdar.names)
MISTRAL = _family("Mistral", read_mistral, ("MistralForCausalLM",), ("mistral",))
FAMILIES = [LLAMA, QWEN3, MISTRAL]
