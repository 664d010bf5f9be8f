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
    theta = said.get("rope_theta")
    if theta is None:
        theta = raw.get("rope_theta")
    theta = 10000.0 if theta is None else theta
    share = said.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    share = 1.0 if share is None else share
    if share != 1 and not partial:
        raise UnmaskError(f"model config: partial_rotary_factor {share!r:.40} is not supported by this family")
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
    return out | _Stretched(said, key, float(theta), size, length).fields(kind)


class _Stretched:
    """One kind of stretching at a time, as fields of ModelConfig."""

    def __init__(self, said: dict[str, Any], key: str, theta: float, size: int, length: float) -> None:
        self.said = said
        self.key = key
        self.theta = theta
        self.size = size
        self.length = length
        self.trained = self.number("original_max_position_embeddings", length)

    def number(self, name: str, default: float | None = None) -> float:
        return _number(self.said, name, self.key, default)

    def fields(self, kind: str) -> dict[str, Any]:
        made: dict[str, Any] = getattr(self, kind)()
        return made

    def linear(self) -> dict[str, Any]:
        return {"rope_factors": [self.number("factor")] * (self.size // 2)}

    def dynamic(self) -> dict[str, Any]:
        """Texts up to the length of the config are read with plain positions, and longer ones not at all."""
        self.number("factor")
        return {}

    def llama3(self) -> dict[str, Any]:
        low = self.number("low_freq_factor")
        high = self.number("high_freq_factor")
        if high <= low:
            raise UnmaskError(f"model config: {self.key} has high_freq_factor {high}, which must be above {low}")
        factor = self.number("factor")
        return {
            "rope_factors": rope.llama3(self.theta, self.size, factor=factor, trained=self.trained, low=low, high=high)
        }

    def longrope(self) -> dict[str, Any]:
        """Texts up to the length of the first training are read, for which the short factors are."""
        factors = self.said.get("short_factor")
        pairs = self.size // 2
        if not isinstance(factors, list) or len(factors) != pairs or not all(map(_is_number, factors)):
            raise UnmaskError(f"model config: {self.key} of type longrope needs {pairs} numbers as short_factor")
        factor = self.number("factor", self.length / self.trained)
        scale = 1.0 if factor <= 1 or self.trained <= 1 else math.sqrt(1 + math.log(factor) / math.log(self.trained))
        return {
            "rope_factors": factors,
            "rope_scale": self.number("attention_factor", scale),
            "max_length": int(min(self.trained, self.length)),
        }

    def yarn(self) -> dict[str, Any]:
        ratio = self.length / self.trained if "factor" in self.said and self.said["factor"] is None else None
        factor = self.number("factor", ratio)
        fast = self.number("beta_fast", 32.0)
        slow = self.number("beta_slow", 1.0)
        truncate = self.said.get("truncate")
        if fast < slow or truncate not in (None, True, False):
            raise UnmaskError(f"model config: {self.key} {self.said!r:.200} has an impossible value")
        scale = rope.yarn_scale(factor)
        weight = self.number("mscale", 0.0)
        weight_all = self.number("mscale_all_dim", 0.0)
        if weight and weight_all:
            scale = rope.yarn_scale(factor, weight) / rope.yarn_scale(factor, weight_all)
        return {
            "rope_factors": rope.yarn(
                self.theta,
                self.size,
                factor=factor,
                trained=self.trained,
                fast=fast,
                slow=slow,
                truncate=truncate is not False,
            ),
            "rope_scale": self.number("attention_factor", 0.0) or scale,
        }


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
