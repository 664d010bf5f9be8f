"""Every mode of a model, and llama.cpp, timed on the same prompts in one run."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarks.roofline import forward_operations, product_rate, read_rate
from rich.console import Console

from unmask import DiffusionLM
from unmask.checkpoints import gguf as gguf_file
from unmask.cli.options import Backend, Dtype, Json, Quantize, Tokens, check_least, load, numbers, shares
from unmask.cli.report import print_record
from unmask.cli.terminal import table
from unmask.decoding import planner
from unmask.evaluation.answers import quality as score
from unmask.evaluation.figures import Figure, aup_of_items, median, share
from unmask.evaluation.speed import chat
from unmask.evaluation.tasks import load as load_items
from unmask.layout import Layout
from unmask.picture import picture as panels

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
PASSES = [1, 4, 9, 16, 32]  # widths of the forwards that are timed alone
NGRAM = 3  # tokens that llama.cpp's own drafts go by


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
        part = PROMPTS[max(0, number) :: ROUNDS]
        groups = [[part[i % len(part)] for i in range(batch)]] if batch > 1 else [[p] for p in part]
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
        import xllamacpp

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
    with panels(path, size=(8, 4.8)) as (axes,):
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


def command(
    model: Annotated[str, typer.Argument(help="A model with several modes.")] = "default",
    rules: Annotated[str, typer.Option(help="Of diffusion, with commas; the model's own if empty.")] = "",
    thresholds: Annotated[str, typer.Option(help="Of diffusion, with commas.")] = "0.1,0.3,0.5",
    blocks: Annotated[str, typer.Option(help="Windows of diffusion, with commas.")] = "2,4,8",
    verify_blocks: Annotated[str, typer.Option(help="Windows of verify, with commas.")] = "2,3,4",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,8",
    max_new_tokens: Tokens = 128,
    llama: Annotated[str, typer.Option(help="GGUF file for llama.cpp; the base's own if empty, 'no' for none.")] = "",
    quality: Annotated[int, typer.Option(help="Items of each kind of the quality set to score by; 0: none.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw score against speed (PNG) here.")] = None,
    backend: Backend = "auto",
    quantize: Quantize = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Every mode of a model and llama.cpp on the same prompts in one run: medians of five interleaved rounds.

    Example: `unmask bench speed default --quality 40 --picture speed.png`
    """
    check_least(0, quality=quality)
    check_least(1, max_new_tokens=max_new_tokens)
    lm = load(model, "cpu", dtype, backend, quantize)
    windows = numbers("--blocks", blocks), numbers("--verify-blocks", verify_blocks)
    chosen = [rule.strip() for rule in rules.split(",")] if rules else [lm.defaults.rule]
    tried = ways(chosen, shares("--thresholds", thresholds), *windows)
    results: list[Speed] = []
    scores: dict[str, Figure] = {}
    area: dict[str, float] = {}
    err = Console(stderr=True)
    with err.status("starting") as status:
        for batch in numbers("--batches", batches):
            rivals = _llama(lm, llama, batch, err)
            results += bench_speed(lm, tried, batch, max_new_tokens, rivals, lambda text: status.update(text))
        status.update("single passes")
        times = passes(lm, PASSES, 256)
        least = floors(lm, PASSES, 256)
        if quality:
            items, _ = load_items(limit=quality)
            runs = []
            for way in tried:
                options = {"temperature": 0.0, **way.options}
                result = score(lm, items, options, lambda text: status.update(text), likelihood=False)
                scores[way.name] = share(sum(result["passed"].values()), len(items))
                runs += [result["items"]] if way.name.startswith("diffusion") else []
            area = aup_of_items(runs).named("aup")
    if picture is not None:
        draw(
            results,
            {name: score.value for name, score in scores.items()},
            picture,
            f"{lm.name}: {max_new_tokens} new tokens, temperature 0",
        )
    if as_json:
        speeds = [r.to_dict() | (scores[r.name].named("score") if r.name in scores else {}) for r in results]
        print_record({"speeds": speeds, "passes_ms": times, "floors_ms": least, **area})
        return
    rows = []
    for r in results:
        over = "-" if r.over_llama is None else r.over_llama.shown()
        made = [r.tokens_per_second.shown(1), r.over_ar.shown(), over]
        each = [f"{r.tokens_per_step:.2f}", f"{r.ms_per_step:.1f}"]
        rows.append([r.name, str(r.batch), *made, *each, scores[r.name].shown(1) if r.name in scores else "-"])
    columns = ["way", "batch", "tokens/s", "over ar", "over llama.cpp", "tokens/step", "ms/step", "score"]
    Console().print(table(f"{lm.name}, {max_new_tokens} new tokens", columns, rows))
    if area:
        print(f"AUP of diffusion: {Figure.of(area, 'aup').shown(1)}")
    rows = [
        [str(w), f"{times[w]:.1f}", *(f"{ms:.1f}" for ms in least[w]), f"{times[w] / times[1]:.2f}"] for w in PASSES
    ]
    columns = ["text tokens", "ms", "floor: weights read, ms", "floor: operations, ms", "over one token"]
    Console().print(table("one forward after 256 cached tokens, every row scored", columns, rows))


def _llama(lm: Any, llama: str, batch: int, console: Any) -> dict[str, LlamaCpp]:
    """llama.cpp on the base's GGUF file, by itself and with drafts of its own; none, and said so, where it is not to be
    had."""
    source = None if lm.loaded is None else (lm.loaded.base or lm.loaded).path
    path = Path(llama) if llama not in ("", "no") else None if source is None else gguf_file.find(source)
    if llama == "no":
        return {}
    if path is None or not path.is_file():
        console.print("llama.cpp is left out: no GGUF file of this model is at hand")
        return {}
    if find_spec("xllamacpp") is None:
        console.print("llama.cpp is left out: `pip install xllamacpp` puts it beside us")
        return {}
    threads = os.cpu_count() or 1
    rivals = {"llama.cpp": LlamaCpp(path, lm, threads, batch)}
    rivals["llama.cpp, n-gram"] = LlamaCpp(path, lm, threads, batch, NGRAM)
    console.print(rivals["llama.cpp"].build)
    return rivals
