"""`unmask bench ...`: speed and quality on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import Backend, Device, Dtype, Json, Tokens, load
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.evaluation.bench_speed import Speed

PASSES = [1, 4, 9, 16, 32]  # widths of the forwards that are timed alone

bench = typer.Typer(no_args_is_help=True, help="Measure speed and quality on this machine.")


@bench.command("length")
def bench_length_command(
    prompt: Annotated[list[str] | None, typer.Option(help="Prompts to rotate through.")] = None,
    diffusion: Annotated[str, typer.Option(help="The diffusion model.")] = "austen",
    ar: Annotated[str, typer.Option(help="Its autoregressive twin, which also judges.")] = "austen-ar",
    lengths: Annotated[str, typer.Option(help="New tokens, separated by commas.")] = "50,100,200,500",
    steps: Annotated[str, typer.Option(help="Denoising steps, separated by commas.")] = "32",
    rounds: Annotated[int, typer.Option(help="Timed rounds; medians are printed.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the first round.")] = 0,
    dtype: Dtype = "float32",
    picture: Annotated[Path | None, typer.Option(help="Write the picture (PNG) here.")] = None,
    samples: Annotated[bool, typer.Option("--samples", help="Print one text of every row as well.")] = False,
    as_json: Json = False,
) -> None:
    """Steps, seconds and quality for several lengths, diffusion and AR in one run.

    Example: `unmask bench length --steps 32 --picture length.png`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation.bench_length import bench_length, draw, settings

    first, second = load(diffusion, "cpu", dtype), load(ar, "cpu", dtype)
    wanted, step_list = _numbers("--lengths", lengths), _numbers("--steps", steps)
    if rounds < 1:
        raise UnmaskError("--rounds must be at least 1")
    with Console(stderr=True).status("warming up") as status:
        results = bench_length(
            first, second, prompt or DEFAULT_PROMPTS, wanted, step_list, rounds, seed, lambda text: status.update(text)
        )
    note = settings(first, steps, rounds)
    if picture is not None:
        draw(results, picture, note)
    if as_json:
        print(json.dumps({"settings": note, "results": [r.to_dict() for r in results]}))
        return
    rows = []
    for r in results:
        speed = [f"{r.seconds:.2f}", f"{r.floor_seconds:.2f}", f"{r.tokens_per_second:.0f}"]
        rows.append([r.name, str(r.tokens), str(r.steps), *speed, f"{r.perplexity:.1f}", f"{r.entropy:.2f}"])
    columns = ["model", "tokens", "steps", "seconds", "floor s", "tokens/s", "perplexity", "entropy"]
    Console().print(table(note, columns, rows))
    if samples:
        for r in results:
            print(f"\n--- {r.name}, {r.tokens} tokens, {r.steps} steps\n{r.sample}")


def _numbers(option: str, text: str) -> list[int]:
    """Positive numbers separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UnmaskError(f"{option} '{text}' must be positive numbers separated by commas, for example 50,500")
    return [int(part) for part in parts]


def _shares(option: str, text: str) -> list[float]:
    """Numbers from 0 to 1 separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= 1 for value in values):
        raise UnmaskError(f"{option} '{text}' must be numbers from 0 to 1 separated by commas, for example 0.5,0.9")
    return values


DEFAULT_PROMPTS = [
    "It is a truth universally acknowledged",
    "She had been three weeks in the country when",
    '"My dear sister," said he,',
    "The carriage was at the door, and",
    "Of all the young women in the neighbourhood,",
]


@bench.command("rules")
def bench_rules_command(
    diffusion: Annotated[str, typer.Option(help="The diffusion model.")] = "austen",
    ar: Annotated[str, typer.Option(help="The autoregressive model that judges.")] = "austen-ar",
    max_new_tokens: Tokens = 100,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 32,
    texts: Annotated[int, typer.Option(help="Texts per line, over the default prompts in turn.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the first text.")] = 11,
    as_json: Json = False,
) -> None:
    """Quality of every commit rule at several temperatures, and of revising, under the AR judge.

    Example: `unmask bench rules --steps 32 --texts 10`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation.bench_rules import bench_rules

    if texts < 1 or steps < 1:
        raise UnmaskError("--texts and --steps must be at least 1")
    first, judge = load(diffusion, "cpu", "float32"), load(ar, "cpu", "float32")
    prompts = [DEFAULT_PROMPTS[i % len(DEFAULT_PROMPTS)] for i in range(texts)]
    sizes, grid = (max_new_tokens, steps), ([0.6, 0.8, 1.0], [30, 100])
    with Console(stderr=True).status("starting") as status:
        results = list(bench_rules(first, judge, prompts, *sizes, *grid, seed, lambda text: status.update(text)))
    if as_json:
        print(json.dumps([r.to_dict() for r in results]))
        return
    rows = []
    for r in results:
        made = [f"{r.temperature}", str(r.remask_budget), f"{r.steps:.0f}"]
        rows.append([r.rule, *made, f"{r.perplexity:.1f}", f"{r.entropy:.2f}"])
    columns = ["rule", "temperature", "revisions", "steps", "perplexity", "entropy"]
    Console().print(table(f"{max_new_tokens} tokens, {texts} texts a line, seed {seed}", columns, rows))


@bench.command("training")
def bench_training_command(
    recipe: Annotated[Path, typer.Argument(help="The recipe to measure.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
    steps: Annotated[int, typer.Option(help="Steps to time.")] = 8,
    as_json: Json = False,
) -> None:
    """Training throughput of a recipe and its share of this machine's measured GEMM rate.

    Example: `unmask bench training recipes/austen.yaml --steps 8`
    """
    from unmask.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or [])
    from unmask.evaluation.bench_training import bench_training

    result = bench_training(read, steps)
    record = {
        "parameters": result.parameters,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "gflops": round(result.operations_per_second / 1e9, 1),
        "gemm_gflops": round(result.gemm_per_second / 1e9, 1),
        "share": round(result.share, 3),
    }
    if as_json:
        print(json.dumps(record))
        return
    print(
        f"{read.name}: {result.parameters / 1e6:.2f}M parameters, {record['tokens_per_second']} tokens/s, "
        f"{record['gflops']} of {record['gemm_gflops']} GFLOP/s measured GEMM = {result.share:.0%}"
    )


@bench.command("speed")
def bench_speed_command(
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
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Every mode of a model and llama.cpp on the same prompts in one run: medians of five interleaved rounds.

    Example: `unmask bench speed default --quality 40 --picture speed.png`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation import bench_speed as speed

    lm = load(model, "cpu", dtype, backend)
    windows = _numbers("--blocks", blocks), _numbers("--verify-blocks", verify_blocks)
    chosen = [rule.strip() for rule in rules.split(",")] if rules else [lm.defaults.rule]
    tried = speed.ways(chosen, _shares("--thresholds", thresholds), *windows)
    results: list[Speed] = []
    scores: dict[str, float] = {}
    err = Console(stderr=True)
    with err.status("starting") as status:
        for batch in _numbers("--batches", batches):
            rival = _llama(lm, llama, batch, err)
            results += speed.bench_speed(lm, tried, batch, max_new_tokens, rival, lambda text: status.update(text))
        status.update("single passes")
        widths = speed.passes(lm, PASSES, 256)
        floors = speed.floors(lm, PASSES, 256)
        if quality:
            from unmask.evaluation.bench_quality import quality as score
            from unmask.evaluation.tasks import load as load_items

            items, _ = load_items(limit=quality)
            for way in tried:
                options = {"temperature": 0.0, **way.options}
                result = score(lm, items, options, lambda text: status.update(text), likelihood=False)
                scores[way.name] = result["all"]["score"]
    if picture is not None:
        speed.draw(results, scores, picture, f"{lm.name}: {max_new_tokens} new tokens, temperature 0")
    if as_json:
        print(
            json.dumps(
                {"speeds": [r.to_dict() for r in results], "passes_ms": widths, "floors_ms": floors, "scores": scores}
            )
        )
        return
    rows = []
    for r in results:
        over = "-" if r.over_llama is None else f"{r.over_llama:.2f}"
        made = [
            f"{r.tokens_per_second:.1f}",
            f"{r.over_ar:.2f}",
            over,
            f"{r.tokens_per_step:.2f}",
            f"{r.ms_per_step:.1f}",
        ]
        rows.append([r.name, str(r.batch), *made, f"{scores[r.name]:.1f}" if r.name in scores else "-"])
    columns = ["way", "batch", "tokens/s", "over ar", "over llama.cpp", "tokens/step", "ms/step", "score"]
    Console().print(table(f"{lm.name}, {max_new_tokens} new tokens", columns, rows))
    rows = [
        [str(w), f"{widths[w]:.1f}", *(f"{ms:.1f}" for ms in floors[w]), f"{widths[w] / widths[1]:.2f}"] for w in PASSES
    ]
    columns = ["text tokens", "ms", "floor: weights read, ms", "floor: operations, ms", "over one token"]
    Console().print(table("one forward after 256 cached tokens, every row scored", columns, rows))


@bench.command("verify")
def bench_verify_command(
    model: Annotated[str, typer.Argument(help="A model with the modes ar and verify.")] = "default",
    prompts: Annotated[int, typer.Option(help="How many, from the quality set.")] = 200,
    max_new_tokens: Tokens = 64,
    batch: Annotated[int, typer.Option(help="Prompts at a time.")] = 10,
    window: Annotated[int, typer.Option(help="Block length of verify.")] = 3,
    backend: Backend = "auto",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Whether verify writes the ids of ar: identical texts, and the logit gap where they part.

    Example: `unmask bench verify default --dtype float32`
    """
    from rich.console import Console

    from unmask.evaluation.bench_verify import bench_verify
    from unmask.evaluation.tasks import load as load_items

    items, _ = load_items()
    if not 1 <= prompts <= len(items) or batch < 1:
        raise UnmaskError(f"--prompts must be from 1 to {len(items)}, --batch at least 1")
    chosen = [items[i * len(items) // prompts].prompt for i in range(prompts)]
    lm = load(model, "cpu", dtype, backend)
    with Console(stderr=True).status("starting") as status:
        result = bench_verify(lm, chosen, max_new_tokens, batch, window, lambda text: status.update(text))
    record = result.to_dict()
    if as_json:
        print(json.dumps(record))
        return
    share = result.before_parting / max(1, result.tokens)
    print(
        f"{lm.name}: {result.identical} of {result.prompts} texts identical; {share:.2%} of {result.tokens} tokens "
        f"before a parting; median gap at a parting {record['median_gap']:.3f} nats"
    )


@bench.command("load")
def bench_load_command(
    shape: Annotated[
        str, typer.Option(help="A public size, such as llada-8b; an unknown one lists them.")
    ] = "llada-8b",
    dtype: Annotated[str, typer.Option(help="auto (bfloat16, as it is written), bfloat16 or float32.")] = "auto",
    canvas: Annotated[int, typer.Option(help="Tokens of the one forward that is made.")] = 32,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put the checkpoint for as long; the system's own by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Peak memory and seconds of loading a synthetic checkpoint of a public shape, in a process of its own.

    Example: `unmask bench load --shape llada-8b` (writes 16 GB to the temporary folder, and removes them)
    """
    from rich.console import Console

    from unmask.evaluation.bench_load import bench_load

    with Console(stderr=True).status("starting") as status:
        result = bench_load(shape, dtype, canvas, folder, lambda text: status.update(text))
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    print(
        f"{shape}: {result.parameters / 1e9:.2f}B parameters, {result.weights / 1e9:.2f} GB as {result.dtype}; peak "
        f"{result.peak / 1e9:.2f} GB = {result.ratio:.2f} of the weights ({result.own_ratio:.2f} without the "
        f"{result.imports / 1e9:.2f} GB of the process alone); loaded in {result.load_seconds:.1f} s, one forward over "
        f"{result.canvas} tokens in {result.step_seconds:.1f} s"
    )


@bench.command("cache")
def bench_cache_command(
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
    from unmask.evaluation.bench_cache import Size, Work, bench_cache

    numbers = (max_new_tokens, prompt, block_length, causal_block, per_step, hidden, layers, heads, vocabulary, rounds)
    if min(numbers) < 1 or hidden % (2 * heads) or vocabulary < 2:
        raise UnmaskError("sizes must be at least 1 (2 tokens), and --hidden an even multiple of --heads")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UnmaskError(f"--dtype '{dtype}' is not one of float32, bfloat16, float16")
    size, work = Size(*numbers[5:9]), Work(prompt, max_new_tokens, block_length, causal_block, per_step, rounds)
    with Console(stderr=True).status("starting") as status:
        results = list(bench_cache(size, work, device, dtype, lambda text: status.update(text)))
    if as_json:
        print(json.dumps([r.to_dict() for r in results]))
        return
    rows = []
    for r in results:
        name = f"{r.model}, {r.parameters / 1e6:.0f}M"
        rows.append([name, r.cache, str(r.steps), f"{r.seconds:.2f}", f"{r.speedup:.2f}", f"{r.agreement:.1%}"])
    columns = ["network", "cache", "steps", "seconds", "over none", "ids as without"]
    Console().print(table(f"{max_new_tokens} new tokens after {prompt}, {dtype}, {rounds} rounds", columns, rows))


def _llama(lm: Any, llama: str, batch: int, console: Any) -> Any:
    """llama.cpp on the base's GGUF file; None, and said so, where it is not to be had."""
    import os
    from importlib.util import find_spec

    from unmask.checkpoints import gguf as gguf_file
    from unmask.evaluation.bench_speed import LlamaCpp

    source = None if lm.loaded is None else lm.loaded.base_path or lm.loaded.path
    path = Path(llama) if llama not in ("", "no") else None if source is None else gguf_file.find(source)
    if llama == "no":
        return None
    if path is None or not path.is_file():
        console.print("llama.cpp is left out: no GGUF file of this model is at hand")
        return None
    if find_spec("xllamacpp") is None:
        console.print("llama.cpp is left out: `pip install xllamacpp` puts it beside us")
        return None
    return LlamaCpp(path, lm, os.cpu_count() or 1, batch)


def quality_command(
    model: str,
    modes: str,
    rule: str | None,
    threshold: float | None,
    block_length: int | None,
    limit: int | None,
    device: str,
    dtype: str | None,
    as_json: bool,
) -> None:
    """The quality set in several modes, each against the first."""
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation import tasks
    from unmask.evaluation.bench_quality import choices, quality

    lm = load(model, device, dtype)
    items, likely = tasks.load(limit=limit)
    results: dict[str, dict[str, Any]] = {}
    with Console(stderr=True).status("starting") as status:
        for mode in modes.split(","):
            own = {"rule": rule, "threshold": threshold, "block_length": block_length}
            options = {"mode": mode.strip(), "temperature": 0.0, **own}

            def show(text: str, mode: str = mode) -> None:
                status.update(f"{mode}: {text}")

            results[mode.strip()] = quality(lm, items, options, show)
        by_likelihood = choices(lm, likely, lambda text: status.update(f"likelihood: {text}")) if likely else None
    first = next(iter(results.values()))
    compared = {mode: tasks.paired(first, result)["all"] for mode, result in results.items()}
    if as_json:
        kept = {m: {k: v for k, v in r.items() if k not in ("answers", "passed")} for m, r in results.items()}
        print(
            json.dumps(
                {"modes": kept, "against_first": compared, "likelihood": by_likelihood and by_likelihood["kinds"]}
            )
        )
        return
    names = [*first["kinds"], "all"]
    rows = []
    for mode, result in results.items():
        shares = [result["kinds"][n] if n != "all" else result["all"] for n in names]
        difference = compared[mode]
        cells = [f"{share['score']:.1f}" for share in shares]
        cells += [
            f"{difference['difference']:+.1f} ± {difference['std_error']:.1f}",
            f"{result['tokens_per_step']:.2f}",
        ]
        rows.append([mode, *cells, f"{result['bits_per_token']:.2f}", f"{result['entropy']:.2f}"])
    columns = ["mode", *names, "against first", "tokens/step", "bits/token", "entropy"]
    Console().print(table(f"{lm.name}, {len(items)} items", columns, rows))
    if by_likelihood is not None:
        shares = [
            f"{kind} {s['score']:.1f} ± {s['std_error']:.1f} ({s['n']})" for kind, s in by_likelihood["kinds"].items()
        ]
        print(f"by likelihood, the same in every mode: {', '.join(shares)}")
