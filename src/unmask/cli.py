"""The command line. Every command is a thin layer over the library."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.errors import UnmaskError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Diffusion language models that write text all at once.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure speed and quality on this machine.")
app.add_typer(bench, name="bench")

Model = Annotated[str, typer.Option("--model", "-m", help="A shipped model's name or a checkpoint folder.")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="How many tokens to write.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps per block.")]
Block = Annotated[int | None, typer.Option("--block-length", help="Tokens decoded together; all by default.")]
Rule = Annotated[
    str | None,
    typer.Option("--rule", help="quota, threshold, factor, entropy_bound, margin, random or sequential."),
]
Threshold = Annotated[float | None, typer.Option("--threshold", help="Of the rule `threshold`, 0 to 1.")]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="0 takes the best token.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Nucleus, 0 to 1.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="0 is off.")]
Remask = Annotated[int | None, typer.Option("--remask", help="Committed tokens that may be masked again.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or auto (the file's).")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Plain = Annotated[bool, typer.Option("--plain", help="Text only, no drawing (the default in a pipe).")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to continue; '-' reads it from standard input.")] = "",
    model: Model = "default",
    max_new_tokens: Tokens = 128,
    steps: Steps = None,
    block_length: Block = None,
    rule: Rule = None,
    threshold: Threshold = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    remask: Remask = None,
    seed: Seed = None,
    mode: Annotated[str | None, typer.Option(help="diffusion or ar; the model's own by default.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be given several times.")] = None,
    pause: Annotated[float, typer.Option(help="Seconds to wait after each drawn step.")] = 0.0,
    trace: Annotated[Path | None, typer.Option(help="Write the frames to this file, one JSON object a line.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write a film strip of the canvas (SVG) here.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Write after a prompt, drawing the canvas as it denoises.

    Example: `unmask generate "Emma was" -n 100 --steps 32 --seed 7`
    """
    lm, began = _load(model, device, dtype), time.perf_counter()
    options: dict[str, Any] = {
        "mode": mode,
        "block_length": block_length,
        "max_denoising_steps": steps,
        "rule": rule,
        "threshold": threshold,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "remask_budget": remask,
        "seed": seed,
        "stop": stop,
    }
    prompt = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    draw = not (plain or as_json) and sys.stdout.isatty()
    output = _generate_drawn(lm, prompt, max_new_tokens, options, pause) if draw else None
    if output is None:
        output = lm.generate(prompt, max_new_tokens, **options)
    seconds = time.perf_counter() - began - (pause * len(output.frames) if draw else 0.0)  # pauses are not work
    if trace is not None:
        _write_trace(trace, output)
    if picture is not None:
        from unmask.display import CanvasView, filmstrip

        first = CanvasView(output.first_canvas.tolist(), lm.config.mask_token_id, lm.tokenizer)
        filmstrip(first, output.frames, picture, lm.name)
    _report(output, seconds, as_json, draw, {"text": output.text})


@app.command()
def fill(
    template: Annotated[str, typer.Argument(help='Text with gaps, such as "She was [[mask:3]] and [[mask:1-4]]."')],
    model: Model = "default",
    steps: Steps = None,
    rule: Rule = None,
    threshold: Threshold = None,
    temperature: Temperature = None,
    seed: Seed = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Fill the gaps of a template: any number, each of a fixed or ranged length.

    Example: `unmask fill "Mr. Darcy was [[mask:2-6]], and Elizabeth [[mask:4]]."`
    """
    lm, began = _load(model, device, dtype), time.perf_counter()
    options = {"max_denoising_steps": steps, "rule": rule, "threshold": threshold, "temperature": temperature}
    output = lm.fill(template, seed=seed, **options)
    seconds = time.perf_counter() - began
    _report(output, seconds, as_json, False, {"text": output.text, "gaps": output.gaps})


@app.command()
def race(
    prompt: Annotated[str, typer.Argument(help="What both continue.")] = "It is a truth universally acknowledged",
    diffusion: Annotated[str, typer.Option(help="The diffusion model.")] = "austen",
    ar: Annotated[str, typer.Option(help="The autoregressive model.")] = "austen-ar",
    max_new_tokens: Tokens = 128,
    steps: Steps = None,
    seed: Seed = 0,
    slowdown: Annotated[float, typer.Option(help="Replay this many times slower than measured.")] = 1.0,
    dtype: Dtype = "float32",
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """AR against diffusion: each measured alone, then shown together at the measured pace.

    Example: `unmask race "Emma was" -n 200 --steps 32`
    """
    from rich.console import Console

    from unmask.display import CanvasView, replay_side_by_side, table
    from unmask.evaluation.race import timed, warm_up

    laps, views = [], []
    for name, options in ((ar, {}), (diffusion, {"max_denoising_steps": steps})):
        lm = _load(name, "cpu", dtype)
        warm_up(lm, prompt, max_new_tokens)
        lap = timed(lm, prompt, max_new_tokens, seed=seed, **options)
        view = CanvasView(lap.output.first_canvas.tolist(), lm.config.mask_token_id or 0, lm.tokenizer)
        laps.append(lap)
        views.append((lm.name, view, lap.moments))
    if as_json:
        print(json.dumps([lap.to_dict() for lap in laps]))
        return
    console = Console()
    if console.is_terminal and not plain:
        replay_side_by_side(views, console, slowdown)
    else:
        for lap in laps:
            print(f"--- {lap.name}\n{prompt}{lap.output.text}\n")
    rows = []
    for lap in laps:
        count, out = len(lap.output.token_ids), lap.output
        rows.append([lap.name, str(count), str(out.steps), f"{lap.seconds:.2f}", f"{lap.tokens_per_second:.0f}"])
    console.print(table("race, batch 1", ["model", "tokens", "steps", "seconds", "tokens/s"], rows))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see the recipes folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
) -> None:
    """Train a model; started again, it goes on from its newest checkpoint.

    Example: `unmask train recipes/austen.yaml training.steps=200 --output runs/try`
    """
    from unmask.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or [])
    from unmask.training.trainer import Trainer  # after the recipe is known to be good: it imports for seconds

    folder = Trainer(read, output or Path("runs") / read.name).run()
    print(f"model written to {folder}")


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name or a checkpoint folder.")],
    files: Annotated[list[Path], typer.Argument(help="UTF-8 text files to score.")],
    method: Annotated[str, typer.Option(help="auto, exact, blockwise or nelbo.")] = "auto",
    samples: Annotated[int, typer.Option(help="Masks per window of the bound.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    characters: Annotated[int, typer.Option(help="Score only so many characters of each file; 0: all.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Likelihood of texts: exact, per block, or the NELBO with its standard error.

    Example: `unmask eval austen data/austen/persuasion.txt --samples 8`
    """
    import math

    from rich.console import Console
    from rich.progress import Progress

    from unmask.display import table

    lm, texts = _load(model, device, dtype), []
    for path in files:
        try:
            texts.append(path.read_text(encoding="utf-8")[: characters or None])
        except (OSError, UnicodeDecodeError) as error:
            raise UnmaskError(f"{path} cannot be read as UTF-8 text ({error})") from None
        if not texts[-1]:
            raise UnmaskError(f"{path} is empty; there is nothing to score")
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        task = progress.add_task("scoring", total=1.0)
        scores = lm.likelihood(texts, method, samples, seed, progress=lambda x: progress.update(task, completed=x))
    records = []
    for path, text, score in zip(files, texts, scores, strict=True):
        per_char = 1 / math.log(2) / len(text)
        records.append(
            {
                "file": str(path),
                "method": score.method,
                "nats": score.nats,
                "std_error": score.std_error,
                "tokens": score.tokens,
                "characters": len(text),
                "bits_per_character": score.nats * per_char,
                "bits_per_character_error": score.std_error * per_char,
                "bits_per_byte": score.bits_per_byte,
                "perplexity": score.perplexity,
            }
        )
    if as_json:
        print(json.dumps(records))
        return
    rows = [
        [
            Path(str(r["file"])).name,
            str(r["method"]),
            f"{r['nats'] / r['tokens']:.4f}",
            f"{r['bits_per_character']:.4f} ± {r['bits_per_character_error']:.4f}",
            f"{r['bits_per_byte']:.4f}",
            f"{r['perplexity']:.2f}",
        ]
        for r in records
    ]
    columns = ["file", "method", "nats/token", "bits/character", "bits/byte", "perplexity"]
    Console().print(table(f"likelihood under {lm.name}", columns, rows))


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be used by name, and which of them are on this machine.

    Example: `unmask models`
    """
    from rich.console import Console

    from unmask.display import table
    from unmask.models import catalogue, entries

    records: list[dict[str, Any]] = []
    for entry in entries.ENTRIES.values():
        present, folder = catalogue.is_present(entry), catalogue.place(entry)
        weights = [folder / name for name in ("model.safetensors", "adapter.safetensors")]
        size = sum(f.size for f in entry.files) or sum(f.stat().st_size for f in weights if f.is_file())
        records.append(
            {
                "name": entry.name,
                "also": [alias for alias, target in catalogue.ALIASES.items() if target == entry.name],
                "kind": entry.kind,
                "bytes": size,
                "source": str(entry.source),
                "licence": entry.licence,
                "present": present,
                "base": entry.base,
                "notes": entry.notes,
            }
        )
    if as_json:
        print(json.dumps(records))
        return
    rows = []
    for r in records:
        name = f"{r['name']} ({', '.join(r['also'])})" if r["also"] else r["name"]
        kind, here = "AR" if r["kind"] == "autoregressive" else r["kind"], "yes" if r["present"] else "no"
        rows.append([name, kind, f"{r['bytes'] / 1e6:.1f}", r["source"], r["licence"], here])
    shown = table("models", ["name", "kind", "MB", "source", "licence", "here"], rows)
    shown.columns[0].no_wrap = True  # a name must be readable to be typed
    Console().print(shown)
    print("\n".join(f"{r['name']}: {r['notes']}" for r in records if r["notes"]))


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name that `unmask models` lists, or a hub id, owner/name.")],
    check: Annotated[bool, typer.Option("--check", help="Fetch nothing; compare what is here by SHA-256.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a model into the cache, once; every other command does so at first use.

    Example: `unmask pull smollm2-135m-instruct`
    """
    from unmask.models import catalogue, entries
    from unmask.models import pull as fetching

    entry = entries.need(catalogue.ALIASES.get(name, name))
    needed = [entry.name] if entry.base is None else [entry.base, entry.name]
    folders = {}
    for each in needed:  # an adapter is of no use without its base
        shipped = isinstance(entries.need(each).source, entries.Shipped)
        folders[each] = catalogue.find(each) if shipped or not check else fetching.check(each)
    files = [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for each in needed for f in entries.need(each).files]
    if as_json:
        print(json.dumps({"name": entry.name, "folders": {k: str(v) for k, v in folders.items()}, "files": files}))
        return
    for each, folder in folders.items():
        print(f"{each}: {'as it should be' if check else 'here'}, {folder}")


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

    from unmask.display import table
    from unmask.evaluation.bench_length import bench_length, draw, settings

    first, second = _load(diffusion, "cpu", dtype), _load(ar, "cpu", dtype)
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

    from unmask.display import table
    from unmask.evaluation.bench_rules import bench_rules

    if texts < 1 or steps < 1:
        raise UnmaskError("--texts and --steps must be at least 1")
    first, judge = _load(diffusion, "cpu", "float32"), _load(ar, "cpu", "float32")
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


def _load(model: str, device: str, dtype: str) -> Any:
    from unmask.lm import DiffusionLM

    return DiffusionLM.from_pretrained(model, device, dtype)


def _generate_drawn(lm: Any, prompt: str, max_new_tokens: int, options: dict[str, Any], pause: float) -> Any:
    """Generates while drawing; the drawing consumes the frames."""
    from rich.console import Console

    from unmask.display import CanvasView, watch

    run = lm.start(prompt, max_new_tokens, **options)
    view = CanvasView(run.first_canvas, lm.config.mask_token_id, lm.tokenizer)
    watch(view, run.frames(), Console(), lm.name, pause)
    return run.outputs()[0]


def _write_trace(path: Path, output: Any) -> None:
    from unmask.files import write_text

    first = json.dumps({"canvas": output.first_canvas.tolist(), "seed": output.seed})
    write_text(path, "\n".join([first, *(json.dumps(f.to_dict()) for f in output.frames)]) + "\n")


def _report(output: Any, seconds: float, as_json: bool, drawn: bool, extra: dict[str, Any]) -> None:
    """Text on standard output (unless it was drawn); figures on standard error, or all as JSON."""
    tokens = len(output.token_ids)
    figures = {"tokens": tokens, "steps": output.steps, "seconds": round(seconds, 3), "seed": output.seed}
    figures |= {"tokens_per_step": round(output.tokens_per_step, 2), "tokens_per_second": round(tokens / seconds, 1)}
    if as_json:
        print(json.dumps({**extra, "token_ids": output.token_ids, **figures}))
        return
    if not drawn:
        print(output.text)
    print(
        f"{tokens} tokens in {output.steps} steps ({figures['tokens_per_step']} a step), {seconds:.2f} s, "
        f"{figures['tokens_per_second']} tokens/s, seed {output.seed}",
        file=sys.stderr,
    )


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit status 2."""
    try:
        app()
    except UnmaskError as error:
        print(f"unmask: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        if error.name and error.name.split(".")[0] in ("accelerate", "datasets", "matplotlib", "yaml", "tensorboard"):
            print(f"unmask: this command needs '{error.name}'; run: pip install 'unmask[train]'", file=sys.stderr)
            sys.exit(2)
        raise
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away; nothing to report
        sys.exit(1)
