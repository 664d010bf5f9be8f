"""`unmask bench schema`: is every text that a schema asks for valid, and what does holding to it cost?"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from benchmarks.schema_set import SCHEMAS

from unmask.cli.options import Backend, Device, Dtype, Json, load
from unmask.cli.report import print_record
from unmask.decoding.request import MODES
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM

TEMPERATURES = (0.0, 0.3, 0.6, 0.9, 1.2)
TIGHT = 5  # every so manyth request has room for the shortest text and no more


@dataclass(frozen=True)
class Asked:
    """One request and what came of it."""

    schema: str
    mode: str
    temperature: float
    seed: int
    room: int  # tokens it might take
    tokens: int
    steps: int
    seconds: float
    free_tokens: int  # of the same request without a schema, with as much room as this one used
    free_seconds: float
    fault: str  # why it is not valid; empty if it is
    text: str


@dataclass(frozen=True)
class SchemaBench:
    """All requests, and the seconds that compiling took."""

    model: str
    asked: tuple[Asked, ...]
    compile_seconds: dict[str, float]  # of each schema
    vocabulary_seconds: float  # of the first use: reading what tokens spell, a schema compiled with it

    @property
    def faults(self) -> list[Asked]:
        return [one for one in self.asked if one.fault]

    def figures(self, mode: str | None = None) -> dict[str, float]:
        """Requests, valid ones and speeds of a mode, or of all."""
        own = [one for one in self.asked if mode in (None, one.mode)]
        return {
            "requests": len(own),
            "valid": sum(not one.fault for one in own),
            "tokens_per_second": sum(one.tokens for one in own) / sum(one.seconds for one in own),
            "free_tokens_per_second": sum(one.free_tokens for one in own) / sum(one.free_seconds for one in own),
            "tokens_per_step": sum(one.tokens for one in own) / max(1, sum(one.steps for one in own)),
        }

    def to_dict(self) -> dict[str, Any]:
        modes = dict.fromkeys(one.mode for one in self.asked)
        return {
            "model": self.model,
            "all": self.figures(),
            "modes": {mode: self.figures(mode) for mode in modes},
            "compile_median": statistics.median(self.compile_seconds.values()),
            "compile_seconds": self.compile_seconds,
            "vocabulary_seconds": self.vocabulary_seconds,
            "faults": [asdict(one) for one in self.faults],
        }


def bench_schema(lm: DiffusionLM, requests: int, room: int, progress: Callable[[str], None]) -> SchemaBench:
    """So many requests, over all schemas, modes and temperatures in turn; each again without its schema."""
    try:
        from jsonschema import Draft202012Validator as Validator
    except ImportError:
        raise UnmaskError("checking texts against schemas needs 'jsonschema'; run: pip install jsonschema") from None
    ways = list(itertools.product(MODES[lm.config.layout], TEMPERATURES))
    names = list(SCHEMAS)[:requests]
    compiled = dict[str, float]()
    began = time.perf_counter()
    lm.grammar(regex="a?")
    first = time.perf_counter() - began
    for name in names:
        progress(f"compiling {name}")
        began = time.perf_counter()
        lm.grammar(SCHEMAS[name])
        compiled[name] = time.perf_counter() - began
    lm.generate(_prompt(lm, "a cat"), 4)
    asked = []
    for number in range(requests):
        name = names[number % len(names)]
        # each round meets every schema in another way
        mode, temperature = ways[(number + number // len(names)) % len(ways)]
        schema = SCHEMAS[name]
        prompt = _prompt(lm, name)
        shortest = lm.grammar(schema).shortest
        most = shortest if number % TIGHT == TIGHT - 1 else max(room, shortest)
        progress(f"{number + 1} of {requests}: {name}, {mode}, temperature {temperature}")
        options: dict[str, Any] = {"mode": mode, "temperature": temperature, "seed": number}
        began = time.perf_counter()
        out = lm.generate(prompt, most, json_schema=schema, **options)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        free = lm.generate(prompt, max(1, len(out.token_ids)), **options)
        free_seconds = time.perf_counter() - began
        fault = _fault(out.text, Validator(schema, format_checker=Validator.FORMAT_CHECKER))
        made = (len(out.token_ids), out.steps, seconds, len(free.token_ids), free_seconds)
        asked.append(Asked(name, mode, temperature, number, most, *made, fault, out.text))
    return SchemaBench(lm.name, tuple(asked), compiled, first)


def _prompt(lm: DiffusionLM, what: str) -> Any:
    asked = f"Write {what} as JSON."
    return [{"role": "user", "content": asked}] if lm.chat_template else asked + "\n"


def _fault(text: str, validator: Any) -> str:
    """Why a text is not valid, in a line; empty if it is."""
    try:
        error = next(iter(validator.iter_errors(json.loads(text))), None)
    except ValueError as wrong:
        return f"not JSON: {wrong}"
    return "" if error is None else str(error.message)[:200]


def command(
    model: Annotated[str, typer.Argument(help="A model's name or folder.")] = "default",
    requests: Annotated[int, typer.Option(help="Over 30 schemas, all modes and temperatures of 0 to 1.2.")] = 300,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Room of most requests.")] = 128,
    backend: Backend = "auto",
    device: Device = "cpu",
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Texts under 30 JSON schemas: how many are valid, tokens/s with and without the schema, seconds to compile it.

    Exits with 1 if one is not valid. Every fifth request has room for the shortest valid text and no more.

    Example: `unmask bench schema default`, `unmask bench schema austen --requests 30`
    """
    from rich.console import Console

    from unmask.cli.terminal import table

    if requests < 1 or max_new_tokens < 1:
        raise UnmaskError("--requests and --max-new-tokens must be at least 1")
    lm = load(model, device, dtype, backend)
    with Console(stderr=True).status("starting") as status:
        result = bench_schema(lm, requests, max_new_tokens, status.update)
    record = result.to_dict()
    if as_json:
        print_record(record)
    else:
        rows = [
            [
                name,
                f"{own['valid']:.0f}/{own['requests']:.0f}",
                f"{own['tokens_per_second']:.1f}",
                f"{own['free_tokens_per_second']:.1f}",
                f"{own['tokens_per_step']:.2f}",
            ]
            for name, own in {**record["modes"], "all": record["all"]}.items()
        ]
        columns = ["mode", "valid", "tokens/s", "without schema", "tokens/step"]
        Console().print(table(f"{lm.name}, {requests} requests, {len(result.compile_seconds)} schemas", columns, rows))
        slowest = max(result.compile_seconds, key=lambda name: result.compile_seconds[name])
        print(
            f"compiling a schema: median {record['compile_median']:.3f} s, at most "
            f"{result.compile_seconds[slowest]:.3f} s ({slowest}); "
            f"reading the vocabulary, once: {result.vocabulary_seconds:.2f} s"
        )
        for one in result.faults:
            print(f"not valid: {one.schema}, {one.mode}, temperature {one.temperature}, seed {one.seed}: {one.fault}")
    if result.faults:
        raise typer.Exit(1)
