"""`unmask bench cache`: what remembering keys and values between steps is worth, and what it does to the ids.

Two random networks of one size, so nothing is fetched: a full-canvas one as LLaDA is (no cache, prefix, dual)
and a block-causal one as SDAR is (no cache, exact). The number of steps is the same for every cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer

from unmask.backends.torch import TorchBackend
from unmask.checkpoints.open import usable_device
from unmask.cli.options import Device, Dtype, Json, Tokens
from unmask.cli.report import print_record
from unmask.decoding.loop import Decoder
from unmask.decoding.request import CacheKind, Request
from unmask.decoding.rules import RuleOptions
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

CACHES: dict[str, tuple[CacheKind, ...]] = {"full canvas": ("none", "prefix", "dual"), "blocks": ("none", "exact")}


@dataclass(frozen=True)
class Size:
    """Of both networks; the default is 98M parameters in the first and 81M in the second."""

    hidden: int = 768
    layers: int = 12
    heads: int = 12
    vocabulary: int = 8192


@dataclass(frozen=True)
class Work:
    """What is decoded: one request, so many tokens a step."""

    prompt: int = 128
    new: int = 256
    block: int = 32  # of the full canvas
    causal_block: int = 4  # of the block-causal network
    per_step: int = 2
    rounds: int = 3


@dataclass(frozen=True)
class CacheSpeed:
    """One cache of one network over all rounds: medians; the ratio is of the same round's seconds."""

    model: str
    cache: str
    parameters: int
    seconds: float
    speedup: float  # over no cache
    steps: int
    agreement: float  # share of the new tokens that are those of no cache

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def network(kind: str, size: Size, work: Work, seed: int = 0) -> Transformer:
    """A random network as LLaDA ("full canvas") or SDAR ("blocks") is; its weights are wide, so that texts vary."""
    causal = kind == "blocks"
    config = ModelConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_layers=size.layers,
        num_heads=size.heads,
        num_kv_heads=max(1, size.heads // 4) if causal else 0,
        intermediate_size=size.hidden * 8 // 3 // 8 * 8,
        max_length=work.prompt + work.new + work.causal_block,
        rope_theta=1e6 if causal else 5e5,
        qk_norm=causal,
        tie_embeddings=causal,
        layout="block_causal" if causal else "bidirectional",
        block_length=work.causal_block if causal else 0,
        mask_token_id=size.vocabulary - 1,
    )
    return Transformer(config).initialise(seed, std=2 * size.hidden**-0.5).eval()


def bench_cache(
    size: Size, work: Work, device: str, dtype: str, progress: Callable[[str], None] = lambda text: None
) -> Iterator[CacheSpeed]:
    """Times every cache of both networks in interleaved rounds, after one round that is not counted.

    device and dtype are torch's names. Greedy, by the rule `quota`. A device that cannot be used raises
    UnmaskError.
    """
    where = usable_device(device)
    for kind, caches in CACHES.items():
        progress(f"{kind}: making the network")
        model = network(kind, size, work).to(where, getattr(torch, dtype))
        backend = TorchBackend(model)
        seconds = {cache: list[float]() for cache in caches}
        last: dict[str, Decoder] = {}
        for number in range(work.rounds + 1):
            for cache in caches:
                progress(f"{kind}: round {number} of {work.rounds}, {cache}")
                began = time.perf_counter()
                last[cache] = decode(backend, kind, cache, work, RuleOptions("quota"))
                if number:
                    seconds[cache].append(time.perf_counter() - began)
        texts = {cache: decoder.canvas.ids[0, work.prompt :] for cache, decoder in last.items()}
        parameters = sum(p.numel() for p in model.parameters())
        for cache in caches:
            ratio = statistics.median(a / b for a, b in zip(seconds["none"], seconds[cache], strict=True))
            same = float((texts[cache] == texts["none"]).mean())
            median = statistics.median(seconds[cache])
            steps = last[cache].steps[0]
            yield CacheSpeed(kind, cache, parameters, median, ratio, steps, same)


def prompt_of(work: Work, mask: int) -> list[int]:
    """Random tokens below the mask, which is the last of these vocabularies."""
    ids: list[int] = np.random.default_rng(0).integers(0, mask, work.prompt).tolist()
    return ids


def decode(backend: TorchBackend, kind: str, cache: CacheKind, work: Work, rule: RuleOptions) -> Decoder:
    """Decodes the request to its end; reading the ids back is what waits for a GPU."""
    block = work.causal_block if kind == "blocks" else work.block
    mask = backend.config.mask_token_id
    assert mask is not None
    request = Request(
        prompt_of(work, mask) + [mask] * work.new,
        [True] * work.prompt + [False] * work.new,
        rule=rule,
        block_length=block,
        max_denoising_steps=-(-block // work.per_step),
        cache=cache,
    )
    layout = Layout("block_causal", block) if kind == "blocks" else Layout("bidirectional")
    decoder = Decoder(backend, layout, [request])
    for _ in decoder.run():
        pass
    return decoder


def command(
    max_new_tokens: Tokens = 256,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    block_length: Annotated[int, typer.Option(help="Of the full canvas.")] = 32,
    causal_block: Annotated[int, typer.Option(help="Of the block-causal network.")] = 4,
    per_step: Annotated[int, typer.Option(help="Tokens a step writes.")] = 2,
    hidden: Annotated[int, typer.Option(help="Width of the networks.")] = 768,
    layers: Annotated[int, typer.Option(help="Their layers.")] = 12,
    heads: Annotated[int, typer.Option(help="Their attention heads.")] = 12,
    vocabulary: Annotated[int, typer.Option(help="Their tokens.")] = 8192,
    rounds: Annotated[int, typer.Option(help="Timed rounds; medians are printed.")] = 3,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """What each cache is worth on random networks of LLaDA's and SDAR's shape, and which ids it changes.

    Example: `unmask bench cache --rounds 5`
    """
    from rich.console import Console

    from unmask.cli.terminal import table

    numbers = (max_new_tokens, prompt, block_length, causal_block, per_step, hidden, layers, heads, vocabulary, rounds)
    if min(numbers) < 1 or hidden % (2 * heads) or vocabulary < 2:
        raise UnmaskError("sizes must be at least 1 (2 tokens), and --hidden an even multiple of --heads")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UnmaskError(f"--dtype '{dtype}' is not one of float32, bfloat16, float16")
    size = Size(*numbers[5:9])
    work = Work(prompt, max_new_tokens, block_length, causal_block, per_step, rounds)
    with Console(stderr=True).status("starting") as status:
        results = list(bench_cache(size, work, device, dtype, lambda text: status.update(text)))
    if as_json:
        print_record([r.to_dict() for r in results])
        return
    rows = []
    for r in results:
        name = f"{r.model}, {r.parameters / 1e6:.0f}M"
        rows.append([name, r.cache, str(r.steps), f"{r.seconds:.2f}", f"{r.speedup:.2f}", f"{r.agreement:.1%}"])
    columns = ["network", "cache", "steps", "seconds", "over none", "ids as without"]
    Console().print(table(f"{max_new_tokens} new tokens after {prompt}, {dtype}, {rounds} rounds", columns, rows))
