"""Open-dCoder (Open-dLLM): Qwen2 made bidirectional, with a head shifted by one, under Qwen2's own names."""

from __future__ import annotations

from unmask.checkpoints.families import autoregressive, dream, llama
from unmask.checkpoints.families.family import Family

FAMILY = Family(
    name="Open-dCoder",
    model_types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    read=dream.read,
    names=llama.names,
    defaults={"rule": "entropy_bound", "temperature": 0.6},
    turn=151645,  # <|im_end|>
    unmasked=autoregressive.QWEN2,
)
