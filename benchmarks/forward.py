"""CPU milliseconds of one forward of a released shape cut to few layers, torch and the native forward in turns.

Random weights: a column asks other experts than its neighbours, as unlike tokens do. Text is other in every pass, so
that experts come from memory.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.load import SHAPES

from unmask.backends import Source, create
from unmask.backends.native.backend import NativeBackend
from unmask.backends.native.network import CompiledNetwork, rows_pay
from unmask.backends.native.packed_file import PackedFile, mapped, unnamed
from unmask.backends.native.packing import Plan
from unmask.checkpoints.families import registry
from unmask.checkpoints.rows import Groups
from unmask.cli.options import Json, numbers
from unmask.cli.report import report
from unmask.decoding.feed import Columns, Feed
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.models.config import TOKENS, ModelConfig
from unmask.models.network import fresh, on_meta

BEFORE = 128  # cached positions
VOCABULARY = 8192
LONGEST = 1024
TORCH = ("float32", "bfloat16", "none")


@dataclass(frozen=True)
class Drawn:
    """A random matrix that is in memory only while it is packed."""

    shape: tuple[int, ...]
    seed: int
    kind: str = "F32"

    def values(self, first: int = 0, last: int | None = None) -> np.ndarray:
        rows = (self.shape[0] if last is None else min(last, self.shape[0])) - first
        if len(self.shape) == 1:
            return np.ones(rows, np.float32)
        random = np.random.default_rng((self.seed, first))
        return random.standard_normal((rows, *self.shape[1:]), np.float32) * np.float32(self.shape[-1] ** -0.5)

    def groups(self, first: int, last: int) -> Groups:
        raise ValueError("random values have no codes")


def cut(shape: str, layers: int, vocabulary: int) -> ModelConfig:
    """A released shape with few layers, one of those before the first with experts among them, and fewer tokens."""
    raw = SHAPES[shape]
    family = registry.recognise(raw, shape)
    assert family is not None
    config = family.config(raw, shape)
    dense = min(config.first_dense_layers, 1)
    sizes = {"num_layers": dense + layers, "first_dense_layers": dense, "vocab_size": vocabulary, "max_length": LONGEST}
    return replace(config, **sizes, **dict.fromkeys(TOKENS))


def drawn(config: ModelConfig, bits: int) -> NativeBackend:
    """The native forward with random weights, no network of torch beside it."""
    held = {name: Drawn(tuple(p.shape), n) for n, (name, p) in enumerate(on_meta(config).named_parameters())}
    with unnamed() as opened:
        file = PackedFile(opened)
        Plan(config, held, None, bits, rows_pay()).write(file)
        file.end()
        return NativeBackend(CompiledNetwork(config, mapped(opened)))


def forward(backend: Any, width: int, seed: int) -> tuple[Any, float]:
    """One pass over `width` columns behind cached text, all of them scored; and the CPU seconds that it took."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, width)
    place = np.arange(BEFORE, BEFORE + width)
    feed = Feed.of([Columns(ids, place, np.full(width, -1), place - BEFORE, place)], np.array([BEFORE]))
    began = time.process_time()
    made = backend.forward(feed)
    return made, time.process_time() - began


def best(made: Any) -> list[int]:
    found = made.logits.argmax(-1) if hasattr(made, "logits") else made.text.argmax(-1)
    return [int(token) for token in found]


def command(
    shape: Annotated[str, typer.Argument(help="One of `unmask bench load --shape`.")] = "llada-moe-7b-a1b",
    layers: Annotated[int, typer.Option(help="Layers, where there are experts those with them.")] = 1,
    columns: Annotated[str, typer.Option(help="Widths of passes.")] = "1,8,32",
    vocabulary: Annotated[int, typer.Option(help="Tokens of the head.")] = VOCABULARY,
    dtype: Annotated[str, typer.Option(help=f"Of torch: {', '.join(TORCH)} (the native forward alone).")] = "float32",
    threads: Annotated[int, typer.Option(help="Of each backend.")] = 1,
    rounds: Annotated[int, typer.Option(help="Passes of every backend and width.")] = 9,
    as_json: Json = False,
) -> None:
    """CPU milliseconds of one forward of a released shape cut to few layers, torch and native in turns.

    Example: `unmask bench forward llada-moe-7b-a1b --layers 1`, which needs 3 GB
    """
    widths = numbers("--columns", columns)
    if shape not in SHAPES or dtype not in TORCH:
        raise UnmaskError(f"there is no shape '{shape}' in '{dtype}'; shapes are {', '.join(SHAPES)}")
    config = cut(shape, layers, vocabulary)
    torch.set_num_threads(threads)
    backends: dict[str, Any] = {}
    if dtype == "none":
        backends = {f"native, {bits} bits": drawn(config, bits) for bits in (8, 4)}
    else:
        network = fresh(config, 0).eval()
        source = Source(config, lambda: network)
        native = {f"native, {bits} bits": create(name, source) for bits, name in ((8, "native"), (4, "native-q4"))}
        network.to(getattr(torch, dtype))
        backends = {f"torch {dtype}": create("torch", source), **native}
    layout = Layout(config.layout, max(config.block_length, 1))
    for backend in backends.values():
        backend.threads = threads
        backend.open(layout, 1, BEFORE + max(widths), True)
        forward(backend, max(widths), 0)
    times: dict[str, dict[int, list[float]]] = {name: {width: [] for width in widths} for name in backends}
    agree: dict[str, list[bool]] = {name: [] for name in backends}
    for number in range(rounds):
        for width in widths:
            expected: list[int] = []
            for name, backend in backends.items():
                made, seconds = forward(backend, width, 1 + number)
                times[name][width].append(seconds * 1e3)
                expected = expected or best(made)
                agree[name] += [one == other for one, other in zip(best(made), expected, strict=True)]
    rows = []
    for name, own in times.items():
        spans = [f"{statistics.median(ms):.1f} ({min(ms):.1f})" for ms in own.values()]
        rows.append([name, *spans, f"{statistics.mean(agree[name]):.3f}"])
    title = (
        f"{shape}, {layers} layers, {vocabulary} tokens: CPU ms a pass, medians of {rounds} (least), {threads} threads"
    )
    headings = ["columns", *map(str, widths), f"best tokens as of {next(iter(backends))}"]
    report({"times": times, "agree": agree}, title, headings, rows, as_json)
