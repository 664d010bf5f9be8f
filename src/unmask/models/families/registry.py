"""Which family a config.json belongs to."""

from __future__ import annotations

from typing import Any

from unmask.errors import UnmaskError
from unmask.models.families import (
    a2d,
    diffusion_gemma,
    dit,
    dream,
    fast_dllm_v2,
    llada,
    llada2,
    llada_moe,
    llama_ar,
    sdar,
    stable_diffcoder,
)
from unmask.models.family import Family

FAMILIES = [
    m.FAMILY
    for m in (
        llada,
        llada_moe,
        llada2,
        dream,
        sdar,
        a2d,
        fast_dllm_v2,
        stable_diffcoder,
        dit,
        diffusion_gemma,
        llama_ar,
    )
]


def recognise(raw: dict[str, Any], source: str) -> Family | None:
    """The family of a config, None for our own layout; an unknown one raises UnmaskError."""
    kind, architectures = raw.get("model_type"), raw.get("architectures") or []
    if kind == "unmask":
        return None
    architectures = architectures if isinstance(architectures, list) else []
    by_architecture = [f for f in FAMILIES if set(f.architectures) & {str(a) for a in architectures}]
    found = by_architecture or [f for f in FAMILIES if kind in f.model_types]
    if not found:
        known = ", ".join(f.name for f in FAMILIES)
        raise UnmaskError(
            f"{source}: no known family (model_type {kind!r}, architectures {architectures!r}); known: unmask, {known}"
        )
    return found[0]
