"""`unmask generate`: answer or continue a prompt."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli.options import (
    DECODING,
    Backend,
    Device,
    Dtype,
    Json,
    Model,
    Options,
    Plain,
    Quantize,
    Tokens,
    check_least,
    decodes,
    decoding_options,
    load,
    text_of,
)
from unmask.cli.report import print_output
from unmask.errors import UnmaskError


@decodes(*DECODING)
def generate(
    prompt: Annotated[str, typer.Argument(help="What to continue; '-' reads it from standard input.")] = "",
    model: Model = "default",
    max_new_tokens: Tokens = 128,
    option: Options = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text itself, outside the model's chat template.")
    ] = False,
    system: Annotated[str, typer.Option(help="System message before the prompt, for a model that chats.")] = "",
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; may be given several times.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", help="File with a JSON schema that the text will be valid under.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option("--regex", help="Regular expression that the whole text will match.")
    ] = None,
    pause: Annotated[float, typer.Option(help="Seconds to wait after each drawn step.")] = 0.0,
    trace: Annotated[Path | None, typer.Option(help="Write the frames to this file, one JSON object a line.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write a film strip of the canvas (SVG) here.")] = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    quantize: Quantize = None,
    plain: Plain = False,
    as_json: Json = False,
    **decoding: Any,
) -> None:
    """Answer or continue a prompt, drawing the canvas as it denoises.

    Example: `unmask generate "Why is the sky blue?"`, `unmask generate "Emma was" -m austen -n 100 --seed 7`,
    `unmask generate "When was Jane Austen born?" --regex "in 1[0-9]{3}"`
    """
    from rich.console import Console

    from unmask.cli.terminal import CanvasView, filmstrip, watch
    from unmask.files import write_text

    check_least(0, pause=pause)
    lm = load(model, device, dtype, backend, quantize)
    began = time.perf_counter()
    schema = None if json_schema is None else text_of(json_schema)
    options = {**decoding, "stop": stop, "json_schema": schema, "regex": regex, **decoding_options(option)}
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    asked: Any = text
    if lm.chat_template and text and not raw:
        asked = [{"role": "system", "content": system}] if system else []
        asked.append({"role": "user", "content": text})
    elif system:
        raise UnmaskError(f"model '{lm.name}' gets no messages here, so there is no place for --system; leave it out")
    draw = not (plain or as_json) and sys.stdout.isatty()
    if draw:
        run = lm.start(asked, max_new_tokens, **options)
        view = CanvasView(run.first_canvas, lm.config.mask_token_id, lm.tokenizer)
        watch(view, run.frames(), Console(), lm.name, pause)
        output = run.outputs()[0]
    else:
        output = lm.generate(asked, max_new_tokens, **options)
    seconds = time.perf_counter() - began - (pause * len(output.frames) if draw else 0.0)  # pauses are not work
    if trace is not None:
        first = json.dumps({"canvas": output.first.tolist(), "seed": output.seed})
        write_text(trace, "\n".join([first, *(json.dumps(f.to_dict()) for f in output.frames)]) + "\n")
    if picture is not None:
        canvas = CanvasView(output.first.tolist(), lm.config.mask_token_id, lm.tokenizer)
        filmstrip(canvas, output.frames, picture, lm.name)
    print_output(output, seconds, as_json, draw, {"text": output.text})
