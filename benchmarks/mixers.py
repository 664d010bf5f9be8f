"""Memory and CPU time a token by context: attention, Mamba-2 and both in one stack, on random weights of one size.

CPU time is that of all threads together, so that what else runs on the machine counts less. The networks are
those of `recipes/austen.yaml` and `recipes/austen-mamba.yaml`.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import numpy as np
import torch
import typer

from unmask.backends.torch import TorchBackend
from unmask.cli.options import Json, numbers
from unmask.cli.report import report
from unmask.decoding.feed import TEXT, Columns, Feed
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.models.config import ModelConfig, StateSpace
from unmask.models.network import fresh

# what mixes positions, and an MLP that makes all of one size
STACKS: dict[str, tuple[tuple[Any, ...], int]] = {
    "attention": (("attention",), 704),
    "mamba2": (("mamba2",), 480),
    "three mamba2, one attention": (("mamba2", "mamba2", "mamba2", "attention"), 536),
}
STEPS = 16  # of decoding in a round
SCORED = 32  # columns of a denoising step


class Stack:
    """One kind of network, as a causal model and as a denoiser, with a context of `length` tokens."""

    def __init__(self, name: str, length: int) -> None:
        mixers, inner = STACKS[name]
        self.name = name
        self.length = length
        self.ids = np.random.default_rng(0).integers(0, 4000, length + 1)
        self.backends = {}
        for layout in ("causal", "bidirectional"):
            config = ModelConfig(
                vocab_size=4096,
                hidden_size=256,
                num_layers=4,
                num_heads=4,
                intermediate_size=inner,
                max_length=length + 1,
                qk_norm=True,
                mixers=mixers,
                state_space=StateSpace(state_size=64),
                layout=layout,  # type: ignore[arg-type]
                shift=layout == "causal",
                mask_token_id=4095,
            )
            self.backends[layout] = TorchBackend(fresh(config, 0).eval())
        self.times: dict[str, list[float]] = {"prompt": [], "ar step": [], "denoising": []}

    def round(self) -> None:
        """Reads the context, writes tokens behind it, and denoises a canvas of its length."""
        causal = self.backends["causal"]
        causal.open(Layout("causal"), 1, self.length + 1, True)
        began = time.process_time()
        causal.forward(Feed.of([Columns.text(self.ids, 0, self.length)], np.zeros(1, np.int64)))
        read = time.process_time()
        place = np.array([self.length])
        step = Columns(self.ids[-1:], place, np.array([TEXT]), place * 0, place + 1)
        for _ in range(STEPS):
            causal.forward(Feed.of([step], place))
        self.times["prompt"].append((read - began) / self.length)
        self.times["ar step"].append((time.process_time() - read) / STEPS)
        denoiser = self.backends["bidirectional"]
        denoiser.open(Layout("bidirectional"), 1, self.length, False)
        place = np.arange(self.length)
        canvas = Columns(self.ids[:-1], place, np.full(self.length, TEXT), place[-SCORED:], place[-SCORED:])
        began = time.process_time()
        denoiser.forward(Feed.of([canvas], np.zeros(1, np.int64)))
        self.times["denoising"].append((time.process_time() - began) / self.length)

    def record(self) -> dict[str, Any]:
        """Medians in microseconds of CPU a token, and the bytes kept behind the context."""
        cache = self.backends["causal"].cache
        assert cache is not None
        kept = cache.keys + cache.values
        if cache.states is not None:
            kept += [tensor for layer in cache.states.layers.values() for tensor in layer]
        return {
            "mixers": self.name,
            "context": self.length,
            "parameters": {layout: b.model.num_parameters() for layout, b in self.backends.items()},
            "kept_bytes": sum(tensor.numel() * tensor.element_size() for tensor in kept),
            **{f"{name} us": 1e6 * statistics.median(seconds) for name, seconds in self.times.items()},
        }


def command(
    contexts: Annotated[str, typer.Option(help="Tokens, separated by commas.")] = "512,2048,8192",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; medians are printed.")] = 3,
    as_json: Json = False,
) -> None:
    """Memory and CPU time a token by context: attention, Mamba-2 and both in one stack, on random weights of one size.

    Example: `unmask bench mixers --contexts 512,2048`
    """
    if rounds < 1:
        raise UnmaskError("--rounds must be at least 1")
    records = []
    for length in numbers("--contexts", contexts):
        stacks = [Stack(name, length) for name in STACKS]
        for number in range(rounds + 1):  # the first is not counted
            for stack in stacks:
                stack.round()
                if not number:
                    stack.times = {name: [] for name in stack.times}
        records += [stack.record() for stack in stacks]
    names = ("prompt us", "ar step us", "denoising us")
    rows = [
        [
            str(r["context"]),
            r["mixers"],
            f"{r['parameters']['causal'] / 1e6:.2f}M, {r['parameters']['bidirectional'] / 1e6:.2f}M",
            f"{r['kept_bytes'] / 1024:.0f}",
            *(f"{r[name]:.1f}" for name in names),
        ]
        for r in records
    ]
    columns = ["context", "mixers", "parameters (ar, denoiser)", "KiB kept", *names]
    title = f"CPU time a token, batch 1, float32, {torch.get_num_threads()} threads, medians of {rounds} rounds"
    report(records, title, columns, rows, as_json)
