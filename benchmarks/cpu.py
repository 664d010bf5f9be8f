"""What each family costs on a CPU: memory, seconds a step and tokens a second of released shapes, and what fits where.

Weights are random. One layer and two are measured in turns and the difference stands for every further layer;
embedding and head are whole, and of a mixture of experts so is one dense layer where it begins with such.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from benchmarks.load import PUBLIC, TEXT, alone, cut, feed, network_config, resident, write

from unmask.cli.options import Json
from unmask.cli.report import report

if TYPE_CHECKING:
    from unmask import DiffusionLM
    from unmask.backends.native.backend import NativeBackend

CANVAS = 256  # columns of a step that reads a whole canvas
SCORED = 32  # of them at most: a block
ROUNDS = 4  # of steps of many columns
MORE = 24  # of those of NARROW at most, which take little and vary much
NARROW = 8
FLUSHED = 256 << 20  # bytes that are gone through between two steps
TOGETHER = (2, 4, 8)  # tokens a step
CONTEXT = 4096  # tokens whose keys and values are counted
SYSTEM = 2e9  # bytes left to the system and others
MEMORIES = (8, 16, 32)  # GB
WEIGHTS = ("q4", "q8")


@dataclass(frozen=True)
class Released:
    """A released shape: its class (families.md) and how many positions a step denoises."""

    shape: str
    kind: str
    block: int

    @property
    def first(self) -> int:
        """Columns of a block's first step: the whole canvas (A, whose cache is dual), or the block before again (B)."""
        return CANVAS if self.kind == "A" else 2 * self.block


FAMILIES = (
    Released("mdlm-owt", "A", 32),
    Released("open-dcoder-0.5b", "A", 32),
    Released("a2d-qwen3-0.6b", "A", 32),
    Released("fast-dllm-v2-1.5b", "B", 32),
    Released("sdar-1.7b", "B", 4),
    Released("nemotron-labs-3b", "B", 32),
    Released("sdar-4b", "B", 4),
    Released("llada-moe-7b-a1b", "A", 32),
    Released("dream-7b", "A", 32),
    Released("llada-8b", "A", 32),
    Released("sdar-8b", "B", 4),
    Released("llada2-mini-16b-a1.4b", "B", 32),
    Released("sdar-30b-a3b", "B", 4),
)


@dataclass(frozen=True)
class Cost:
    """What a shape takes with weights of a kind: bytes, and CPU seconds of a step by columns, on one thread."""

    released: Released
    weights: str
    layers: int
    weight_bytes: float
    token_bytes: float  # keys and values of a token
    process_bytes: float  # Python and what a step needs beside weights
    seconds: dict[int, float]

    @property
    def total(self) -> float:
        return self.weight_bytes + CONTEXT * self.token_bytes + self.process_bytes

    def tokens_per_second(self, at_once: int) -> float | None:
        """Of a whole block, at so many tokens a step."""
        block = self.released.block
        if at_once > block:
            return None
        return block / (self.seconds[self.released.first] + (block / at_once - 1) * self.seconds[block])


def widths(released: Released) -> list[int]:
    """The columns of the steps that it makes, and of one token at a time."""
    return sorted({1, released.block, released.first})


def shallower(lm: DiffusionLM, layers: int) -> tuple[NativeBackend, int]:
    """The first layers of a model with its head, on one thread, and the bytes of their weights."""
    from unmask.backends.native.backend import NativeBackend
    from unmask.backends.native.network import CompiledNetwork

    whole: Any = lm.backend
    left_out = tuple(f"layer.{n}." for n in range(layers, lm.config.num_layers))
    weights = {name: array for name, array in whole.network.weights.items() if not name.startswith(left_out)}
    backend = NativeBackend(CompiledNetwork(replace(lm.config, num_layers=layers), weights))
    backend.threads = 1
    return backend, sum(array.nbytes for array in weights.values())


def measure(folder: str, quantize: str, wanted: list[int]) -> dict[str, Any]:
    """Of a checkpoint's network without its last layer, and of the whole: bytes of weights and the least CPU seconds of
    a step by columns, made in turns; none begins with weights in the CPU's caches, as those of a deep network would not
    be."""
    from unmask import DiffusionLM
    from unmask.layout import Layout

    lm = DiffusionLM.from_pretrained(folder, quantize=quantize)
    config = lm.config
    backends, sizes = zip(*(shallower(lm, config.num_layers - less) for less in (1, 0)), strict=True)
    others = np.zeros(FLUSHED // 8)
    random = np.random.default_rng(0)
    seconds: dict[int, list[float]] = {}
    for backend in backends:
        backend.open(Layout(config.layout, max(config.block_length, 1)), 1, TEXT + max(wanted), True)
    for width in wanted:
        taken: list[list[float]] = [[] for _ in backends]
        for turn in range(1 + (MORE if width <= NARROW else ROUNDS)):
            step = feed(random.integers(0, config.vocab_size - 1, TEXT + width), TEXT, SCORED)
            for backend, times in zip(backends, taken, strict=True):
                others += 1
                began = time.process_time()
                backend.forward(step)
                times += [time.process_time() - began] if turn else []
        seconds[width] = [min(times) for times in taken]
    return {"sizes": sizes, "seconds": seconds, "beside": resident("RssAnon") - others.nbytes}


def pack(folder: str, quantize: str) -> None:
    from unmask import DiffusionLM

    DiffusionLM.from_pretrained(folder, quantize=quantize).load_backend()


def cost(released: Released, weights: str) -> Cost:
    """Measures one layer and two, of experts where there are some, and goes on from there in a line."""
    whole = network_config(PUBLIC[released.shape])
    layers = min(whole.first_dense_layers, 1) + 2 if whole.num_experts else 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, cut(released.shape, layers), released.shape)
        surroundings = {"OMP_NUM_THREADS": "1", "UNMASK_CACHE": str(folder / "cache")}
        alone(__name__, "pack", temporary, weights, **surroundings)
        found = alone(__name__, "measure", temporary, weights, widths(released), **surroundings)

    def line(one: float, two: float) -> float:
        return two + (whole.num_layers - layers) * (two - one)

    heads = sum(heads * width for heads, width in whole.key_shapes)
    return Cost(
        released=released,
        weights=weights,
        layers=whole.num_layers,
        weight_bytes=line(*found["sizes"]),
        token_bytes=2 * heads * 2,
        process_bytes=found["beside"],
        seconds={int(width): line(*pair) for width, pair in found["seconds"].items()},
    )


def known_cost(released: Released, weights: str, folder: Path | None) -> Cost:
    """A cost that a folder keeps, or measured and kept there."""
    file = None if folder is None else folder / f"{released.shape}-{weights}.json"
    if file is not None and file.is_file():
        read = json.loads(file.read_text())
        return Cost(**{**read, "released": released, "seconds": {int(n): s for n, s in read["seconds"].items()}})
    made = cost(released, weights)
    if file is not None:
        file.write_text(json.dumps(asdict(made)))
    return made


PAGE = """# What each family costs on a CPU

Made by `unmask bench cpu --write docs/cpu.md` on {cpu}, {date}. Every figure is CPU time on **one thread**:
threads divide the steps of many columns, which are bound by arithmetic, better than those of one column, which
are bound by reading the weights.{note}

**No released checkpoint was loaded.** Weights are random in the released shapes. One layer and two were measured
in turns, the least of {rounds} ({more} of few columns), with cold caches, and every further layer counts as the
difference; embedding and head were measured whole. Memory is the weights, extrapolated the same way, keys and
values of {context} tokens, and what the process needed beside them. A step of n columns is n tokens behind {text}
cached tokens, at most {scored} of them scored. q4 and q8 are the native forward's weights
([platforms](platforms.md#quantised-weights)). Columns are other tokens at every step, which ask other experts:
masks that stand side by side ask more of the same.

## Memory and seconds a step
In bold the step that denoises a block. Class A is a full canvas: that is its step under the cache `dual`, and
without a cache every step reads the whole canvas, here 256 columns. Class B has exact keys and values of what
stands before its block.

{steps}

## Tokens a second
At 2, 4 and 8 tokens a step, over a block: its first step reads the canvas of 256 once (A) or the block before
again (B). *One at a time* is one column a step, as an AR model of the same shape writes. From the number of
tokens a step in the last column on, diffusion is the faster one on this thread. How many tokens a step a
checkpoint reaches at which quality is not a matter of its shape: `unmask eval` measures it.

{speeds}

## What to choose
What fits beside {system} GB for everything else, with {context} tokens, and its tokens/s at 4 tokens a step on
one thread.

{fits}
"""


def page(costs: list[Cost], cpu: str, note: str = "") -> str:
    """docs/cpu.md; note: what is to be said of the run."""
    columns = [1, 4, 8, 32, 64, CANVAS]
    steps = [
        "| shape | class | weights | memory, GB | "
        + " | ".join(f"{n} column{'s' * (n > 1)}, s" for n in columns)
        + " |",
        "|---" * (4 + len(columns)) + "|",
    ]
    speeds = [
        "| shape | weights | "
        + " | ".join(f"{n} a step" for n in TOGETHER)
        + " | one at a time | tokens a step from which it pays |",
        "|---" * (4 + len(TOGETHER)) + "|",
    ]
    for one in costs:
        cells = []
        for width in columns:
            shown = _short(one.seconds[width]) if width in one.seconds else "-"
            cells.append(f"**{shown}**" if width == one.released.block else shown)
        shape = one.released.shape
        steps.append(f"| {shape} | {one.released.kind} | {one.weights} | {one.total / 1e9:.1f} | {' | '.join(cells)} |")
        made = [one.tokens_per_second(n) for n in TOGETHER]
        told = ["-" if speed is None else _short(speed) for speed in made]
        alone_speed = 1 / one.seconds[1]
        pays = next(
            (n for n in range(1, one.released.block + 1) if (one.tokens_per_second(n) or 0) > alone_speed), None
        )
        even = f"more than {one.released.block}" if pays is None else str(pays)
        speeds.append(f"| {shape} | {one.weights} | {' | '.join(told)} | {_short(alone_speed)} | {even} |")
    fits = ["| memory | fastest | largest | all that fit, with the heaviest weights that do |", "|---|---|---|---|"]
    sizes = {one.released.shape: one.weight_bytes for one in costs}  # the heaviest of each
    for memory in MEMORIES:
        best = {
            one.released.shape: one
            for one in sorted(costs, key=lambda one: one.total)
            if one.total <= memory * 1e9 - SYSTEM
        }
        told = {shape: f"{shape} {one.weights}: {_short(one.tokens_per_second(4) or 0)}" for shape, one in best.items()}
        fastest = max(best, key=lambda shape: best[shape].tokens_per_second(4) or 0)
        largest = max(best, key=lambda shape: sizes[shape])
        fits.append(f"| {memory} GB | {told[fastest]} | {told[largest]} | {', '.join(told.values())} |")
    return PAGE.format(
        cpu=cpu,
        date=time.strftime("%Y-%m-%d"),
        note=f" {note}" if note else "",
        rounds=ROUNDS,
        more=MORE,
        context=CONTEXT,
        text=TEXT,
        scored=SCORED,
        system=f"{SYSTEM / 1e9:g}",
        steps="\n".join(steps),
        speeds="\n".join(speeds),
        fits="\n".join(fits),
    )


def _short(value: float) -> str:
    """Two digits that count."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def command(
    shapes: Annotated[str, typer.Option(help="Some of the shapes, separated by commas.")] = "",
    write: Annotated[Path | None, typer.Option(help="The page to write.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A folder that keeps what was measured; a later run goes on.")
    ] = None,
    note: Annotated[str, typer.Option(help="What the page says of the run, such as what else the machine did.")] = "",
    as_json: Json = False,
) -> None:
    """Memory, CPU seconds a step by columns and tokens/s of the families' released shapes, random weights, one thread.

    Example: `unmask bench cpu --shapes sdar-1.7b,llada-8b`; all of them take an hour and 3 GB
    """
    from unmask.backends.native.network import cpu, library

    chosen = [one for one in FAMILIES if not shapes or one.shape in shapes.split(",")]
    costs = [known_cost(released, weights, keep) for released in chosen for weights in WEIGHTS]
    build = library()
    kind = "" if build is None else Path(build._name).name.partition(".")[0].removeprefix("_forward_")
    if write is not None:
        write.write_text(page(costs, f"{cpu()} ({kind})", note))
    rows = []
    for one in costs:
        told = [f"{width}: {_short(seconds)}" for width, seconds in one.seconds.items()]
        made = [one.tokens_per_second(n) for n in TOGETHER]
        speeds = ", ".join("-" if speed is None else _short(speed) for speed in made)
        rows.append([f"{one.released.shape} {one.weights}", f"{one.total / 1e9:.1f}", "  ".join(told), speeds])
    columns = ["shape", "GB", "seconds a step by columns", f"tokens/s at {TOGETHER} a step"]
    report([asdict(one) for one in costs], "one thread, CPU time, extrapolated from two layers", columns, rows, as_json)
