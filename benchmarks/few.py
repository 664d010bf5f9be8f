"""`unmask bench few`: what few steps cost, before and after distillation: perplexity under a judge beside entropy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from unmask.cli.options import Json, load, numbers, text_of
from unmask.cli.report import print_record
from unmask.cli.terminal import table
from unmask.errors import UnmaskError
from unmask.evaluation.answers import entropies, judged
from unmask.evaluation.figures import Figure
from unmask.lm import DiffusionLM
from unmask.models.config import ModelConfig
from unmask.picture import picture
from unmask.prompts import encode_text

HELD_OUT = Path("data/austen/persuasion.txt")
BATCH = 16


def sampling(config: ModelConfig, steps: int) -> dict[str, Any]:
    """Options of ancestral sampling in so many forwards: masks by the rule that is one with it, random tokens by moves
    to time 0, whose noise needs no step to be removed."""
    if config.corruption == "uniform":
        return {"sampler": "ancestral", "noise_removal": "none", "max_denoising_steps": steps}
    return {"rule": "random", "remask_budget": 0, "max_denoising_steps": steps}


def measured(rows: list[list[int]], texts: list[list[int]], lm: DiffusionLM, judge: DiffusionLM) -> dict[str, Any]:
    """Figures of texts that were written after rows of given ids."""
    decode = lm.tokenizer.decode  # type: ignore[union-attr]
    given = [judge.encode(decode(row))[0] if row[1:] else None for row in rows]
    return {
        "perplexity": judged(judge, [decode(ids) for ids in texts], given),
        "entropy": entropies(texts),
        "sample": decode(rows[0] + texts[0]),
    }


def write(lm: DiffusionLM, rows: list[list[int]], tokens: int, **options: Any) -> list[list[int]]:
    """What the model writes after each row, always as many tokens."""
    out = []
    for first in range(0, len(rows), BATCH):
        some = lm.generate(rows[first : first + BATCH], tokens, seed=first, **options)
        out += [one.canvas.tolist()[-tokens:] for one in some]
    return out


def draw(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """Perplexity over steps, and over entropy, a line for each model and temperature."""
    with picture(path, size=(10, 4), panels=2, title=title) as (left, right):
        for number, key in enumerate(dict.fromkeys((r["model"], r["temperature"]) for r in results)):
            some = [r for r in results if (r["model"], r["temperature"]) == key]
            x, y, h = ([r["steps"] for r in some], [r["perplexity"] for r in some], [r["entropy"] for r in some])
            middle, low, high = np.array(y).T
            spread = [middle - low, high - middle]
            look: Any = {"color": f"C{number}", "label": f"{key[0]}, T {key[1]}" if key[1] else key[0]}
            if x[0] is None:
                left.axhline(middle[0], linestyle=":", **look)
                right.errorbar([h[0][0]], middle, spread, marker="*", **look)
                continue
            left.errorbar(x, middle, spread, marker="o", capsize=2, **look)
            right.errorbar([e[0] for e in h], middle, spread, marker="o", capsize=2, **look)
            for steps, e, p in zip(x, h, middle, strict=True):
                right.annotate(str(steps), (e[0], p), fontsize=7)
        left.set(xlabel="steps", ylabel="perplexity under the judge", xscale="log", yscale="log")
        right.set(xlabel="unigram entropy, nats (numbers: steps)", yscale="log")


def command(
    models: Annotated[list[str], typer.Argument(help="Diffusion models of one tokenizer, undistilled and distilled.")],
    judge: Annotated[str, typer.Option(help="An autoregressive model, or one with such a base.")] = "default",
    ar: Annotated[str, typer.Option(help="The autoregressive twin, for rows of its own; empty: none.")] = "austen-ar",
    text: Annotated[Path, typer.Option(help="Held-out text that prompts are taken from.")] = HELD_OUT,
    steps: Annotated[str, typer.Option(help="Denoising steps, separated by commas.")] = "4,8,16,32,64",
    temperatures: Annotated[str, typer.Option(help="Separated by commas.")] = "1.0,0.8",
    texts: Annotated[int, typer.Option(help="Texts for each row.")] = 32,
    tokens: Annotated[int, typer.Option(help="New tokens of each.")] = 64,
    given: Annotated[int, typer.Option(help="Tokens of each prompt; 0: none.")] = 16,
    rows_file: Annotated[Path | None, typer.Option(help="Keeps rows as JSON; those there are not made again.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the picture (PNG) here.")] = None,
    as_json: Json = False,
) -> None:
    """Perplexity and entropy by steps, of ancestral sampling (of masks: rule random, no remasking).

    Example: `unmask bench few austen runs/austen-few/model --picture few.png`
    """
    from rich.console import Console

    if texts < 2:
        raise UnmaskError("--texts must be at least 2")
    heat = [float(one) for one in temperatures.split(",")]
    asked: list[tuple[str, int | None, float | None]] = [(text.name, None, None)]
    asked += [(ar, None, t) for t in heat if ar]
    asked += [(model, n, t) for t in heat for model in models for n in numbers("--steps", steps)]
    judging = load(judge, "cpu", "float32", "torch")
    first = load(models[0], "cpu", "float32")
    whole = encode_text(text_of(text), first.tokenizer, first.config, first.name)
    places = np.linspace(0, len(whole) - given - tokens, texts).astype(int)
    rows = [[first.config.bos_token_id, *whole[at : at + given]] for at in places]
    note = f"judge {judge}, {texts} texts of {tokens} tokens after {given} of {text.name}, 95% intervals"
    known = rows_file.read_text().splitlines() if rows_file and rows_file.exists() else []
    results = [json.loads(line) for line in known]
    for name, count, temperature in asked:
        key = {"model": name, "steps": count, "temperature": temperature, "settings": note}
        if any(key.items() <= r.items() for r in results):
            continue
        lm = first if name == text.name else load(name, "cpu", "float32")
        if lm.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise UnmaskError(f"model '{name}' has another vocabulary than '{models[0]}'; compare models of one")
        how = sampling(lm.config, count) if count else {}
        if name == text.name:
            written = [whole[at + given : at + given + tokens] for at in places]
        else:
            written = write(lm, rows, tokens, temperature=temperature, **how)
        results.append({**key, **measured(rows, written, lm, judging)})
        if rows_file is not None:
            with rows_file.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    if picture is not None:
        draw(results, picture, note)
    if as_json:
        print_record({"settings": note, "results": results})
        return
    cells = [
        [
            r["model"],
            f"{r['temperature'] or ''}",
            f"{r['steps'] or ''}",
            Figure(*r["perplexity"]).shown(1),
            Figure(*r["entropy"]).shown(),
        ]
        for r in results
    ]
    Console().print(table(note, ["model", "temperature", "steps", "perplexity", "entropy, nats"], cells))
