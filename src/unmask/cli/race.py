"""`unmask race`: AR against diffusion."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from unmask.cli.options import Dtype, Json, Plain, Seed, Tokens, check_least, decodes, load
from unmask.cli.report import print_record


@decodes("max_denoising_steps", "threshold", "block_length")
def race(
    prompt: Annotated[str, typer.Argument(help="What both answer or continue.")] = "Why is the sky blue?",
    diffusion: Annotated[str, typer.Option(help="The diffusion model.")] = "default",
    ar: Annotated[str, typer.Option(help="The autoregressive model; the same one in mode ar if empty.")] = "",
    mode: Annotated[str, typer.Option("--mode", help="Of the diffusion model: diffusion or verify.")] = "diffusion",
    max_new_tokens: Tokens = 128,
    seed: Seed = 0,
    slowdown: Annotated[float, typer.Option(help="Replay this many times slower than measured.")] = 1.0,
    dtype: Dtype = None,
    plain: Plain = False,
    as_json: Json = False,
    **decoding: Any,
) -> None:
    """AR against diffusion: each measured alone, then shown together at the measured pace.

    Example: `unmask race "Why is the sky blue?" --mode verify`,
    `unmask race "Emma was" --diffusion austen --ar austen-ar -n 200 --steps 32`
    """
    from rich.console import Console

    from unmask.cli.terminal import CanvasView, replay_side_by_side, table
    from unmask.evaluation.speed import timed, warm_up

    check_least(0, slowdown=slowdown)
    laps = []
    views = []
    first = load(diffusion, "cpu", dtype)
    other = load(ar, "cpu", dtype) if ar else first
    for lm, options in ((other, {"mode": "ar"}), (first, {"mode": mode, **decoding})):
        asked: Any = [{"role": "user", "content": prompt}] if lm.chat_template else prompt
        warm_up(lm, asked, max_new_tokens, **options)
        lap = timed(lm, asked, max_new_tokens, seed=seed, **options)
        view = CanvasView(lap.output.first.tolist(), lm.config.mask_token_id or 0, lm.tokenizer)
        laps.append(lap)
        views.append((lap.name, view, lap.moments))
    if as_json:
        print_record([lap.to_dict() for lap in laps])
        return
    console = Console()
    if console.is_terminal and not plain:
        replay_side_by_side(views, console, slowdown)
    else:
        for lap in laps:
            print(f"--- {lap.name}\n{prompt}{chr(10) if first.chat_template else ''}{lap.output.text}\n")
    rows = []
    for lap in laps:
        out = lap.output
        rows.append(
            [lap.name, str(len(out.token_ids)), str(out.steps), f"{lap.seconds:.2f}", f"{lap.tokens_per_second:.0f}"]
        )
    console.print(table("race, batch 1", ["model", "tokens", "steps", "seconds", "tokens/s"], rows))
