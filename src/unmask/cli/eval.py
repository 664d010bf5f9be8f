"""`unmask eval`: likelihood of texts, and the quality set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli.options import (
    Block,
    Device,
    Dtype,
    Json,
    Rule,
    Threshold,
    load,
)
from unmask.errors import UnmaskError


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
        return quality_command(model, modes, rule, threshold, block_length, limit, device, dtype, as_json)

    from rich.console import Console
    from rich.progress import Progress

    from unmask.cli.terminal import table

    lm = load(model, device, dtype)
    texts = []
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
    from unmask.evaluation.answers import choices, quality

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
