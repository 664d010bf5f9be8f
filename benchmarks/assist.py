"""Household commands to calls: exact answers, intents, slots and speed of block diffusion beside its AR twin."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from benchmarks.llama_twin import LlamaTwin, write_gguf
from rich.console import Console
from rich.progress import track

from unmask import DiffusionLM
from unmask.backends.native import network as native
from unmask.cli.options import Json, load, numbers, shares
from unmask.cli.report import report
from unmask.errors import UnmaskError
from unmask.evaluation.figures import share as interval
from unmask.layout import BEHIND_TEXT
from unmask.picture import picture
from unmask.structured.prompt_lists import answers_to

Calls = list[dict[str, Any]]
KEPT = 1 << 30  # bytes of homes' keys and values


@dataclass(frozen=True)
class Answer:
    """What was written, in how many steps, and in how many seconds."""

    text: str
    steps: int
    seconds: float


@dataclass
class Way:
    """One model decoded in one way, and what it did with the rows."""

    name: str
    lm: DiffusionLM
    options: dict[str, Any]
    answers: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)  # of each round, by row

    @property
    def kind(self) -> str:
        """What it has in common with ways of other thresholds."""
        length = self.options.get("block_length")
        return self.name if "threshold" not in self.options else f"diffusion, blocks of {length or 'its own'}"

    def answer(self, prompt: str, longest: int, grammar: Any) -> Answer:
        """Of a prompt, with what `grammar` made for it."""
        fits = min(longest, self.lm.room(len(self.lm.encode(prompt)[0])))
        began = time.perf_counter()
        out = self.lm.generate(prompt, fits, temperature=0.0, grammar=grammar, **self.options)
        return Answer(out.text, out.steps, time.perf_counter() - began)

    def grammar(self, prompt: str) -> Any:
        """What answers to a prompt of this home are held to."""
        return compiled(self.lm, prompt)


@cache
def compiled(lm: DiffusionLM, prompt: str) -> Any:
    """The grammar of a home, compiled once for all ways of a model."""
    return lm.grammar(answers_to(lm.answer_schema, prompt))


@dataclass
class LlamaWay(Way):
    """The AR twin in llama.cpp, under its grammar of the same schema."""

    llama: LlamaTwin | None = None

    def answer(self, prompt: str, longest: int, grammar: Any) -> Answer:
        assert self.llama is not None
        began = time.perf_counter()
        text, tokens = self.llama.answer(self.lm.encode(prompt)[0], longest, grammar)
        return Answer(text, tokens, time.perf_counter() - began)

    def grammar(self, prompt: str) -> Any:
        assert self.llama is not None
        schema = {k: v for k, v in answers_to(self.lm.answer_schema, prompt).items() if k != "x-guidance"}
        return self.llama.grammar(schema)


def percent(right: int, count: int) -> str:
    """A share in percent with its 95% interval."""
    share, low, high = interval(right, count)
    return f"{share:.1f} ({low:.1f} to {high:.1f})"


def slots(calls: Calls) -> Counter[tuple[int, str, str, str]]:
    """Every argument of every call, with the place and the intent of its call."""
    return Counter(
        (place, call["name"], name, json.dumps(value))
        for place, call in enumerate(calls)
        for name, value in call["arguments"].items()
    )


def score(answers: list[str], expected: list[Calls]) -> dict[str, str]:
    """Exact match of the parsed calls, right lists of intents, and F1 of arguments."""
    exact = intents = hit = said = true = 0
    for text, right in zip(answers, expected, strict=True):
        try:
            calls = json.loads(text)
        except json.JSONDecodeError:  # cut off at its longest
            calls = []
        exact += calls == right
        intents += [call["name"] for call in calls] == [call["name"] for call in right]
        own, wanted = slots(calls), slots(right)
        hit += (own & wanted).total()
        said += own.total()
        true += wanted.total()
    f1 = 2 * hit / (said + true) if said + true else 1.0
    count = len(expected)
    return {"exact %": percent(exact, count), "intents %": percent(intents, count), "slot F1": f"{100 * f1:.1f}"}


def read_homes(ways: list[Way], asked: dict[str, list[tuple[str, Any]]]) -> None:
    """Lets every way answer another command of each home, and keeps what it read."""
    for way in ways:
        if isinstance(way, LlamaWay):
            raise UnmaskError("--home-read is not for llama.cpp, which would read a home anew: leave out --llama")
        way.lm.keep_prefixes(KEPT)
        for prompt, grammar in asked[way.name]:
            way.answer(prompt[: prompt.rindex("> ")] + "> wait\n", 1, grammar)


def command(
    rows: Annotated[Path, typer.Argument(help="Rows of tools/assist/make.py.")],
    diffusion: Annotated[str, typer.Option(help="The model that denoises.")] = "assist",
    ar: Annotated[str, typer.Option(help="Its AR twin.")] = "assist-ar",
    thresholds: Annotated[str, typer.Option(help="Of diffusion, with commas.")] = "0.7,0.9,0.97",
    blocks: Annotated[str, typer.Option(help="Block lengths of diffusion, with commas; empty: its own.")] = "",
    limit: Annotated[int, typer.Option(help="Rows that are scored, at most.")] = 2000,
    timed: Annotated[int, typer.Option(help="Rows that are timed.")] = 100,
    rounds: Annotated[int, typer.Option(help="Rounds of timing, the ways in turns.")] = 5,
    longest: Annotated[int, typer.Option(help="New tokens at most.")] = 192,
    build: Annotated[str, typer.Option(help="Of the native forward: amx, vnni, avx2; else this CPU's fastest.")] = "",
    llama: Annotated[bool, typer.Option(help="llama.cpp on the AR twin too (`pip install xllamacpp gguf`).")] = False,
    read: Annotated[bool, typer.Option("--home-read", help="Each home was read before, as in a server.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw score over speed (PNG) here.")] = None,
    as_json: Json = False,
) -> None:
    """Scores and times both models under the same grammar at batch 1; whole answers, prompt reading counted.

    The grammar of a home is compiled once, before its commands are timed. Tokens are those that the twin spells an
    answer with.

    Example: `unmask bench assist runs/assist-data/test.jsonl`
    """
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()[:limit]]
    prompts = [row["prompt"] for row in found]
    expected: list[Calls] = [json.loads(row["response"]) for row in found]
    if build:
        native.BUILDS = (f"_forward_{build}",)
    twin = load(ar, "cpu", None)
    spelled = twin.tokenizer  # counts the tokens of every answer: one of diffusion may have others, that write no text
    assert spelled is not None
    ways = [Way("ar twin", twin, {}), Way("ar twin, verify", twin, {"mode": "verify"})]
    denoiser = load(diffusion, "cpu", None)
    if denoiser.config.layout in BEHIND_TEXT:  # it writes token by token as well
        ways.append(Way("ar", denoiser, {"mode": "ar"}))
    for n in [*numbers("--blocks", blocks)] if blocks else [None]:
        of_blocks = f", blocks of {n}" if n else ""
        if denoiser.config.layout in BEHIND_TEXT:
            ways.append(Way(f"verify{of_blocks}", denoiser, {"mode": "verify", "block_length": n}))
        for t in shares("--thresholds", thresholds):
            options = {"mode": "diffusion", "threshold": t, "block_length": n}
            ways.append(Way(f"diffusion {t}{of_blocks}", denoiser, options))
    if llama:
        whole = load(ar, "cpu", None, "torch")  # whose weights can be written
        made = write_gguf(whole, Path(tempfile.mkdtemp()) / "twin.gguf")
        ways.append(LlamaWay("llama.cpp, ar twin", whole, {}, llama=LlamaTwin(made, os.cpu_count() or 1)))
    for prompt in track(prompts, "scored", console=Console(stderr=True), transient=True):
        for way in ways:
            answer = way.answer(prompt, longest, way.grammar(prompt))
            way.answers.append(answer.text)
            way.tokens.append(len(spelled.encode(answer.text, add_special_tokens=False).ids))
            way.steps.append(answer.steps)
    asked = {way.name: [(prompt, way.grammar(prompt)) for prompt in prompts[:timed]] for way in ways}
    if read:
        read_homes(ways, asked)
    for _ in range(rounds):
        for way in ways:
            way.seconds.append([way.answer(prompt, longest, grammar).seconds for prompt, grammar in asked[way.name]])
    lines = [summary(way, ways[0], expected, timed) for way in ways]
    columns = list(lines[0])
    title = f"{len(found)} commands, {rounds} rounds of {min(timed, len(found))} for times"
    if picture is not None:
        draw(lines, [way.kind for way in ways], picture, title)
    report(lines, title, columns, [list(line.values()) for line in lines], as_json)


def draw(lines: list[dict[str, str]], kinds: list[str], path: Path, title: str) -> None:
    """Exact match with its interval over tokens/s: a colour for each kind of way, a line through its thresholds."""
    with picture(path) as (axes,):
        for kind in dict.fromkeys(kinds):
            some = [line for line, own in zip(lines, kinds, strict=True) if own == kind]
            speed = [float(line["tokens/s"]) for line in some]
            middle, low, high = np.array([re.findall(r"[\d.]+", line["exact %"]) for line in some], float).T
            axes.errorbar(speed, middle, [middle - low, high - middle], marker="o", capsize=2, label=kind)
            for line, x, y in zip(some, speed, middle, strict=True):
                threshold = re.search(r"0\.\d+", line["way"])
                axes.annotate(threshold.group() if threshold else "", (x, y), fontsize=7)
        axes.set(xlabel="tokens/s, whole answers", ylabel="exact, % (95% interval)", title=title)


def summary(way: Way, twin: Way, expected: list[Calls], timed: int) -> dict[str, str]:
    """One line of the table."""
    median = [statistics.median(times) for times in zip(*way.seconds, strict=True)]
    of_twin = [statistics.median(times) for times in zip(*twin.seconds, strict=True)]
    tokens, steps = sum(way.tokens), sum(way.steps)
    line = {"way": way.name, **score(way.answers, expected), "tokens/step": f"{tokens / steps:.1f}"}
    line["tokens/s"] = f"{sum(way.tokens[: len(median)]) / sum(median):.0f}"
    rates = [sum(w.tokens[: len(m)]) / sum(m) for w, m in ((way, median), (twin, of_twin))]
    line["over ar"] = f"{rates[0] / rates[1]:.2f}"
    for calls in (1, 4):
        own = sorted(s for s, right in zip(median, expected, strict=False) if len(right) == calls)
        quantiles = [1e3 * own[int(q * (len(own) - 1))] for q in (0.5, 0.95)] if own else [math.nan] * 2
        line[f"ms, {calls} call{'s' * (calls > 1)}"] = f"{quantiles[0]:.0f} / {quantiles[1]:.0f}"
    return line
