"""Which number format a run computes in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from unmask.errors import UnmaskError

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
    if wanted == "auto":
        reason = "native on this machine" if native else "this machine would emulate bfloat16"
        return (
            torch.bfloat16 if native else torch.float32
        ), f"precision auto: {'bf16' if native else 'f32'} ({reason})"
    if wanted == "bf16":
        slow = "" if native else ", emulated on this machine and many times slower; precision: auto takes f32"
        return torch.bfloat16, f"precision bf16{slow}"
    if wanted == "no":
        return torch.float32, "precision f32"
    raise UnmaskError(f"training.precision is {wanted!r}; use auto, no or bf16")
