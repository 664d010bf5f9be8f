"""Microseconds of one native forward by columns, build and threads, beside torch float32, on random weights.

The default shape is that of a small assistant: hidden 256, 6 layers, 4 heads of 64, query and key norms.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.load import feed

from unmask.backends import Source, create
from unmask.backends.native import network as native
from unmask.cli.options import Json, decoding_options
from unmask.cli.report import report
from unmask.layout import Layout
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

SHAPE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_layers": 6,
    "num_heads": 4,
    "head_dim": 64,
    "intermediate_size": 704,
    "qk_norm": True,
    "layout": "block_causal",
    "block_length": 32,
    "mask_token_id": 1,
}
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
ROUNDS = 15
BEFORE = 128  # cached positions


def forwards(backend: Any, width: int) -> Callable[[], Any]:
    """A forward of `width` columns behind cached text, all of them scored; it begins a block, as decoding does."""
    backend.open(Layout("block_causal", 32), 1, BEFORE + width, True)
    ids = np.random.default_rng(0).integers(2, 4000, BEFORE + width)
    backend.forward(feed(ids[:BEFORE], 0, 0))
    return lambda: backend.forward(feed(ids, BEFORE, width))


def median(run: Callable[[], Any]) -> float:
    """Microseconds of a forward, Python's part included."""
    for _ in range(3):
        run()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e6


def command(
    fields: Annotated[list[str] | None, typer.Argument(help="Sizes to change, NAME=NUMBER.")] = None,
    as_json: Json = False,
) -> None:
    """Microseconds of one native forward by columns, build and threads, beside torch float32, on random weights.

    Example: `unmask bench native hidden_size=512 intermediate_size=1408`
    """
    config = ModelConfig(**{**SHAPE, **decoding_options(fields)})
    model = Transformer(config).initialise(0)
    source = Source(config, lambda: model)
    rows: dict[str, list[float]] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        backend = create("torch", source)
        rows[f"torch f32, {threads} threads"] = [median(forwards(backend, width)) for width in WIDTHS]
    builds = native.BUILDS
    for build in builds:
        native.BUILDS = (build,)
        native.library.cache_clear()
        if native.library() is None:
            continue
        for name in ("native", "native-f32"):
            for threads in (1, 2):
                compiled: Any = create(name, source)
                compiled.threads = threads
                label = f"{name}, {build.removeprefix('_forward_')}, {threads} threads"
                rows[label] = [median(forwards(compiled, width)) for width in WIDTHS]
    native.BUILDS = builds
    native.library.cache_clear()
    table = [[label, *(f"{value:.0f}" for value in values)] for label, values in rows.items()]
    columns = ["columns", *map(str, WIDTHS)]
    report(rows, f"microseconds a pass, {BEFORE} cached positions, medians of {ROUNDS}", columns, table, as_json)
