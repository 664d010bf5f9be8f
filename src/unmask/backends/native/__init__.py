"""Our own compiled forward with 8-bit weights, on a CPU with AVX2 or AVX-512-VNNI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.backends import Source, anything, multiple_of, one_of

if TYPE_CHECKING:
    from unmask.backends.native.backend import NativeBackend
    from unmask.decoding.feed import Backend

FREE = """vocab_size num_layers num_heads num_kv_heads max_length norm_eps rope_theta shift block_length noise_schedule
    noise_range eos_token_id bos_token_id pad_token_id"""
GROUPS = "hidden_size intermediate_size adapter_width chain_width"
IMPLEMENTS = {
    **dict.fromkeys(FREE.split(), anything),
    **dict.fromkeys(GROUPS.split(), multiple_of(32)),
    "head_dim": multiple_of(32, most=256),
    "layout": one_of("causal", "drafts"),
    "mask_token_id": lambda value: value is not None,
}


def unavailable(device: str) -> str | None:
    from unmask.backends.native.network import library

    if device != "cpu":
        return f"computes on the CPU, not on '{device}'"
    if library() is None:
        return "cannot run: the package was installed without a C compiler, or the CPU has no AVX2"
    return None


def create(source: Source, sibling: Backend | None) -> NativeBackend:
    from unmask.backends.native.backend import NativeBackend, packed

    shared = sibling.network if isinstance(sibling, NativeBackend) else None
    return NativeBackend(shared or packed(source))
