"""Fast-dLLM v2: Qwen2.5, block-causal, with a head shifted by one."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import dream, llama
from unmask.checkpoints.families.family import Family


def read(raw: dict[str, Any]) -> dict[str, Any]:
    return {**dream.read(raw), "layout": "block_causal", "block_length": raw.get("bd_size", 32)}


FAMILY = Family(
    name="Fast-dLLM v2",
    model_types=("Fast_dLLM_Qwen",),
    architectures=("Fast_dLLM_QwenForCausalLM",),
    read=read,
    names=llama.names,
    kind="B",
    defaults={
        "rule": "threshold",
        "threshold": 0.9,
        "sub_block_length": 8,
        "convention": "fast-dllm",
    },
    mask=151665,
    eos=151645,
)
