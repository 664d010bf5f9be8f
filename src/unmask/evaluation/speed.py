"""`unmask race` and `unmask bench speed`: modes of a model, and llama.cpp, timed on the same prompts in one run."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unmask.canvas import Frame
from unmask.decoding import planner
from unmask.errors import UnmaskError
from unmask.evaluation.figures import Figure, median
from unmask.layout import Layout
from unmask.lm import DiffusionLM
from unmask.output import Output
from unmask.picture import picture

PROMPTS = (
    "Why is the sky blue?",
    "Give me three tips for sleeping better.",
    "Write a short story about a fox and a crow.",
    "What is photosynthesis?",
    "How do I boil an egg?",
    "Explain what a computer network is to a child.",
    "Write a polite email asking for a day off.",
    "What are the main causes of the First World War?",
    "Describe a quiet morning by a lake.",
    "How does a bicycle stay upright?",
    "List five healthy breakfast ideas.",
    "What is the difference between weather and climate?",
    "Write a poem about autumn.",
    "How can I learn a new language quickly?",
    "Tell me about the planet Mars.",
    "What should I pack for a hiking trip?",
    "Explain supply and demand.",
    "Write a product description for a wooden chair.",
    "What makes bread rise?",
    "Summarise the story of Romeo and Juliet.",
)
ROUNDS = 5  # each mode decodes a fifth of the prompts in a round, all modes the same ones


@dataclass(frozen=True)
class Lap:
    """One timed generation."""

    name: str
    output: Output
    seconds: float
    moments: list[tuple[float, Frame]]  # seconds since the start, frame

    @property
    def tokens_per_second(self) -> float:
        return len(self.output.token_ids) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        out = self.output
        return {
            "name": self.name,
            "text": out.text,
            "tokens": len(out.token_ids),
            "steps": out.steps,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.tokens_per_second, 2),
            "seed": out.seed,
        }


def timed(lm: DiffusionLM, prompt: Any, max_new_tokens: int, **options: Any) -> Lap:
    """Generates once, noting when each frame came."""
    moments: list[tuple[float, Frame]] = []
    began = time.perf_counter()
    output = lm.generate(
        prompt, max_new_tokens, streamer=lambda frame: moments.append((time.perf_counter() - began, frame)), **options
    )
    name = f"{lm.name}, {options['mode']}" if options.get("mode") else lm.name
    return Lap(name, output, time.perf_counter() - began, moments)


def warm_up(lm: DiffusionLM, prompt: Any, max_new_tokens: int, **options: Any) -> None:
    """One short run, so that first-call costs are not counted."""
    lm.generate(prompt, min(8, max_new_tokens), seed=0, **options)


@dataclass(frozen=True)
class Way:
    """One way of decoding: a name and the options of `generate`."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Speed:
    """One way over all rounds; rates and ratios are medians of rounds with their range, ratios of the same round."""

    name: str
    batch: int
    tokens_per_second: Figure
    over_ar: Figure
    over_llama: Figure | None
    tokens_per_step: float
    ms_per_step: float

    def to_dict(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("tokens_per_second", "over_ar", "over_llama")}
        figures = {k: v for name, figure in named.items() if figure for k, v in figure.named(name).items()}
        return {**asdict(self), **figures}


def ways(rules: list[str], thresholds: list[float], blocks: list[int], verify_blocks: list[int]) -> list[Way]:
    """`ar`, `verify` at some windows, `diffusion` by every rule, threshold and window."""
    out = [Way("ar", {"mode": "ar"})]
    out += [Way(f"verify, window {n}", {"mode": "verify", "block_length": n}) for n in verify_blocks]
    for rule, block, t in itertools.product(rules, blocks, thresholds):
        options = {"mode": "diffusion", "rule": rule, "threshold": t, "block_length": block}
        out.append(Way(f"diffusion, {rule} {t}, window {block}", options))
    return out


def chat(lm: DiffusionLM, prompt: str) -> Any:
    """The prompt as this model is asked: a user turn where it has a chat template, else plain text."""
    return [{"role": "user", "content": prompt}] if lm.chat_template else prompt


def bench_speed(
    lm: DiffusionLM,
    tried: list[Way],
    batch: int,
    length: int,
    rivals: Mapping[str, LlamaCpp],
    progress: Callable[[str], None],
) -> Iterator[Speed]:
    """Times every way at temperature 0 in interleaved rounds, after one round that is not counted."""

    def ours(options: dict[str, Any], groups: list[list[str]]) -> tuple[float, float]:
        tokens = steps = 0
        for group in groups:
            outs = lm.generate([lm.encode(chat(lm, p))[0] for p in group], length, temperature=0.0, **options)
            tokens += sum(len(out.token_ids) for out in outs)
            steps += max(out.steps for out in outs)
        return tokens, steps

    runs = {way.name: partial(ours, way.options) for way in tried}  # each says how many tokens and steps it took
    runs |= {name: partial(rival.write, length) for name, rival in rivals.items()}
    rounds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    for number in range(-1, ROUNDS):
        share = PROMPTS[max(0, number) :: ROUNDS]
        groups = [[share[i % len(share)] for i in range(batch)]] if batch > 1 else [[p] for p in share]
        for name, run in runs.items():
            progress(f"round {number + 1} of {ROUNDS}, batch {batch}: {name}")
            began = time.perf_counter()
            tokens, steps = run(groups)
            if number >= 0:
                rounds[name].append((tokens, steps, time.perf_counter() - began))
    rates = {name: [tokens / seconds for tokens, _, seconds in rows] for name, rows in rounds.items()}

    def over(name: str, other: str) -> Figure:
        return median([a / b for a, b in zip(rates[name], rates[other], strict=True)])

    for name, rows in rounds.items():
        tokens, steps, seconds = (sum(column) for column in zip(*rows, strict=True))
        yield Speed(
            name,
            batch,
            median(rates[name]),
            over(name, "ar"),
            over(name, "llama.cpp") if "llama.cpp" in rivals else None,
            tokens / steps / batch,
            1e3 * seconds / steps,
        )


def passes(lm: DiffusionLM, widths: list[int], context: int, rounds: int = 15) -> dict[int, float]:
    """Median milliseconds of one forward of `width` text tokens after `context` cached ones, every row scored."""
    layout = Layout("drafts" if lm.config.layout == "drafts" else "causal")
    times = planner.passes(lm.backend, layout, widths, context, rounds, time.perf_counter)
    return {width: 1e3 * statistics.median(values) for width, values in times.items()}


def floors(lm: DiffusionLM, widths: list[int], context: int) -> dict[int, tuple[float, float]]:
    """What a pass cannot beat here, in milliseconds: reading its weights once, as they are packed, at the measured
    memory rate; and beside it its operations at the best measured rate of float products, which 8-bit ones may beat."""
    from unmask.evaluation.roofline import forward_operations, product_rate, read_rate

    c = lm.config
    network = getattr(lm.backend, "network", None)
    # a multiply-add per weight, one byte each, where the backend does not say
    weights = forward_operations(c, 1, 0, 1) / 2 if network is None else network.text_bytes
    reading = 1e3 * weights / read_rate()
    rate = product_rate()
    return {w: (reading, 1e3 * forward_operations(c, w, context, w) / rate) for w in widths}


class LlamaCpp:
    """llama.cpp from the prebuilt package `xllamacpp`, on a GGUF file, greedy, at our thread count.

    ngram: it drafts what followed the last so many tokens when they stood before, and checks that itself; 0: no drafts.
    """

    def __init__(self, gguf: Path, lm: DiffusionLM, threads: int, batch: int, ngram: int = 0) -> None:
        try:
            import xllamacpp
        except ImportError:
            raise UnmaskError("llama.cpp is not installed; `pip install xllamacpp` puts it beside us") from None
        params = xllamacpp.CommonParams()
        params.model.path, params.n_parallel, params.n_ctx, params.warmup = str(gguf), batch, 1024 * batch, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        if ngram:
            params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
            params.speculative.ngram_simple.size_n = ngram
        self.server, self.lm, self.batch = xllamacpp.Server(params), lm, batch
        self.build = f"xllamacpp {xllamacpp.__version__}, {xllamacpp.get_system_info().strip(' |')}"

    def write(self, length: int, groups: list[list[str]]) -> tuple[float, float]:
        """Answers the prompts, `batch` at a time: tokens and steps."""
        from concurrent.futures import ThreadPoolExecutor

        def one(prompt: str) -> int:
            text = self.lm.render_chat([{"role": "user", "content": prompt}])
            asked = {"prompt": text, "n_predict": length, "temperature": 0, "cache_prompt": False}
            answer: dict[str, Any] = self.server.handle_completions(asked)
            return int(answer["usage"]["completion_tokens"])

        with ThreadPoolExecutor(self.batch) as pool:
            tokens = sum(pool.map(one, itertools.chain(*groups)))
        return tokens, tokens / self.batch


def draw(speeds: list[Speed], scores: dict[str, float], path: Path, title: str) -> None:
    """The quality set's score against tokens per second at batch 1, as a PNG."""
    with picture(path, size=(8, 4.8)) as (axes,):
        colours = {"ar": "#30507a", "verify": "#2a8c6a", "diffusion": "#c1440e"}
        axes.margins(x=0.2, y=0.1)
        for number, speed in enumerate(speeds):
            if speed.name in scores and speed.batch == 1:
                kind = speed.name.split(",")[0]
                axes.plot(speed.tokens_per_second.value, scores[speed.name], "o", color=colours.get(kind, "#666666"))
                axes.annotate(
                    speed.name.replace("diffusion, ", ""),
                    (speed.tokens_per_second.value, scores[speed.name]),
                    textcoords="offset points",
                    xytext=(6, (4, -10)[number % 2]),  # of neighbours not upon each other
                    fontsize=7,
                )
        for speed in speeds:
            if speed.name == "llama.cpp" and speed.batch == 1:
                axes.axvline(speed.tokens_per_second.value, color="#999999", linestyle="--", linewidth=0.8)
                axes.annotate("llama.cpp", (speed.tokens_per_second.value, axes.get_ylim()[0]), fontsize=7, rotation=90)
        axes.set(xlabel="tokens per second, batch 1", ylabel="quality set, percent right", title=title)
