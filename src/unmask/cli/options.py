"""Options that several commands share, and how they load a model."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any

import typer

from unmask.errors import UnmaskError

Model = Annotated[str, typer.Option("--model", "-m", help="A shipped model's name or a checkpoint folder.")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="How many tokens to write.")]
Served = Annotated[str, typer.Argument(help="A model's name or folder.")]
Length = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens of an answer at most.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps per block.")]
Block = Annotated[int | None, typer.Option("--block-length", help="Tokens decoded together; all by default.")]
Rule = Annotated[
    str | None,
    typer.Option(
        "--rule",
        help="quota, threshold, factor, entropy_bound, margin, entropy, random, sequential, token_edit; checked for "
        "models that draft.",
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", help="How many tokens a step writes: even, block, linear, cosine or timesteps."),
]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Away from what is likely without the prompt; 0 is off.")
]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="auto, none, exact; prefix or dual (approximate, of models that read both ways)."),
]
Refresh = Annotated[
    int | None, typer.Option("--cache-refresh", help="Of prefix and dual: read all again every so many steps.")
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help="In place of a rule: ancestral, ddpm, ddpm_cache, psi, analytic, euler, first_hitting, or none.",
    ),
]
SubBlock = Annotated[
    int | None, typer.Option("--sub-block-length", help="Parts of a block that are written one after another.")
]
Editing = Annotated[
    float | None, typer.Option("--editing-threshold", help="Of the rule `token_edit`: written tokens change above it.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="Any other option of decoding as NAME=VALUE; may be given several times."),
]
Threshold = Annotated[
    float | None, typer.Option("--threshold", help="Of the rules threshold, checked and token_edit, 0 to 1.")
]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="0 takes the best token.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Nucleus, 0 to 1.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="0 is off.")]
Remask = Annotated[int | None, typer.Option("--remask", help="Committed tokens that may be masked again.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Of the torch network: float32, bfloat16, float16 or auto (the file's)."),
]
Backend = Annotated[str, typer.Option("--backend", help="auto, torch, native (8-bit weights), native-f32 or openvino.")]
Mode = Annotated[str | None, typer.Option("--mode", help="diffusion, ar or verify; the model's first by default.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Plain = Annotated[bool, typer.Option("--plain", help="Text only, no drawing (the default in a pipe).")]


def decoding_options(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; values are JSON, or text where they are not. A pair without `=` raises UnmaskError."""
    options: dict[str, Any] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UnmaskError(f"option '{pair}' must be NAME=VALUE, such as schedule=block")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def load(model: str, device: str, dtype: str | None, backend: str = "auto") -> Any:
    from unmask.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(model, device, dtype, backend)
    if lm.computes != "torch":
        load_compiled(lm)
    return lm


def load_compiled(lm: Any) -> None:
    """Packs weights that were never packed, with a bar on stderr, before anyone counts seconds."""
    with ExitStack() as stack:
        advance: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not advance:
                from rich.console import Console
                from rich.progress import Progress

                bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
                task = bar.add_task(f"packing {total / 1e6:.0f}M weights of {lm.name}, once", total=total)
                advance.append(partial(bar.update, task))
            advance[0](completed=done)

        lm.load_backend(progress)


def numbers(option: str, text: str) -> list[int]:
    """Positive numbers separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UnmaskError(f"{option} '{text}' must be positive numbers separated by commas, for example 50,500")
    return [int(part) for part in parts]


def shares(option: str, text: str) -> list[float]:
    """Numbers from 0 to 1 separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= 1 for value in values):
        raise UnmaskError(f"{option} '{text}' must be numbers from 0 to 1 separated by commas, for example 0.5,0.9")
    return values
