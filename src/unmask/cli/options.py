"""Options that several commands share, and how they load a model."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from unmask.errors import UnmaskError

Command = TypeVar("Command", bound=Callable[..., Any])
Model = Annotated[str, typer.Option("--model", "-m", help="A shipped model's name or a checkpoint folder.")]
Tokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="How many tokens to write.")]
Served = Annotated[str, typer.Argument(help="A model's name or folder.")]
Length = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens of an answer at most.")]
Threshold = Annotated[
    float | None, typer.Option("--threshold", help="Of the rules threshold, checked and token_edit, 0 to 1.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="Any other option of decoding as NAME=VALUE; may be given several times."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Of the torch network: float32, bfloat16, float16 or auto (the file's)."),
]
Backend = Annotated[str, typer.Option("--backend", help="auto, torch or native.")]
Quantize = Annotated[
    str | None, typer.Option("--quantize", help="Weights of the native backend: q8, q4, or none (float32).")
]
Mode = Annotated[str | None, typer.Option("--mode", help="diffusion, ar or verify; the model's first by default.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, ...")]
Json = Annotated[
    bool, typer.Option("--json", "--csv", help="Print one JSON object and nothing else; --csv: the same as a table.")
]
Plain = Annotated[bool, typer.Option("--plain", help="Text only, no drawing (the default in a pipe).")]
MOST = 10**9  # of any number that an option takes
RULES = "quota, threshold, factor, entropy_bound, margin, entropy, random, sequential, token_edit"
SAMPLERS = "ancestral, ddpm, ddpm_cache, psi, analytic, euler, first_hitting, or none"


def _option(kind: Any, names: str, about: str) -> Any:
    return Annotated[kind | None, typer.Option(*names.split(), help=about)]


DECODING: dict[str, Any] = {  # by the library's names
    "mode": Mode,
    "max_denoising_steps": _option(int, "--steps", "Denoising steps per block."),
    "block_length": _option(int, "--block-length", "Tokens decoded together; all by default."),
    "sub_block_length": _option(int, "--sub-block-length", "Parts of a block that are written one after another."),
    "rule": _option(str, "--rule", f"{RULES}; checked for models that draft."),
    "sampler": _option(str, "--sampler", f"In place of a rule: {SAMPLERS}."),
    "threshold": Threshold,
    "schedule": _option(str, "--schedule", "How many tokens a step writes: even, block, linear, cosine or timesteps."),
    "guidance": _option(float, "--guidance", "Away from what is likely without the prompt; 0 is off."),
    "cache": _option(str, "--cache", "auto, none, exact; prefix or dual (approximate, of models that read both ways)."),
    "cache_refresh": _option(int, "--cache-refresh", "Of prefix and dual: read all again every so many steps."),
    "editing_threshold": _option(
        float, "--editing-threshold", "Of the rule `token_edit`: written tokens change above it."
    ),
    "temperature": _option(float, "--temperature -t", "0 takes the best token."),
    "top_p": _option(float, "--top-p", "Nucleus, 0 to 1."),
    "top_k": _option(int, "--top-k", "0 is off."),
    "remask_budget": _option(int, "--remask", "Committed tokens that may be masked again."),
    "seed": Seed,
}


def decodes(*names: str) -> Callable[[Command], Command]:
    """Gives a command options of DECODING in place of its keyword arguments; those not given are None."""

    def add(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = list(signature.parameters.values())[:-1]
        kind = inspect.Parameter.KEYWORD_ONLY
        more = [inspect.Parameter(name, kind, default=None, annotation=DECODING[name]) for name in names]
        command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return command

    return add


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


def load(
    model: str, device: str = "cpu", dtype: str | None = None, backend: str = "auto", quantize: str | None = None
) -> Any:
    """A model; weights that its backend packs are packed, with a bar on stderr, before anyone counts seconds."""
    from unmask.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(model, device, dtype, backend, quantize)
    if lm.computes == "torch":
        return lm
    with ExitStack() as stack:
        advance: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not advance:
                from rich.console import Console
                from rich.progress import Progress

                bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
                task = bar.add_task(f"packing {lm.name} to {total / 1e6:.0f} MB of the cache, once", total=total)
                advance.append(partial(bar.update, task))
            advance[0](completed=done)

        lm.load_backend(progress)
    return lm


def check_least(least: float, **given: float | None) -> None:
    """Refuses options, by their names, that are below a number, no number or beyond all use; None is not given."""
    for name, value in given.items():
        if value is not None and not least <= value <= MOST:
            raise UnmaskError(f"--{name.replace('_', '-')} must be {least:g} to {MOST:,}, got {value}")


def text_of(path: Path) -> str:
    """A file's text; one that cannot be read raises UnmaskError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnmaskError(f"{path!s:.200} cannot be read ({error.strerror}); name a file") from None
    except UnicodeDecodeError as error:
        raise UnmaskError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None


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
