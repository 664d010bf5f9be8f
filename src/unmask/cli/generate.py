"""`unmask generate`: answer or continue a prompt."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli.grammar import JsonSchema, Regex, grammar_options
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
from unmask.cli.report import print_output


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
    lm = load(model, device, dtype, backend)
    began = time.perf_counter()
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
    print_output(output, seconds, as_json, draw, {"text": output.text})


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
