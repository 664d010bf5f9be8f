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

    Two per multiply-add; norms, rotations and softmax are left out.
    """
    heads = config.num_heads * config.head_dim
    groups = config.num_kv_heads * config.head_dim
    matrices = config.hidden_size * (2 * heads + 2 * groups)
    matrices += config.hidden_size * config.intermediate_size * (3 if config.activation == "swiglu" else 2)
    layer = 2 * fed * matrices + 4 * fed * seen * heads
    return float(config.num_layers * layer + 2 * scored * config.hidden_size * config.vocab_size)
