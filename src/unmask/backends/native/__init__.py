"""Our own compiled forward with weights of 8 or 4 bits, on a CPU: by AMX, AVX-512-VNNI, AVX2, NEON or plain C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.backends import Progress, Source, anything, multiple_of, one_of
from unmask.layout import BEHIND_TEXT

if TYPE_CHECKING:
    from unmask.backends.native.backend import NativeBackend
    from unmask.decoding.feed import Backend
    from unmask.models.config import ModelConfig

FREE = """vocab_size num_layers num_heads intermediate_size num_kv_heads max_length norm norm_eps norm_bias rope_theta
    rope_fraction rope_factors rope_scale learned_positions qk_norm qkv_bias out_bias mlp_bias activation
    tie_embeddings head_bias loops grid logit_softcap shift corruption mask_in_softmax block_length noise_schedule
    noise_range query_beta query_length in_place
    num_experts experts_per_token expert_size shared_expert_size first_dense_layers
    router router_bias router_normalise router_scale expert_groups expert_groups_kept
    time_condition_size time_conditioned output score_scaled
    mask_token_id eos_token_id bos_token_id pad_token_id delete_token_id insert_token_id"""
IMPLEMENTS = {
    **dict.fromkeys(FREE.split(), anything),
    **dict.fromkeys(("hidden_size", "adapter_width", "chain_width"), multiple_of(32)),
    "head_dim": multiple_of(16, most=256),
    "layout": one_of("causal", "drafts", "block_causal", "bidirectional", *BEHIND_TEXT),
}


def unfit(config: ModelConfig) -> str | None:
    """Weights of few bits stand in groups of 32 inputs."""
    if config.num_heads * config.head_dim % 32:
        return f"does not implement num_heads {config.num_heads} of head_dim {config.head_dim}"
    return None


def unavailable(device: str) -> str | None:
    from unmask.backends.native.network import library

    if device != "cpu":
        return f"computes on the CPU, not on '{device}'"
    if library() is None:
        return "cannot run: the package was installed without a C compiler"
    return None


def create(source: Source, sibling: Backend | None, progress: Progress | None = None, bits: int = 8) -> NativeBackend:
    """bits: of the weights; 8, 4, or 32 for float32."""
    from unmask.backends.native.backend import NativeBackend, packed

    shared = sibling.network if isinstance(sibling, NativeBackend) else None
    return NativeBackend(shared or packed(source, bits, progress))
