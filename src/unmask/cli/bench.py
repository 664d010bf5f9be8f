"""`unmask bench`: speed on this machine. In a checkout every file of `benchmarks/` is a bench as well."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from unmask.cli.options import Backend, Dtype, Json, Quantize, Tokens, check_least, load, numbers, shares
from unmask.cli.report import print_record

if TYPE_CHECKING:
    from unmask.evaluation.speed import LlamaCpp, Speed

OUR_BENCHES = Path(__file__).parents[3] / "benchmarks"  # in a checkout


class BenchGroup(TyperGroup):
    """The benches of the package, and those of a checkout's `benchmarks` folder: every file that has a `command`."""

    def list_commands(self, ctx: Any) -> list[str]:
        found = [path.stem for path in OUR_BENCHES.glob("*.py") if "def command(" in path.read_text(encoding="utf-8")]
        return sorted({*super().list_commands(ctx), *found})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or not (OUR_BENCHES / f"{cmd_name}.py").is_file():
            return own
        if str(OUR_BENCHES.parent) not in sys.path:
            sys.path.insert(0, str(OUR_BENCHES.parent))
        bench = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        bench.command(cmd_name)(import_module(f"benchmarks.{cmd_name}").command)
        return typer.main.get_command(bench)


PASSES = [1, 4, 9, 16, 32]  # widths of the forwards that are timed alone
NGRAM = 3  # tokens that llama.cpp's own drafts go by


def speed(
    model: Annotated[str, typer.Argument(help="A model with several modes.")] = "default",
    rules: Annotated[str, typer.Option(help="Of diffusion, with commas; the model's own if empty.")] = "",
    thresholds: Annotated[str, typer.Option(help="Of diffusion, with commas.")] = "0.1,0.3,0.5",
    blocks: Annotated[str, typer.Option(help="Windows of diffusion, with commas.")] = "2,4,8",
    verify_blocks: Annotated[str, typer.Option(help="Windows of verify, with commas.")] = "2,3,4",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,8",
    max_new_tokens: Tokens = 128,
    llama: Annotated[str, typer.Option(help="GGUF file for llama.cpp; the base's own if empty, 'no' for none.")] = "",
    quality: Annotated[int, typer.Option(help="Items of each kind of the quality set to score by; 0: none.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw score against speed (PNG) here.")] = None,
    backend: Backend = "auto",
    quantize: Quantize = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Every mode of a model and llama.cpp on the same prompts in one run: medians of five interleaved rounds.

    Example: `unmask bench speed default --quality 40 --picture speed.png`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation import speed as bench
    from unmask.evaluation.figures import Figure

    check_least(0, quality=quality)
    check_least(1, max_new_tokens=max_new_tokens)
    lm = load(model, "cpu", dtype, backend, quantize)
    windows = numbers("--blocks", blocks), numbers("--verify-blocks", verify_blocks)
    chosen = [rule.strip() for rule in rules.split(",")] if rules else [lm.defaults.rule]
    tried = bench.ways(chosen, shares("--thresholds", thresholds), *windows)
    results: list[Speed] = []
    scores: dict[str, Figure] = {}
    area: dict[str, float] = {}
    err = Console(stderr=True)
    with err.status("starting") as status:
        for batch in numbers("--batches", batches):
            rivals = _llama(lm, llama, batch, err)
            results += bench.bench_speed(lm, tried, batch, max_new_tokens, rivals, lambda text: status.update(text))
        status.update("single passes")
        widths = bench.passes(lm, PASSES, 256)
        floors = bench.floors(lm, PASSES, 256)
        if quality:
            from unmask.evaluation.answers import quality as score
            from unmask.evaluation.figures import aup_of_items, share
            from unmask.evaluation.tasks import load as load_items

            items, _ = load_items(limit=quality)
            runs = []
            for way in tried:
                options = {"temperature": 0.0, **way.options}
                result = score(lm, items, options, lambda text: status.update(text), likelihood=False)
                scores[way.name] = share(sum(result["passed"].values()), len(items))
                runs += [result["items"]] if way.name.startswith("diffusion") else []
            area = aup_of_items(runs).named("aup")
    if picture is not None:
        bench.draw(
            results,
            {name: score.value for name, score in scores.items()},
            picture,
            f"{lm.name}: {max_new_tokens} new tokens, temperature 0",
        )
    if as_json:
        speeds = [r.to_dict() | (scores[r.name].named("score") if r.name in scores else {}) for r in results]
        print_record({"speeds": speeds, "passes_ms": widths, "floors_ms": floors, **area})
        return
    rows = []
    for r in results:
        over = "-" if r.over_llama is None else r.over_llama.shown()
        made = [r.tokens_per_second.shown(1), r.over_ar.shown(), over]
        each = [f"{r.tokens_per_step:.2f}", f"{r.ms_per_step:.1f}"]
        rows.append([r.name, str(r.batch), *made, *each, scores[r.name].shown(1) if r.name in scores else "-"])
    columns = ["way", "batch", "tokens/s", "over ar", "over llama.cpp", "tokens/step", "ms/step", "score"]
    Console().print(table(f"{lm.name}, {max_new_tokens} new tokens", columns, rows))
    if area:
        print(f"AUP of diffusion: {Figure.of(area, 'aup').shown(1)}")
    rows = [
        [str(w), f"{widths[w]:.1f}", *(f"{ms:.1f}" for ms in floors[w]), f"{widths[w] / widths[1]:.2f}"] for w in PASSES
    ]
    columns = ["text tokens", "ms", "floor: weights read, ms", "floor: operations, ms", "over one token"]
    Console().print(table("one forward after 256 cached tokens, every row scored", columns, rows))


def _llama(lm: Any, llama: str, batch: int, console: Any) -> dict[str, LlamaCpp]:
    """llama.cpp on the base's GGUF file, by itself and with drafts of its own; none, and said so, where it is not to be
    had."""
    import os
    from importlib.util import find_spec

    from unmask.checkpoints import gguf as gguf_file
    from unmask.evaluation.speed import LlamaCpp

    source = None if lm.loaded is None else (lm.loaded.base or lm.loaded).path
    path = Path(llama) if llama not in ("", "no") else None if source is None else gguf_file.find(source)
    if llama == "no":
        return {}
    if path is None or not path.is_file():
        console.print("llama.cpp is left out: no GGUF file of this model is at hand")
        return {}
    if find_spec("xllamacpp") is None:
        console.print("llama.cpp is left out: `pip install xllamacpp` puts it beside us")
        return {}
    threads = os.cpu_count() or 1
    rivals = {"llama.cpp": LlamaCpp(path, lm, threads, batch)}
    rivals["llama.cpp, n-gram"] = LlamaCpp(path, lm, threads, batch, NGRAM)
    console.print(rivals["llama.cpp"].build)
    return rivals
