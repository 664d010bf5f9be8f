"""`unmask eval`: likelihood of texts, exact match of answers, generated texts, and the quality set."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import Device, Dtype, Json, Seed, Tokens, check_least, decodes, load, shares, text_of
from unmask.cli.report import report
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.evaluation.exact import Row

DECODING = ("rule", "sampler", "block_length", "max_denoising_steps", "temperature", "top_p", "top_k")


@decodes(*DECODING)
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name or a checkpoint folder.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="UTF-8 texts, or .jsonl rows to score and answer; none: the quality set."),
    ] = None,
    method: Annotated[str, typer.Option(help="auto, exact, blockwise, nelbo, or llada's own protocol.")] = "auto",
    samples: Annotated[int, typer.Option(help="Masks per window of the bound.")] = 16,
    seed: Seed = 0,
    characters: Annotated[int, typer.Option(help="Score only so many characters of each text; 0: all.")] = 0,
    modes: Annotated[
        str, typer.Option("--modes", "--mode", help="Modes to compare, the first is the yardstick; the model's own.")
    ] = "",
    thresholds: Annotated[
        str, typer.Option("--thresholds", "--threshold", help="Thresholds to compare, with commas; the model's own.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(help="Of the quality set: items of each kind; of .jsonl: rows of each file.")
    ] = None,
    generate: Annotated[
        int, typer.Option(help="Write so many texts, behind the rows' prompts where there are any, and measure them.")
    ] = 0,
    judge: Annotated[str, typer.Option(help="AR model under which generated texts have a perplexity.")] = "default",
    max_new_tokens: Tokens = 256,
    device: Device = "cpu",
    dtype: Dtype = None,
    as_json: Json = False,
    **decoding: Any,
) -> None:
    """Likelihood of texts: exact, per block, or the NELBO, of responses only where rows have prompts, and how many of
    those are answered exactly right; without texts, the quality set. Several modes or thresholds are compared, with
    the area under their accuracy-parallelism curve (AUP). With --generate, perplexity under a judge, entropy and
    distinct n-grams of the model's own texts. Figures have 95% intervals.

    Example: `unmask eval austen data/austen/persuasion.txt --samples 8`, `unmask eval default --modes ar,diffusion`,
    `unmask eval assist test.jsonl --limit 200`, `unmask eval austen --generate 64 --judge austen-ar -n 200`
    """
    check_least(0, generate=generate, characters=characters)
    check_least(1, limit=limit, samples=samples, max_new_tokens=max_new_tokens)
    seed = seed or 0
    lm = load(model, device, dtype)
    options = {name: value for name, value in decoding.items() if value is not None}
    ways = _ways(modes, thresholds)
    rows = {path: _rows(path, limit or 1 << 30, characters) for path in files or []}
    if generate:
        _generated(
            lm, load(judge, device, None), rows, ways, {**options, "seed": seed}, generate, max_new_tokens, as_json
        )
    elif rows:
        greedy = {"temperature": 0.0, "seed": seed, **options}
        _files(lm, rows, (method, samples, seed), ways, greedy, max_new_tokens, as_json)
    else:
        _quality(lm, ways, {"temperature": 0.0, **options}, limit, as_json)


def _ways(modes: str, thresholds: str) -> dict[str, dict[str, Any]]:
    """Options of every mode and threshold to compare, by name."""
    wanted = [mode.strip() for mode in modes.split(",") if mode.strip()] or [""]
    cuts = shares("--thresholds", thresholds) if thresholds else [None]
    out = {}
    for mode, cut in itertools.product(wanted, cuts):
        at = None if mode in ("ar", "verify") else cut
        given = {name: value for name, value in (("mode", mode), ("threshold", at)) if value not in ("", None)}
        out[", ".join(map(str, given.values())) or "own"] = given
    return out


def _cells(record: dict[str, Any], digits: dict[str, int]) -> list[str]:
    """Figures of a record, by name, with their intervals."""
    from unmask.evaluation.figures import Figure

    return [Figure.of(record, name).shown(places) for name, places in digits.items()]


def _rows(path: Path, limit: int, characters: int) -> list[Row]:
    from unmask.evaluation.exact import Row, read_rows

    if path.suffix == ".jsonl":
        return read_rows(path, limit)
    text = text_of(path)[: characters or None]
    if not text:
        raise UnmaskError(f"{path} is empty; there is nothing to score")
    return [Row(text)]


def _files(
    lm: Any,
    files: dict[Path, list[Row]],
    scoring: tuple[str, int, int],
    ways: dict[str, dict[str, Any]],
    options: dict[str, Any],
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Likelihood of each file's texts, and exact match where its rows ask."""
    from rich.console import Console
    from rich.progress import Progress

    from unmask.evaluation.exact import answers, exact_match, likelihood
    from unmask.evaluation.figures import Figure, aup_of_items

    records = []
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:

        def bar(name: str) -> Any:
            task = progress.add_task(name, total=1.0)
            return lambda share: progress.update(task, completed=share)

        for path, rows in files.items():
            record: dict[str, Any] = {"file": str(path), "rows": len(rows)}
            record |= likelihood(lm, rows, *scoring, bar(f"{path.name}: scoring"))
            asking = [row for row in rows if row.asks]
            results = []
            for name, way in ways.items() if asking else ():
                outs = answers(lm, asking, max_new_tokens, {**options, **way}, bar(f"{path.name}: {name}"))
                results.append({"way": name, **exact_match(asking, outs)})
            if len(results) > 1:
                record |= aup_of_items([result["items"] for result in results]).named("aup")
            record["answers"] = [{k: v for k, v in result.items() if k != "items"} for result in results]
            records.append(record)
    if as_json:
        report(records, "", [], [], as_json)
        return

    names = {"nats_per_token": 4, "bits_per_character": 4, "bits_per_byte": 4, "perplexity": 2}
    table = [[Path(r["file"]).name, r["method"], *_cells(r, names)] for r in records]
    columns = ["file", "method", "nats/token", "bits/character", "bits/byte", "perplexity"]
    report(records, f"likelihood under {lm.name}", columns, table, as_json)
    table = [
        [Path(r["file"]).name, a["way"], str(a["rows"]), *_cells(a, {"exact_match": 1, "tokens_per_step": 2})]
        for r in records
        for a in r["answers"]
    ]
    if table:
        columns = ["file", "way", "rows", "exactly right, %", "tokens/step"]
        report(records, f"answers of {lm.name}", columns, table, as_json)
    for record in records:
        if "aup" in record:
            print(f"AUP of {Path(record['file']).name}: {Figure.of(record, 'aup').shown(1)}")


def _generated(
    lm: Any,
    judge: Any,
    files: dict[Path, list[Row]],
    ways: dict[str, dict[str, Any]],
    options: dict[str, Any],
    count: int,
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Measures of `count` texts, written behind the rows' prompts in turn, or behind nothing."""
    from rich.console import Console
    from rich.progress import Progress

    from unmask.evaluation.answers import check_judge, generative
    from unmask.evaluation.exact import Row, answers

    check_judge(judge)
    rows = [row for some in files.values() for row in some]
    asking = [row for row in rows if row.prompt is not None] or [Row("", prompt="")]
    wanted = [asking[place % len(asking)] for place in range(count)]
    prompts = [row.prompt for row in wanted]
    given = [p if isinstance(p, str) else "\n".join(str(one["content"]) for one in p) for p in prompts]
    records = []
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        for name, way in ways.items():
            task = progress.add_task(f"writing, {name}", total=1.0)
            drawn = {**options, **way, "seed": options["seed"]}
            outs = answers(lm, wanted, max_new_tokens, drawn, lambda x, t=task: progress.update(t, completed=x))  # type: ignore[misc]
            documents = [row.text for row in rows if not row.asks]
            records.append({"way": name, "texts": count, **generative(judge, outs, given, documents)})
    names = {"perplexity": 1, "entropy": 2, "distinct_1": 1, "distinct_2": 1, "distinct_3": 1, "tokens_per_step": 2}
    table = []
    for record in records:
        mauve = [f"{record['mauve']:.3f}"] if "mauve" in record else []
        table.append([str(record["way"]), *_cells(record, names), *mauve])
    columns = ["way", f"perplexity, {judge.name}", "entropy", "distinct 1, %", "2", "3", "tokens/step"]
    columns += ["MAUVE"] if "mauve" in records[0] else []
    report(records, f"{count} texts of {lm.name}, {max_new_tokens} tokens at most", columns, table, as_json)


def _quality(
    lm: Any, ways: dict[str, dict[str, Any]], options: dict[str, Any], limit: int | None, as_json: bool
) -> None:
    """The quality set in several modes, each against the first."""
    from rich.console import Console

    from unmask.evaluation import tasks
    from unmask.evaluation.answers import choices, quality
    from unmask.evaluation.figures import aup_of_items, share

    items, likely = tasks.load(limit=limit)
    results: dict[str, dict[str, Any]] = {}
    with Console(stderr=True).status("starting") as status:
        for name, way in ways.items():

            def show(text: str, name: str = name) -> None:
                status.update(f"{name}: {text}")

            results[name] = quality(lm, items, {**options, **way}, show)
        by_likelihood = choices(lm, likely, lambda text: status.update(f"likelihood: {text}")) if likely else None
    first = next(iter(results.values()))
    compared = {name: tasks.paired(first, result) for name, result in results.items()}
    kept = {n: {k: v for k, v in r.items() if k not in ("answers", "passed", "items")} for n, r in results.items()}
    kinds = by_likelihood and by_likelihood["kinds"]
    area = aup_of_items([result["items"] for result in results.values()]) if len(results) > 1 else None
    names = [*first["kinds"], "all"]
    rows = []
    for name, result in results.items():
        cells = [f"{(result['kinds'] | {'all': result['all']})[kind]['score']:.1f}" for kind in names[:-1]]
        right = round(result["all"]["n"] * result["all"]["score"] / 100)
        cells.append(share(right, result["all"]["n"]).shown(1))
        cells.append(f"{compared[name]['difference']:+.1f} ± {1.96 * compared[name]['std_error']:.1f}")
        rows.append([name, *cells, *_cells(result, {"tokens_per_step": 2, "bits_per_token": 2, "entropy": 2})])
    columns = ["mode", *names, "against first", "tokens/step", "bits/token", "entropy"]
    record = {"modes": kept, "against_first": compared, "likelihood": kinds, **(area.named("aup") if area else {})}
    report(record, f"{lm.name}, {len(items)} items", columns, rows, as_json)
    if as_json:
        return
    if area:
        print(f"AUP: {area.shown(1)}")
    if kinds:
        told = [f"{kind} {s['score']:.1f} ± {1.96 * s['std_error']:.1f} ({s['n']})" for kind, s in kinds.items()]
        print(f"by likelihood, the same in every mode: {', '.join(told)}")
