"""The command line. Every command is a thin layer over the library."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli import bench_schema as cli_schema
from unmask.cli import bench_serve as cli_bench_serve
from unmask.cli import serve as cli_serve
from unmask.cli.batch import batch
from unmask.cli.bench import bench
from unmask.cli.bench_reference import bench_reference_command
from unmask.cli.bench_schema import JsonSchema, Regex, grammar_options
from unmask.cli.models import export, models
from unmask.cli.options import (
    Backend,
    Block,
    Cache,
    Device,
    Dtype,
    Editing,
    Guidance,
    Json,
    Mode,
    Model,
    Options,
    Plain,
    Refresh,
    Remask,
    Rule,
    Sampler,
    Schedule,
    Seed,
    Steps,
    SubBlock,
    Temperature,
    Threshold,
    Tokens,
    TopK,
    TopP,
    decoding_options,
    load,
)
from unmask.errors import UnmaskError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Diffusion language models that write text all at once.",
)
bench.command("reference")(bench_reference_command)
app.add_typer(bench, name="bench")
app.command()(batch)
app.command()(export)
app.add_typer(models, name="models")
cli_serve.install(app)
cli_bench_serve.install(bench)
cli_schema.install(bench)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to continue; '-' reads it from standard input.")] = "",
    model: Model = "default",
    max_new_tokens: Tokens = 128,
    steps: Steps = None,
    block_length: Block = None,
    sub_block_length: SubBlock = None,
    rule: Rule = None,
    sampler: Sampler = None,
    threshold: Threshold = None,
    schedule: Schedule = None,
    guidance: Guidance = None,
    cache: Cache = None,
    cache_refresh: Refresh = None,
    editing_threshold: Editing = None,
    option: Options = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    remask: Remask = None,
    seed: Seed = None,
    mode: Mode = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text itself, outside the model's chat template.")
    ] = False,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be given several times.")] = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    pause: Annotated[float, typer.Option(help="Seconds to wait after each drawn step.")] = 0.0,
    trace: Annotated[Path | None, typer.Option(help="Write the frames to this file, one JSON object a line.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write a film strip of the canvas (SVG) here.")] = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Answer or continue a prompt, drawing the canvas as it denoises.

    Example: `unmask generate "Why is the sky blue?"`, `unmask generate "Emma was" -m austen -n 100 --seed 7`,
    `unmask generate "When was Jane Austen born?" --regex "in 1[0-9]{3}"`
    """
    lm, began = load(model, device, dtype, backend), time.perf_counter()
    options: dict[str, Any] = {
        "mode": mode,
        "block_length": block_length,
        "sub_block_length": sub_block_length,
        "max_denoising_steps": steps,
        "rule": rule,
        "sampler": sampler,
        "threshold": threshold,
        "schedule": schedule,
        "guidance": guidance,
        "cache": cache,
        "cache_refresh": cache_refresh,
        "editing_threshold": editing_threshold,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "remask_budget": remask,
        "seed": seed,
        "stop": stop,
        **grammar_options(json_schema, regex),
        **decoding_options(option),
    }
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    asked: Any = [{"role": "user", "content": text}] if lm.chat_template and text and not raw else text
    draw = not (plain or as_json) and sys.stdout.isatty()
    output = _generate_drawn(lm, asked, max_new_tokens, options, pause) if draw else None
    if output is None:
        output = lm.generate(asked, max_new_tokens, **options)
    seconds = time.perf_counter() - began - (pause * len(output.frames) if draw else 0.0)  # pauses are not work
    if trace is not None:
        _write_trace(trace, output)
    if picture is not None:
        from unmask.cli.terminal import CanvasView, filmstrip

        first = CanvasView(output.first.tolist(), lm.config.mask_token_id, lm.tokenizer)
        filmstrip(first, output.frames, picture, lm.name)
    _report(output, seconds, as_json, draw, {"text": output.text})


@app.command()
def chat(
    model: Model = "default",
    max_new_tokens: Tokens = 512,
    mode: Mode = None,
    threshold: Threshold = None,
    block_length: Block = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    system: Annotated[str, typer.Option(help="A system prompt in place of the model's own.")] = "",
    dtype: Dtype = None,
    device: Device = "cpu",
    backend: Backend = "auto",
) -> None:
    """Talk with a model; an empty line or end of input ends it.

    Example: `unmask chat --mode verify`
    """
    lm = load(model, device, dtype, backend)
    if lm.chat_template is None:
        raise UnmaskError(f"model '{lm.name}' has no chat template; use `unmask generate -m {model}`")
    options = {"mode": mode, "threshold": threshold, "block_length": block_length, "temperature": temperature}
    messages = [{"role": "system", "content": system}] if system else []
    while question := _ask():
        messages.append({"role": "user", "content": question})
        shown, ids, began = "", [], time.perf_counter()
        run = lm.start(messages, max_new_tokens, top_p=top_p, seed=seed, **options)
        for _ in run.frames():  # only what is written from the left without a gap, and whole characters
            text = run.text_so_far()
            if text.startswith(shown) and len(text) > len(shown) and not text.endswith("\ufffd"):
                print(text[len(shown) :], end="", flush=True)
                shown = text
        output = run.outputs()[0]
        print(output.text[len(shown) :] if output.text.startswith(shown) else "\n" + output.text)
        messages.append({"role": "assistant", "content": output.text})
        seconds, ids = time.perf_counter() - began, output.token_ids
        figures = f"{len(ids)} tokens in {output.steps} steps, {len(ids) / seconds:.0f} tokens/s"
        print(f"({figures})", file=sys.stderr)


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


@app.command()
def fill(
    template: Annotated[str, typer.Argument(help='Text with gaps, such as "She was [[mask:3]] and [[mask:1-4]]."')],
    model: Model = "austen",
    steps: Steps = None,
    rule: Rule = None,
    threshold: Threshold = None,
    temperature: Temperature = None,
    seed: Seed = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Fill the gaps of a template: any number, each of a fixed or ranged length.

    Example: `unmask fill "Mr. Darcy was [[mask:2-6]], and Elizabeth [[mask:4]]."`
    """
    lm, began = load(model, device, dtype), time.perf_counter()
    options = {"max_denoising_steps": steps, "rule": rule, "threshold": threshold, "temperature": temperature}
    output = lm.fill(template, seed=seed, **options)
    seconds = time.perf_counter() - began
    _report(output, seconds, as_json, False, {"text": output.text, "gaps": output.gaps})


@app.command()
def race(
    prompt: Annotated[str, typer.Argument(help="What both answer or continue.")] = "Why is the sky blue?",
    diffusion: Annotated[str, typer.Option(help="The diffusion model.")] = "default",
    ar: Annotated[str, typer.Option(help="The autoregressive model; the same one in mode ar if empty.")] = "",
    mode: Annotated[str, typer.Option("--mode", help="Of the diffusion model: diffusion or verify.")] = "diffusion",
    max_new_tokens: Tokens = 128,
    steps: Steps = None,
    threshold: Threshold = None,
    block_length: Block = None,
    seed: Seed = 0,
    slowdown: Annotated[float, typer.Option(help="Replay this many times slower than measured.")] = 1.0,
    dtype: Dtype = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """AR against diffusion: each measured alone, then shown together at the measured pace.

    Example: `unmask race "Why is the sky blue?" --mode verify`,
    `unmask race "Emma was" --diffusion austen --ar austen-ar -n 200 --steps 32`
    """
    from rich.console import Console

    from unmask.cli.terminal import CanvasView, replay_side_by_side, table
    from unmask.evaluation.race import timed, warm_up

    laps, views = [], []
    first = load(diffusion, "cpu", dtype)
    other = load(ar, "cpu", dtype) if ar else first
    own = {"max_denoising_steps": steps, "threshold": threshold, "block_length": block_length}
    for lm, options in ((other, {"mode": "ar"}), (first, {"mode": mode, **own})):
        asked: Any = [{"role": "user", "content": prompt}] if lm.chat_template else prompt
        warm_up(lm, asked, max_new_tokens, **options)
        lap = timed(lm, asked, max_new_tokens, seed=seed, **options)
        view = CanvasView(lap.output.first.tolist(), lm.config.mask_token_id or 0, lm.tokenizer)
        laps.append(lap)
        views.append((lap.name, view, lap.moments))
    if as_json:
        print(json.dumps([lap.to_dict() for lap in laps]))
        return
    console = Console()
    if console.is_terminal and not plain:
        replay_side_by_side(views, console, slowdown)
    else:
        for lap in laps:
            print(f"--- {lap.name}\n{prompt}{chr(10) if first.chat_template else ''}{lap.output.text}\n")
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
    if "base" in read.model:
        raise UnmaskError(f"recipe {recipe} adapts model.base '{read.model['base']}'; run `unmask adapt {recipe}`")
    from unmask.training.trainer import Trainer  # after the recipe is known to be good: it imports for seconds

    folder = Trainer(read, output or Path("runs") / read.name).run()
    print(f"model written to {folder}")


@app.command()
def adapt(
    recipe: Annotated[Path, typer.Argument(help="A YAML file with a model.base; recipes/default.yaml is one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change, section.field=value.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    stage: Annotated[str, typer.Option(help="text, train or all.")] = "all",
) -> None:
    """Teach an autoregressive model to draft, on text that it writes itself; started again, it goes on.

    The text goes to OUTPUT/text, the training to OUTPUT/adapter, the finished model to OUTPUT/model.

    Example: `unmask adapt recipes/default.yaml text.tokens=100000 training.steps=200 --output runs/try`
    """
    from unmask.training.recipe import read_recipe

    read = read_recipe(recipe, overrides or [], output)
    from unmask.training import adapt as adaptation  # after the recipe is known to be good: it imports for seconds

    folder = adaptation.adapt(read, output or Path("runs") / read.name, stage)
    print(f"{'text' if stage == 'text' else 'model'} written to {folder}")


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name or a checkpoint folder.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="UTF-8 text files to score; none: the quality set.")
    ] = None,
    method: Annotated[str, typer.Option(help="auto, exact, blockwise or nelbo.")] = "auto",
    samples: Annotated[int, typer.Option(help="Masks per window of the bound.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    characters: Annotated[int, typer.Option(help="Score only so many characters of each file; 0: all.")] = 0,
    modes: Annotated[
        str, typer.Option(help="Of the quality set: modes to compare, the first is the yardstick.")
    ] = "ar",
    rule: Rule = None,
    threshold: Threshold = None,
    block_length: Block = None,
    limit: Annotated[int | None, typer.Option(help="Of the quality set: items of each kind.")] = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Likelihood of texts: exact, per block, or the NELBO with its standard error; without texts, the quality
    set, in every mode given.

    Example: `unmask eval austen data/austen/persuasion.txt --samples 8`, `unmask eval default --modes ar,diffusion`
    """
    if not files:
        from unmask.cli.bench import quality_command

        return quality_command(model, modes, rule, threshold, block_length, limit, device, dtype, as_json)
    import math

    from rich.console import Console
    from rich.progress import Progress

    from unmask.cli.terminal import table

    lm, texts = load(model, device, dtype), []
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
def pull(
    name: Annotated[str, typer.Argument(help="A name that `unmask models` lists, or a hub id, owner/name.")],
    check: Annotated[bool, typer.Option("--check", help="Fetch nothing; compare what is here by SHA-256.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a model into the cache, once; every other command does so at first use.

    Example: `unmask pull smollm2-135m-instruct`
    """
    from unmask.checkpoints import catalogue, entries
    from unmask.checkpoints import hub as fetching

    entry = entries.need(name)
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


def _generate_drawn(lm: Any, prompt: Any, max_new_tokens: int, options: dict[str, Any], pause: float) -> Any:
    """Generates while drawing; the drawing consumes the frames."""
    from rich.console import Console

    from unmask.cli.terminal import CanvasView, watch

    run = lm.start(prompt, max_new_tokens, **options)
    view = CanvasView(run.first_canvas, lm.config.mask_token_id, lm.tokenizer)
    watch(view, run.frames(), Console(), lm.name, pause)
    return run.outputs()[0]


def _write_trace(path: Path, output: Any) -> None:
    from unmask.files import write_text

    first = json.dumps({"canvas": output.first.tolist(), "seed": output.seed})
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
