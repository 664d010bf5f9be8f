"""tiny-A2D (dllm): Qwen3, Qwen2 or Llama made bidirectional, no shift."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family


def read(raw: dict[str, Any]) -> dict[str, Any]:
    base = str(raw.get("model_type", "")).removeprefix("a2d-")
    own: dict[str, Any] = {"qk_norm": base == "qwen3", "mask_in_softmax": True}
    if base == "qwen2":
        own |= {"qkv_bias": True, "out_bias": False}  # Qwen2 has it always and says nothing
    return {**llama.read(raw), **own}


FAMILY = Family(
    name="tiny-A2D",
    model_types=("a2d-qwen3", "a2d-qwen2", "a2d-llama"),
    architectures=("A2DQwen3LMHeadModel", "A2DQwen2LMHeadModel", "A2DLlamaLMHeadModel"),
    read=read,
    names=llama.names,
    defaults={"rule": "quota", "schedule": "linear", "convention": "dllm", "block_length": 32},
    mask=151669,  # the Qwen tokenizers' added <|mask|>
)
