"""Which driver decodes a family's recorded generations. A driver reads a case and gives our trace and theirs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from unmask.canvas import Array
from unmask.conformance.outcome import Trace
from unmask.lm import DiffusionLM

Decode = Callable[[DiffusionLM, dict[str, Any], dict[str, Array]], tuple[Trace, Trace, str]]

# family's name in models/families -> module here; A2D's cases say which of its two samplers they are of
MODULES = {
    "LLaDA": "full_canvas",
    "LLaDA-MoE": "full_canvas",
    "Dream": "full_canvas",
    "SDAR": "blocks",
    "LLaDA2": "blocks",
    "Stable-DiffCoder": "blocks",
    "Fast-dLLM v2": "blocks",
    "MDLM": "ancestral",
    "BD3-LM": "ancestral",
    "DUO": "ancestral",
    "SEDD": "ancestral",
    "DiffusionGemma": "renoised",
}


def module_of(family: str, case: dict[str, Any]) -> str | None:
    if "A2D" in family:
        return "blocks" if "bd3lm" in str(case.get("sampler", "")).lower() else "full_canvas"
    return MODULES.get(family)


def driver_of(family: str, case: dict[str, Any]) -> Decode | None:
    """None where no driver decodes such a case."""
    module = module_of(family, case)
    if module is None or find_spec(f"unmask.conformance.{module}") is None:
        return None
    return import_module(f"unmask.conformance.{module}").decode
