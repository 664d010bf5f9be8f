"""How config.json says that rotary positions are stretched; the values are those of transformers.

A kind or a key that is not read is refused by its name.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from unmask.errors import UnmaskError
from unmask.models import rope

COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned", "llama_4_scaling_beta"}
KEYS: dict[str, set[str]] = {  # of each kind, besides those in common
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "longrope": {"factor", "original_max_position_embeddings", "short_factor", "long_factor", "attention_factor"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
             "mscale_all_dim", "truncate"},
}  # fmt: skip


def read(raw: dict[str, Any], partial: bool = False) -> dict[str, Any]:
    """ModelConfig fields of a config's rope_theta, rope_scaling or rope_parameters, and max_position_embeddings.

    partial: the family may rotate a part of each head only.
    """
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    said = raw.get(key) or {}
    if isinstance(said, dict) and isinstance(said.get("full_attention"), dict):  # one for each kind of layer
        said = said["full_attention"]
    kind = said.get("rope_type", said.get("type", "default")) if isinstance(said, dict) else said
    if not isinstance(kind, str) or kind not in KEYS or not isinstance(said, dict):
        raise UnmaskError(f"model config: {key} of type {kind!r:.40} is not supported; known are {', '.join(KEYS)}")
    for name in sorted(said.keys() - COMMON - KEYS[kind]):
        if said[name] is not None:
            raise UnmaskError(f"model config: {key} of type {kind} has {name!r:.40}, which is not supported")
    theta = next((t for t in (said.get("rope_theta"), raw.get("rope_theta")) if t is not None), 10000.0)
    share = said.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    share = 1.0 if share is None else share
    if share != 1 and not partial:
        raise UnmaskError(f"model config: partial_rotary_factor {share!r:.40} is not supported by this family")
    turned = raw.get("rotary_dim")  # some say it twice
    if turned is not None and turned != _rotated(raw, share):
        raise UnmaskError(f"model config: rotary_dim {turned!r:.40} is not the share {share!r:.40} of a head")
    out = {"rope_theta": theta, "max_length": raw.get("max_position_embeddings"), "rope_fraction": share}
    if kind == "default":
        return out
    if raw.get("original_max_position_embeddings") is not None and kind != "linear":
        said = {**said, "original_max_position_embeddings": raw["original_max_position_embeddings"]}
    size = _rotated(raw, share)
    if not _is_number(theta) or size < 2:
        return out  # refused by the config's own check
    if theta <= 1:
        raise UnmaskError(f"model config: {key} of type {kind} does not go with rope_theta {theta}")
    length = _number(raw, "max_position_embeddings", key)
    return out | _stretched(kind, said, key, float(theta), size, length)


def _stretched(kind: str, said: dict[str, Any], key: str, theta: float, size: int, length: float) -> dict[str, Any]:
    """Fields of ModelConfig of one kind of stretching; size: features that are rotated, length: in tokens."""

    def number(name: str, default: float | None = None) -> float:
        return _number(said, name, key, default)

    trained = number("original_max_position_embeddings", length)
    if kind == "linear":
        return {"rope_factors": [number("factor")] * (size // 2)}
    if kind == "dynamic":  # texts up to the length of the config are read with plain positions, longer ones not at all
        number("factor")
        return {}
    if kind == "llama3":
        low = number("low_freq_factor")
        high = number("high_freq_factor")
        if high <= low:
            raise UnmaskError(f"model config: {key} has high_freq_factor {high}, which must be above {low}")
        factor = number("factor")
        return {"rope_factors": rope.llama3(theta, size, factor=factor, trained=trained, low=low, high=high)}
    if kind == "longrope":  # texts up to the length of the first training are read, for which the short factors are
        factors = said.get("short_factor")
        if not isinstance(factors, list) or len(factors) != size // 2 or not all(map(_is_number, factors)):
            raise UnmaskError(f"model config: {key} of type longrope needs {size // 2} numbers as short_factor")
        factor = number("factor", length / trained)
        scale = 1.0 if factor <= 1 or trained <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
        scale = number("attention_factor", scale)
        return {"rope_factors": factors, "rope_scale": scale, "max_length": int(min(trained, length))}
    ratio = length / trained if "factor" in said and said["factor"] is None else None
    factor = number("factor", ratio)
    fast = number("beta_fast", 32.0)
    slow = number("beta_slow", 1.0)
    truncate = said.get("truncate")
    if fast < slow or truncate not in (None, True, False):
        raise UnmaskError(f"model config: {key} {said!r:.200} has an impossible value")
    scale = rope.yarn_scale(factor)
    weight = number("mscale", 0.0)
    weight_all = number("mscale_all_dim", 0.0)
    if weight and weight_all:
        scale = rope.yarn_scale(factor, weight) / rope.yarn_scale(factor, weight_all)
    factors = rope.yarn(
        theta, size, factor=factor, trained=trained, fast=fast, slow=slow, truncate=truncate is not False
    )
    return {"rope_factors": factors, "rope_scale": number("attention_factor", scale)}


def _rotated(raw: dict[str, Any], share: Any) -> int:
    """Features of a head that are rotated; 0 where the sizes are no numbers."""
    head = raw.get("head_dim")
    hidden = raw.get("hidden_size")
    heads = raw.get("num_attention_heads")
    if not head and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        head = hidden // heads
    return int(head * share) if isinstance(head, int) and 0 < head < 2**24 and _is_number(share) else 0


def _number(said: dict[str, Any], name: str, key: str, default: float | None = None) -> float:
    """A number above 0, or 0 where that is the default; None and a missing one are the default."""
    value = said.get(name)
    if value is None and default is not None:
        return default
    if not _is_number(value) or not 0 <= value < 1e9 or (value == 0 and default != 0):
        raise UnmaskError(f"model config: {key} {said!r:.200} has an impossible value of {name}")
    return float(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
