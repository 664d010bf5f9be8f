"""What this machine can do at most: measured matrix-product rate, and the operations a model needs."""

from __future__ import annotations

import statistics
import time

import torch

from unmask.models.config import ModelConfig


def gemm_rate(dtype: torch.dtype, rows: int, inner: int, columns: int, seconds: float = 0.5) -> float:
    """Floating-point operations per second of [rows, inner] x [inner, columns], median of short runs."""
    a = torch.randn(rows, inner).to(dtype)
    b = torch.randn(columns, inner).to(dtype)
    torch.nn.functional.linear(a, b)
    rates: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(rates) < 5:
        began = time.perf_counter()
        torch.nn.functional.linear(a, b)
        rates.append(2 * rows * inner * columns / (time.perf_counter() - began))
    return statistics.median(rates)


def product_rate() -> float:
    """Operations per second of the best product of floats here, which products of bytes may beat."""
    return max(gemm_rate(dtype, 256, 1024, 4096) for dtype in (torch.bfloat16, torch.float32))


def read_rate(size: int = 2**28, rounds: int = 7) -> float:
    """Bytes per second that all threads read of an array larger than the caches, median."""
    values = torch.zeros(size // 8, dtype=torch.int64)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        values.sum()
        times.append(time.perf_counter() - began)
    return size / statistics.median(times)


def forward_operations(config: ModelConfig, fed: int, seen: int, scored: int) -> float:
    """Operations of one forward: `fed` tokens through the layers, each attending to `seen`, `scored` heads.

    Two per multiply-add, of experts those that a token asks; norms, rotations, softmax and short convolutions are left
    out, and of a recurrent layer all but writing to its state and reading it.
    """
    heads = config.num_heads * config.head_dim
    groups = config.num_kv_heads * config.head_dim
    matrices = 3 if config.activation in ("swiglu", "geglu_tanh") else 2
    sparse = config.num_layers - config.first_dense_layers if config.num_experts else 0
    asked = config.experts_per_token * config.expert_size + config.shared_expert_size
    inner_sizes = (config.num_layers - sparse) * config.intermediate_size + sparse * asked
    mlps = config.hidden_size * (matrices * inner_sizes + sparse * config.num_experts)
    attention = config.hidden_size * (2 * heads + 2 * groups) + 2 * seen * heads
    space = config.state_space
    inner = space.expand * config.hidden_size
    inputs = 3 * inner + 2 * space.num_groups * space.state_size + inner // space.head_dim
    directions = 2 if config.layout == "bidirectional" else 1
    mamba2 = config.hidden_size * inputs + 2 * directions * inner * space.state_size
    a_token = mlps + sum(mamba2 if mixer == "mamba2" else attention for mixer in config.layer_mixers)
    return float(2 * fed * config.loops * a_token + 2 * scored * config.hidden_size * config.vocab_size)
