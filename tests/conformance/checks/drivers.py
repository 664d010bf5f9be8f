"""Which driver decodes a family's recorded generations. A driver reads a case and gives our trace and theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conformance.checks import ancestral, blocks, full_canvas, renoised
from conformance.checks.outcome import Trace
from unmask.canvas import Array
from unmask.lm import DiffusionLM

Decode = Callable[[DiffusionLM, dict[str, Any], dict[str, Array]], tuple[Trace, Trace, str]]


def either_of_dllms(lm: DiffusionLM, case: dict[str, Any], noise: dict[str, Array]) -> tuple[Trace, Trace, str]:
    """A2D's cases are of one of two samplers, which they name."""
    own = blocks if "bd3lm" in str(case.get("sampler", "")).lower() else full_canvas
    return own.decode(lm, case, noise)


DRIVERS: dict[str, Decode] = {  # by the family's name in models/families
    "LLaDA": full_canvas.decode,
    "LLaDA-MoE": full_canvas.decode,
    "Dream": full_canvas.decode,
    "tiny-A2D": either_of_dllms,
    "SDAR": blocks.decode,
    "LLaDA2": blocks.decode,
    "Stable-DiffCoder": blocks.decode,
    "Fast-dLLM v2": blocks.decode,
    "MDLM": ancestral.decode,
    "BD3-LM": ancestral.decode,
    "DUO": ancestral.decode,
    "SEDD": ancestral.decode,
    "DiffusionGemma": renoised.decode,
}
