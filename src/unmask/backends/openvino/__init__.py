"""OpenVINO graphs with int8 weights: autoregressive Llama-shaped networks and their adapters, on a CPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from unmask.backends import Progress, Source, anything, one_of

if TYPE_CHECKING:
    from unmask.backends.openvino.backend import OpenVINOBackend
    from unmask.decoding.feed import Backend

FREE = """vocab_size hidden_size num_layers num_heads intermediate_size num_kv_heads head_dim max_length norm_eps
    rope_theta adapter_rank adapter_width chain_width block_length noise_schedule noise_range eos_token_id bos_token_id
    pad_token_id"""
IMPLEMENTS = {
    **dict.fromkeys(FREE.split(), anything),
    "layout": one_of("causal", "drafts"),
    "shift": one_of(True),
    "mask_token_id": lambda value: value is not None,
}


def unavailable(device: str) -> str | None:
    if device != "cpu":
        return f"computes on the CPU, not on '{device}'"
    return None if find_spec("openvino") else "needs a package that is not installed: pip install 'unmask[openvino]'"


def create(source: Source, sibling: Backend | None, progress: Progress | None) -> OpenVINOBackend:
    from unmask.backends.openvino.backend import OpenVINOBackend

    return OpenVINOBackend.compiled(source)
