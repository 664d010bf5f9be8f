"""One pass of released shapes by columns, random weights: the native forward, torch and llama.cpp in turns.

Beside each stands what no pass can beat: reading the weights once, and its operations at the best rate of torch's
products here. Every round reads other tokens, so that experts come from memory.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from benchmarks import roofline
from benchmarks.llama_twin import LlamaTwin, write_random
from benchmarks.load import SHAPES, TEXT, cut, feed, network_config, write

from unmask import DiffusionLM
from unmask.backends import BACKENDS
from unmask.backends.native.network import cpu, library
from unmask.cli.options import Json, numbers
from unmask.cli.report import print_record
from unmask.errors import UnmaskError
from unmask.evaluation.figures import median
from unmask.layout import Layout
from unmask.machine import cores

LLAMA = "llama.cpp"
FEW = 32  # columns of passes that are made once before any is timed
FEWEST = 3  # rounds that are made however long they take


@dataclass
class Way:
    """One backend: what a pass took, by columns, in every round, and whether its best token was the first way's."""

    name: str
    runs: Any  # a backend of ours, or llama.cpp
    seconds: dict[int, list[float]] = field(default_factory=dict)
    cpu: dict[int, list[float]] = field(default_factory=dict)
    agree: list[bool] = field(default_factory=list)

    def open(self, lm: DiffusionLM, ids: np.ndarray, longest: int, threads: int) -> None:
        """Reads the text that stands before all passes."""
        if self.name == LLAMA:
            self.runs.read([*ids.tolist(), 5], len(ids) + 1)
            return
        self.runs.threads = threads
        self.runs.open(Layout(lm.config.layout, max(lm.config.block_length, 1)), 1, TEXT + longest, True)
        self.runs.forward(feed(ids, 0, 1))

    def read(self, ids: np.ndarray, scored: int) -> tuple[int, float, float]:
        """The best token after the text, and seconds of the pass and of all threads' work."""
        worked = time.process_time()
        if self.name == LLAMA:
            token, seconds = self.runs.read(ids.tolist(), len(ids) - TEXT)
            return token, seconds, time.process_time() - worked
        began = time.perf_counter()
        made = self.runs.forward(feed(ids, TEXT, scored))
        seconds = time.perf_counter() - began
        worked = time.process_time() - worked
        logits = made.text if hasattr(made, "text") else made.logits
        return int(logits[-1].argmax()), seconds, worked

    def note(self, width: int, seconds: float, worked: float) -> None:
        self.seconds.setdefault(width, []).append(seconds)
        self.cpu.setdefault(width, []).append(worked)


def ways(names: list[str], path: Path, threads: int, dtype: str) -> tuple[DiffusionLM, list[Way]]:
    """Backends of one checkpoint, by name, and the model that the first of ours is of."""
    made: dict[str, DiffusionLM] = {}
    for name in names:
        if name != LLAMA:
            made[name] = DiffusionLM.from_pretrained(path, backend=name, dtype=dtype if name == "torch" else None)
            made[name].load_backend()
    lm = next(iter(made.values()))
    return lm, [Way(n, LlamaTwin(path, threads) if n == LLAMA else made[n].backend) for n in names]


def measure(lm: DiffusionLM, tried: list[Way], widths: list[int], scored: int, seconds: float, threads: int) -> int:
    """Passes of every way and width in turns until the time is up; how many rounds there were."""
    random = np.random.default_rng(0)
    known = lm.config.vocab_size - 2
    text = random.integers(5, known, TEXT)
    for way in tried:
        way.open(lm, text, max(widths), threads)
        for width in widths:
            if width <= FEW:
                way.read(np.concatenate([text, random.integers(5, known, width)]), scored)
    until = time.perf_counter() + seconds
    rounds = 0
    while rounds < FEWEST or time.perf_counter() < until:
        for width in widths:
            ids = np.concatenate([text, random.integers(5, known, width)])
            best = {}
            for way in tried if rounds % 2 else tried[::-1]:
                best[way.name], *took = way.read(ids, scored)
                way.note(width, *took)
            for way in tried:
                way.agree.append(best[way.name] == best[tried[0].name])
        rounds += 1
    return rounds


def command(
    shapes: Annotated[
        list[str] | None,
        typer.Argument(help="Of `unmask bench load`; NAME/4 is a quarter of its layers and of its tokens."),
    ] = None,
    backends: Annotated[str, typer.Option(help=f"Some of {', '.join(BACKENDS)}, {LLAMA}.")] = f"native-q4,{LLAMA}",
    columns: Annotated[str, typer.Option(help="Widths of passes.")] = "1,4,16,32,128,512",
    scored: Annotated[int, typer.Option(help="Columns that are scored, from the last on; llama.cpp scores one.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of torch.")] = "float32",
    threads: Annotated[int, typer.Option(help="Of every backend; 0: as many as there are cores.")] = 0,
    minutes: Annotated[float, typer.Option(help="Of rounds, for each shape; there are three at least.")] = 2.0,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="Print what all threads worked, for a busy machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Milliseconds of a pass by columns behind 256 cached tokens, ours beside llama.cpp's on the same Q4_0 weights.

    Example: `unmask bench forward qwen3-0.6b qwen3-8b/4`, or with
    `llada-moe-7b-a1b/16 --backends native,native-q4,torch --scored 32`
    """
    import torch

    names = [name.strip() for name in backends.split(",")]
    widths = numbers("--columns", columns)
    if unknown := [name for name in names if name not in (*BACKENDS, LLAMA)]:
        raise UnmaskError(f"there is no backend '{unknown[0]}'; there are {', '.join(BACKENDS)} and {LLAMA}")
    if names == [LLAMA]:
        raise UnmaskError(f"{LLAMA} is timed beside a backend of ours; name one of {', '.join(BACKENDS)} as well")
    threads = threads or cores()
    torch.set_num_threads(threads)
    records = []
    for asked in shapes or ["qwen3-0.6b", "qwen3-8b/4"]:
        shape, _, part = asked.partition("/")
        if shape not in SHAPES or not (part or "1").isdecimal() or part == "0":
            raise UnmaskError(f"there is no shape '{asked}'; shapes are {', '.join(SHAPES)}, a part of one is NAME/4")
        raw = cut(shape, part=int(part or 1))
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["UNMASK_CACHE"] = str(Path(temporary, "cache"))
            path = Path(temporary, "model")
            if LLAMA in names:
                path = write_random(network_config(raw), path.with_suffix(".gguf"))
            else:
                path.mkdir()
                write(path, raw, shape)
            lm, tried = ways(names, path, threads, dtype)
            rounds = measure(lm, tried, widths, scored, 60 * minutes, threads)
            record = {"shape": asked, "threads": threads, "rounds": rounds, "scored": scored, "cpu": cpu()}
            records.append(record | figures(lm, tried, widths, scored))
            if not as_json:
                show(records[-1], cpu_time)
            del lm, tried
    if as_json:
        print_record(records)


def figures(lm: DiffusionLM, tried: list[Way], widths: list[int], scored: int) -> dict[str, Any]:
    """What was measured, and the floors of the native forward's weights as they are packed."""
    build = library()
    builds = [] if build is None else [Path(build._name).name.partition(".")[0]]
    builds += [way.runs.build for way in tried if way.name == LLAMA]
    told = [{"name": w.name, "seconds": w.seconds, "cpu": w.cpu, "agree": statistics.mean(w.agree)} for w in tried]
    network = next((way.runs.network for way in tried if hasattr(way.runs, "network")), None)
    if network is None:
        return {"builds": builds, "ways": told}
    rate, reading = roofline.product_rate(), roofline.read_rate()
    floors = {}
    for width in widths:
        operations = roofline.forward_operations(lm.config, width, TEXT + width // 2, min(width, scored))
        floors[width] = (network.bytes_read(width) / reading, operations / rate)
    return {"builds": builds, "ways": told, "rates": {"operations": rate, "bytes": reading}, "floors": floors}


def show(record: dict[str, Any], cpu_time: bool) -> None:
    from rich.console import Console

    from unmask.cli.terminal import table

    kind = "cpu" if cpu_time else "seconds"
    first, *others = record["ways"]
    rows = []
    for width, own in first[kind].items():
        cells = [str(width)]
        cells += [f"{1e3 * statistics.median(way[kind][width]):.1f}" for way in record["ways"]]
        cells += [median([b / a for a, b in zip(own, way[kind][width], strict=True)]).shown() for way in others]
        if "floors" in record:
            at = record["floors"][width]
            cells += [*(f"{1e3 * floor:.1f}" for floor in at), f"{100 * max(at) / statistics.median(own):.0f}%"]
        rows.append(cells)
    headings = ["columns", *(way["name"] for way in record["ways"])]
    headings += [f"over {first['name']}" for _ in others]
    headings += ["reading", "operations", "floor reached"] if "floors" in record else []
    what = "ms of all threads' work" if cpu_time else "ms"
    title = f"{record['shape']}: {what} a pass behind {TEXT} tokens, {record['threads']} threads, "
    Console(width=max(120, Console().width)).print(table(title + f"{record['rounds']} rounds", headings, rows))
    print(f"{record['cpu']}; {'; '.join(record['builds'])}")
    for way in others:
        print(f"best tokens of {way['name']} that are {first['name']}'s: {way['agree']:.3f}")
    if "rates" in record:
        told = record["rates"]
        print(f"floors: {told['bytes'] / 1e9:.1f} GB/s read, {told['operations'] / 1e9:.0f} G operations/s of floats")
