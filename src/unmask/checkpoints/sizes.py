"""Counting parameters from a config alone, and the sizes of the public checkpoints."""

from __future__ import annotations

from typing import Any, NamedTuple

from unmask.models.config import ModelConfig


class Count(NamedTuple):
    """Parameters: all of them, and those that one token passes (fewer where experts are chosen)."""

    total: int
    per_token: int


def parameters(config: ModelConfig) -> Count:
    """Parameters of a network of this config, adapters aside."""
    if config.attention:
        return _gemma(config)
    c, size = config, config.hidden_size
    heads, groups = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    norm = size * (2 if c.norm_bias and c.norm == "layer" else 1)
    attention = size * (heads + 2 * groups) + heads * size
    attention += (heads + 2 * groups) * c.qkv_bias + size * c.out_bias
    attention += 2 * c.head_dim * (2 if c.norm_bias and c.norm == "layer" else 1) * c.qk_norm
    condition = c.time_condition_size
    layer = attention + 2 * norm + (condition + 1) * 6 * size * bool(condition)

    def mlp(inner: int) -> int:
        gates = 2 if c.activation == "swiglu" else 1
        return (gates + 1) * size * inner + (gates * inner + size) * c.mlp_bias

    total = per_token = c.vocab_size * size * (1 if c.tie_embeddings else 2) + norm
    extra = c.vocab_size * c.head_bias + c.max_length * size * c.learned_positions
    if condition:
        extra += 257 * condition + (condition + 1) * condition + (condition + 1) * 2 * size
    total, per_token = total + extra, per_token + extra
    for i in range(c.num_layers):
        if c.num_experts and i >= c.first_dense_layers:
            router = c.num_experts * (size + c.router_bias)
            shared = mlp(c.shared_expert_size) if c.shared_expert_size else 0
            total += layer + router + shared + c.num_experts * mlp(c.expert_size)
            per_token += layer + router + shared + c.experts_per_token * mlp(c.expert_size)
        else:
            total, per_token = total + layer + mlp(c.intermediate_size), per_token + layer + mlp(c.intermediate_size)
    return Count(total, per_token)


def _gemma(c: ModelConfig) -> Count:
    """Of a network whose layers differ, each with an MLP and experts (DiffusionGemma)."""
    size, mlp, expert = c.hidden_size, 3 * c.hidden_size * c.intermediate_size, 3 * c.hidden_size * c.expert_size
    total = c.vocab_size * size * (1 if c.tie_embeddings else 2) + 2 * size + mlp  # norm and self-conditioning too
    for layer in c.attention:
        heads = 2 * c.num_heads + layer.num_kv_heads * (1 if layer.keys_are_values else 2)
        total += size * heads * layer.head_dim + 2 * layer.head_dim
        total += mlp + c.num_experts * (size + 1) + size + 7 * size + 2
    return Count(total + c.num_layers * c.num_experts * expert, total + c.num_layers * c.experts_per_token * expert)


def _llama(architecture: str, layers: int, size: int, inner: int, heads: int, groups: int, **more: Any) -> Any:
    own = {"num_hidden_layers": layers, "hidden_size": size, "intermediate_size": inner, "num_attention_heads": heads}
    return {
        "architectures": [architecture],
        **own,
        "num_key_value_heads": groups,
        "max_position_embeddings": 4096,
    } | more


def _dit(layers: int, size: int, heads: int, kind: str) -> Any:
    own = {"hidden_dim": size, "cond_dim": 128, "n_blocks": layers, "n_heads": heads, "model_length": 1024}
    return {"model_type": kind, "vocab_size": 50258, **own}


def _gpt2(layers: int, size: int, heads: int) -> Any:
    own = {"n_layer": layers, "n_embd": size, "n_head": heads}
    return {"model_type": "gpt2", "n_positions": 1024, "vocab_size": 50257, **own}


def _sedd(layers: int, size: int, heads: int) -> Any:
    own = {"hidden_size": size, "cond_dim": 128, "n_blocks": layers, "n_heads": heads, "length": 1024}
    return {"graph": {"type": "absorb"}, "tokens": 50257, "model": {**own, "scale_by_sigma": True}}


_BAILING = {"num_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "num_shared_experts": 1} | {
    "first_k_dense_replace": 1, "vocab_size": 157184, "head_dim": 128, "partial_rotary_factor": 0.5,
}  # fmt: skip
QWEN, QWEN_LARGE = 151936, 152064

# config.json of the public checkpoints, as far as it decides the network; rotations and texts' lengths are left out
PUBLIC: dict[str, dict[str, Any]] = {
    "llada-8b": {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 4096, "n_layers": 32, "n_heads": 32,
        "n_kv_heads": 32, "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464,
        "max_sequence_length": 4096, "rope_theta": 500000.0,
    },
    "illada-8b": _llama("ILLaDAForCausalLM", 32, 4096, 14336, 32, 8, vocab_size=155136, tie_word_embeddings=True),
    "llada-moe-7b-a1b": _llama(
        "LLaDAMoEModelLM", 16, 2048, 8192, 16, 16, vocab_size=157184, num_experts=64, num_experts_per_tok=8,
        expert_intermediate_size=1024, dense_intermediate_size=8192,
    ),
    "llada2-mini-16b-a1.4b": _llama("LLaDA2MoeModelLM", 20, 2048, 5120, 16, 4, moe_intermediate_size=512, **_BAILING),
    "llada2-flash-100b-a6b": _llama("LLaDA2MoeModelLM", 32, 4096, 9216, 32, 4, moe_intermediate_size=1024, **_BAILING),
    "dream-7b": _llama("DreamModel", 28, 3584, 18944, 28, 4, vocab_size=QWEN_LARGE),
    "open-dcoder-0.5b": _llama(
        "Qwen2ForCausalLM", 24, 896, 4864, 14, 2, vocab_size=QWEN, tie_word_embeddings=True, mask_token_id=151665
    ),
    "sdar-1.7b": _llama("SDARForCausalLM", 28, 2048, 6144, 16, 8, head_dim=128, vocab_size=QWEN),
    "sdar-4b": _llama("SDARForCausalLM", 36, 2560, 9728, 32, 8, head_dim=128, vocab_size=QWEN),
    "sdar-8b": _llama("SDARForCausalLM", 36, 4096, 12288, 32, 8, head_dim=128, vocab_size=QWEN),
    "sdar-30b-a3b": _llama(
        "SDARMoeForCausalLM", 48, 2048, 6144, 32, 4, head_dim=128, vocab_size=QWEN, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
    ),
    "a2d-qwen3-0.6b": _llama(
        "A2DQwen3LMHeadModel", 28, 1024, 3072, 16, 8, model_type="a2d-qwen3", head_dim=128, vocab_size=QWEN,
        tie_word_embeddings=True,
    ),
    "fast-dllm-v2-1.5b": _llama(
        "Fast_dLLM_QwenForCausalLM", 28, 1536, 8960, 12, 2, vocab_size=QWEN, tie_word_embeddings=True
    ),
    "fast-dllm-v2-7b": _llama("Fast_dLLM_QwenForCausalLM", 28, 3584, 18944, 28, 4, vocab_size=QWEN_LARGE),
    "stable-diffcoder-8b": _llama("StableDiffcoderForCausalLM", 32, 4096, 14336, 32, 8, vocab_size=155136),
    "nemotron-labs-3b": _llama("NemotronLabsDiffusionModel", 26, 3072, 9216, 32, 8, head_dim=128, vocab_size=131072),
    "nemotron-labs-8b": _llama("NemotronLabsDiffusionModel", 34, 4096, 14336, 32, 8, head_dim=128, vocab_size=131072),
    "diffullama-7b": _llama("DiffuLlamaForCausalLM", 32, 4096, 11008, 32, 32, vocab_size=32000),
    "diffugpt-s": _gpt2(12, 768, 12),
    "diffugpt-m": _gpt2(24, 1024, 16),
    "mdlm-owt": _dit(12, 768, 12, "mdlm"),
    "bd3lm-owt": _dit(12, 768, 12, "bd3lm") | {"adaln": False},
    "sedd-small": _sedd(12, 768, 12),
    "sedd-medium": _sedd(24, 1024, 16),
}  # fmt: skip
