"""Dream, Dream-Coder and DiffuCoder: Qwen2 made bidirectional, with a head shifted by one."""

from __future__ import annotations

from typing import Any

from unmask.checkpoints.families import llama
from unmask.checkpoints.families.family import Family


def read(raw: dict[str, Any]) -> dict[str, Any]:
    return {**llama.read(raw), "qkv_bias": True, "out_bias": False, "shift": True, "mask_in_softmax": True}


FAMILY = Family(
    name="Dream",
    model_types=("Dream",),
    architectures=("DreamModel",),
    read=read,
    names=llama.names,
    defaults={
        "rule": "entropy",
        "schedule": "timesteps",
        "convention": "dream",
        "temperature": 0.2,
        "top_p": 0.95,
    },
    mask=151666,
    eos=151643,
    turn=151645,  # <|im_end|>
)
