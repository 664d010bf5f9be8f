"""Which number format a run computes in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "no", "bf16"]


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; a CPU without such instructions emulates it many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    words = next((line.split() for line in described.splitlines() if line.startswith(("flags", "Features"))), [])
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def choose_precision(wanted: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the products, and a line that says what was chosen and why."""
    native = native_bf16(device)
    if wanted == "bf16":
        slow = "" if native else ", emulated on this machine and many times slower; precision: auto takes f32"
        return torch.bfloat16, f"precision bf16{slow}"
    if wanted == "auto" and native:
        return torch.bfloat16, "precision auto: bf16 (native on this machine)"
    why = "precision auto: f32 (this machine would emulate bfloat16)"
    return torch.float32, why if wanted == "auto" else "precision f32"
