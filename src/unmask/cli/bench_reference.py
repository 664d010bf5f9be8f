"""`unmask bench reference`: beside the references' own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import Json, Tokens
from unmask.errors import UnmaskError


def bench_reference_command(
    checkout: Annotated[
        list[str], typer.Option(help="NAME=PATH of a checkout: llada, fast-dllm or sdar. May be given several times.")
    ],
    max_new_tokens: Tokens = 256,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    block_length: Annotated[int, typer.Option(help="Of the full canvas; SDAR's is 4.")] = 32,
    per_step: Annotated[int, typer.Option(help="Tokens a step writes on the full canvas; SDAR's is 2.")] = 8,
    hidden: Annotated[int, typer.Option(help="Width of the networks.")] = 768,
    layers: Annotated[int, typer.Option(help="Their layers.")] = 12,
    heads: Annotated[int, typer.Option(help="Their attention heads.")] = 12,
    vocabulary: Annotated[int, typer.Option(help="Their tokens.")] = 8192,
    rounds: Annotated[int, typer.Option(help="Timed rounds; medians are printed.")] = 3,
    as_json: Json = False,
) -> None:
    """Our loop beside the references' own generate functions: same random weights, in turns, ids compared.

    This runs the code in the checkouts that you name (LLaDA's, NVlabs/Fast-dLLM's, JetAstra/SDAR's): name only
    what you trust. It needs transformers 4.52 and einops beside unmask. Float32 on the CPU, greedy.

    Example: `unmask bench reference --checkout fast-dllm=Fast-dLLM --checkout sdar=SDAR`
    """
    from rich.console import Console

    from unmask.cli.terminal import table
    from unmask.evaluation.bench_cache import Size, Work
    from unmask.evaluation.bench_reference import bench_reference
    from unmask.evaluation.references import NAMES

    numbers = (max_new_tokens, prompt, block_length, per_step, hidden, layers, heads, vocabulary, rounds)
    if min(numbers) < 1 or hidden % (2 * heads) or vocabulary < 4:
        raise UnmaskError("sizes must be at least 1 (4 tokens), and --hidden an even multiple of --heads")
    if max_new_tokens % block_length or max_new_tokens % 4 or prompt % 4:
        raise UnmaskError("--max-new-tokens must be whole blocks (of --block-length, and of 4), --prompt blocks of 4")
    if block_length % per_step:
        raise UnmaskError("--block-length must be a multiple of --per-step")
    folders = {}
    for given in checkout:
        name, _, path = given.partition("=")
        if name not in NAMES or not path:
            raise UnmaskError(f"--checkout '{given}' must be NAME=PATH with a NAME of {', '.join(NAMES)}")
        folders[name] = Path(path)
    size, work = (
        Size(hidden, layers, heads, vocabulary),
        Work(prompt, max_new_tokens, block_length, 4, per_step, rounds),
    )
    with Console(stderr=True).status("running the code of the checkouts") as status:
        results = list(bench_reference(folders, size, work, lambda text: status.update(text)))
    if as_json:
        print(json.dumps([r.to_dict() for r in results]))
        return
    rows = []
    for r in results:
        forwards = f"{r.forwards} / {r.theirs_forwards}"
        ids = "equal" if r.parts_at is None else f"part at token {r.parts_at}, {r.agreement:.1%} equal"
        speed = [f"{r.seconds:.2f}", f"{r.theirs_seconds:.2f}", f"{r.ratio:.2f}", f"{r.cpu_ratio:.2f}"]
        rows.append([f"{r.reference} {r.way}", f"{r.parameters / 1e6:.0f}M", *speed, forwards, ids])
    columns = ["reference", "size", "ours s", "theirs s", "ratio", "of CPU", "forwards", "ids"]
    title = f"{max_new_tokens} new tokens after {prompt}, float32, {rounds} rounds; ratio: theirs over ours"
    Console().print(table(title, columns, rows))
    for reference, version, replaced in dict.fromkeys((r.reference, r.version, r.replaced) for r in results):
        print(f"{reference}: {version}" + (f"; {replaced}" if replaced else ""))
