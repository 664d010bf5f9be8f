"""`unmask eval`: likelihood of texts, exact match of answers, and the quality set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.cli.options import Device, Dtype, Json, Tokens, decodes, load, text_of
from unmask.cli.report import report
from unmask.errors import UnmaskError


@decodes("rule", "threshold", "block_length")
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name or a checkpoint folder.")],
    files: Annotated[
        list[Path] | None, typer.Argument(help="UTF-8 texts to score; .jsonl: rows to answer; none: the quality set.")
    ] = None,
    method: Annotated[str, typer.Option(help="auto, exact, blockwise or nelbo.")] = "auto",
    samples: Annotated[int, typer.Option(help="Masks per window of the bound.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    characters: Annotated[int, typer.Option(help="Score only so many characters of each file; 0: all.")] = 0,
    modes: Annotated[
        str, typer.Option(help="Of the quality set: modes to compare, the first is the yardstick.")
    ] = "ar",
    limit: Annotated[
        int | None, typer.Option(help="Of the quality set: items of each kind; of .jsonl: rows of each file.")
    ] = None,
    max_new_tokens: Tokens = 256,
    device: Device = "cpu",
    dtype: Dtype = None,
    as_json: Json = False,
    **decoding: Any,
) -> None:
    """Likelihood of texts: exact, per block, or the NELBO with its standard error; without texts, the quality
    set, in every mode given; for .jsonl files of prompts and answers, how many are answered exactly right.

    Example: `unmask eval austen data/austen/persuasion.txt --samples 8`, `unmask eval default --modes ar,diffusion`,
    `unmask eval assist test.jsonl --limit 200`
    """
    lm = load(model, device, dtype)
    if not files:
        return _quality(lm, modes.split(","), decoding, limit, as_json)
    from unmask.evaluation.exact import read_texts

    most = limit or 1 << 30
    documents = {path: read_texts(path, most) if path.suffix == ".jsonl" else [text_of(path)] for path in files}
    to_answer = [path for path, texts in documents.items() if texts is None]
    if to_answer:
        if len(to_answer) < len(files):
            raise UnmaskError("texts are scored and prompts are answered; give files of one kind")
        return _answers(lm, to_answer, most, max_new_tokens, decoding, as_json)

    from rich.console import Console
    from rich.progress import Progress

    from unmask.objectives.likelihood import Likelihood

    parts = {path: [text[: characters or None] for text in texts or []] for path, texts in documents.items()}
    for path, texts in parts.items():
        if not all(texts):
            raise UnmaskError(f"{path} is empty; there is nothing to score")
    flat = [text for texts in parts.values() for text in texts]
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        task = progress.add_task("scoring", total=1.0)
        scores = lm.likelihood(flat, method, samples, seed, progress=lambda x: progress.update(task, completed=x))
    records = []
    rows = []
    for path, texts in parts.items():
        score = Likelihood.total([scores.pop(0) for _ in texts])
        length = sum(map(len, texts))
        per_char = 1 / math.log(2) / length
        bits, error = score.nats * per_char, score.std_error * per_char
        records.append(
            {
                "file": str(path),
                "method": score.method,
                "nats": score.nats,
                "std_error": score.std_error,
                "tokens": score.tokens,
                "characters": length,
                "bits_per_character": bits,
                "bits_per_character_error": error,
                "bits_per_byte": score.bits_per_byte,
                "perplexity": score.perplexity,
            }
        )
        figures = [f"{score.nats / score.tokens:.4f}", f"{bits:.4f} ± {error:.4f}", f"{score.bits_per_byte:.4f}"]
        rows.append([path.name, score.method, *figures, f"{score.perplexity:.2f}"])
    columns = ["file", "method", "nats/token", "bits/character", "bits/byte", "perplexity"]
    report(records, f"likelihood under {lm.name}", columns, rows, as_json)


def _answers(
    lm: Any, files: list[Path], limit: int, max_new_tokens: int, decoding: dict[str, Any], as_json: bool
) -> None:
    """Exact match of the answers to rows of each file."""
    from rich.console import Console
    from rich.progress import Progress

    from unmask.evaluation.exact import exact_match, read_rows

    records = []
    read = [(path, read_rows(path, limit)) for path in files]
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        for path, found in read:
            task = progress.add_task(path.name, total=1.0)
            options = {"temperature": 0.0, **decoding}
            result = exact_match(lm, found, max_new_tokens, options, lambda x, t=task: progress.update(t, completed=x))  # type: ignore[misc]
            records.append({"file": str(path), **result})
    rows = []
    for r in records:
        exact = f"{r['exact_match']:.1f} ({r['low']:.1f} to {r['high']:.1f})"
        rows.append([Path(r["file"]).name, str(r["rows"]), exact, f"{r['tokens_per_step']:.2f}"])
    report(records, f"answers of {lm.name}", ["file", "rows", "exactly right, %", "tokens/step"], rows, as_json)


def _quality(lm: Any, modes: list[str], decoding: dict[str, Any], limit: int | None, as_json: bool) -> None:
    """The quality set in several modes, each against the first."""
    from rich.console import Console

    from unmask.evaluation import tasks
    from unmask.evaluation.answers import choices, quality

    items, likely = tasks.load(limit=limit)
    results: dict[str, dict[str, Any]] = {}
    with Console(stderr=True).status("starting") as status:
        for mode in map(str.strip, modes):

            def show(text: str, mode: str = mode) -> None:
                status.update(f"{mode}: {text}")

            results[mode] = quality(lm, items, {"mode": mode, "temperature": 0.0, **decoding}, show)
        by_likelihood = choices(lm, likely, lambda text: status.update(f"likelihood: {text}")) if likely else None
    first = next(iter(results.values()))
    compared = {mode: tasks.paired(first, result)["all"] for mode, result in results.items()}
    kept = {m: {k: v for k, v in r.items() if k not in ("answers", "passed")} for m, r in results.items()}
    kinds = by_likelihood and by_likelihood["kinds"]
    names = [*first["kinds"], "all"]
    rows = []
    for mode, result in results.items():
        cells = [f"{(result['kinds'] | {'all': result['all']})[name]['score']:.1f}" for name in names]
        cells.append(f"{compared[mode]['difference']:+.1f} ± {compared[mode]['std_error']:.1f}")
        cells += [f"{result[name]:.2f}" for name in ("tokens_per_step", "bits_per_token", "entropy")]
        rows.append([mode, *cells])
    columns = ["mode", *names, "against first", "tokens/step", "bits/token", "entropy"]
    record = {"modes": kept, "against_first": compared, "likelihood": kinds}
    report(record, f"{lm.name}, {len(items)} items", columns, rows, as_json)
    if kinds and not as_json:
        told = [f"{kind} {s['score']:.1f} ± {s['std_error']:.1f} ({s['n']})" for kind, s in kinds.items()]
        print(f"by likelihood, the same in every mode: {', '.join(told)}")
