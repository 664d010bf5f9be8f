"""`unmask bench grammar`: what holding a model to a schema of forty tool calls costs, without the model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer

from unmask.cli.options import Json, Served
from unmask.cli.report import report
from unmask.lm import DiffusionLM
from unmask.structured.grammar import Grammar
from unmask.structured.vocabulary import Vocabulary

ROOMS = ["kitchen", "living room", "bedroom", "bathroom", "hall", "garage", "office", "garden"]
WINDOWS = (32, 64)


def calls(intents: int) -> dict[str, Any]:
    """A schema of so many tool calls, with areas, numbers and free names among their arguments."""
    fields: list[dict[str, Any]] = [
        {"area": {"enum": ROOMS}},
        {"name": {"type": "string", "maxLength": 40}},
        {"brightness": {"type": "integer", "minimum": 0, "maximum": 100}},
        {"temperature": {"type": "number", "minimum": 5, "maximum": 35, "multipleOf": 0.5}},
        {"on": {"type": "boolean"}},
    ]
    schemas = []
    for number in range(intents):
        chosen = {**fields[number % 5], **fields[(number * 3 + 1) % 5]}
        arguments = {"type": "object", "properties": chosen, "required": list(chosen)[:1]}
        properties = {"name": {"const": f"Intent{number}Call"}, "arguments": arguments}
        schemas.append({"type": "object", "properties": properties, "required": ["name", "arguments"]})
    return {"anyOf": schemas}


def milliseconds(work: Callable[[], Any], times: int) -> float:
    """The median of some runs."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def steps(grammar: Grammar, length: int, seed: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of call while a canvas is filled by chance: four proposals a step, then in order."""
    rng = np.random.default_rng(seed)
    took: dict[str, list[float]] = {}

    def timed(name: str, question: Callable[..., Any], *given: Any) -> Any:
        began = time.perf_counter()
        out = question(*given)
        took.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        return out

    ids = np.zeros(length, np.int64)
    is_open = np.ones(length, bool)
    while is_open.any():
        places = is_open.nonzero()[0]
        allowed = timed(f"allowed_at, {length} positions", grammar.allowed_at, ids, is_open)
        tokens = np.array([rng.choice(row.nonzero()[0]) for row in allowed])
        order = rng.permutation(len(places))[:4]
        chosen = (places[order], tokens[order])
        kept = timed(f"accept, {length} positions", grammar.accept, ids, is_open, *chosen)
        ids[chosen[0][kept]] = chosen[1][kept]
        is_open[chosen[0][kept]] = False
    state = grammar.start
    for place in range(length):
        row = timed("allowed, one step of ar", grammar.allowed, state, length - place)
        state = timed("step", grammar.step, state, int(rng.choice(row.nonzero()[0])))
        timed("forced", grammar.forced, state, length - place - 1)
    return took


def bench_grammar(vocabulary: Vocabulary, intents: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds."""
    schema = calls(intents)
    out = {"compile": milliseconds(lambda: Grammar.of_schema(schema, vocabulary), 3)}
    grammar = Grammar.of_schema(schema, vocabulary)
    took: dict[str, list[float]] = {}
    for seed in range(rounds):
        for length in WINDOWS:
            for name, times in steps(grammar, length, seed).items():
                took.setdefault(name, []).extend(times)
    out |= {name: statistics.median(times) for name, times in took.items()}
    names = {"enum": [f"{room.replace(' ', '_')}.sensor_{number}" for number in range(2500 // 8) for room in ROOMS]}
    out["compile 2,496 names"] = milliseconds(lambda: Grammar.of_schema(names, vocabulary), 1)
    return out


def command(
    model: Served = "austen",
    intents: Annotated[int, typer.Option(help="Tool calls in the schema.")] = 40,
    rounds: Annotated[int, typer.Option(help="Canvases of each size that are filled.")] = 5,
    as_json: Json = False,
) -> None:
    """What a grammar costs: compiling a schema of tool calls, and each question that decoding asks of it.

    Example: `unmask bench grammar austen`
    """
    vocabulary = DiffusionLM.from_pretrained(model).grammars.vocabulary
    figures = bench_grammar(vocabulary, intents, rounds)
    rows = [[name, f"{value:.3f}"] for name, value in figures.items()]
    report(figures, f"{model}: {len(vocabulary):,} tokens, {intents} calls", ["what", "ms, median"], rows, as_json)
