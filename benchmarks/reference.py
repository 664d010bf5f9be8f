"""`unmask bench reference`: our loop and backends beside the references' own, same weights, in turns, ids compared.

Random networks of LLaDA's and SDAR's shape are written as checkpoints of those families; both sides read them.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from benchmarks.cache import Size, Work, decode, prompt_of
from benchmarks.references import Asked, Kind, Reference, Way, load

from unmask import DiffusionLM
from unmask.backends import BACKENDS
from unmask.checkpoints.folder import CONFIG
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.save import write_checkpoint
from unmask.checkpoints.weights import weights_to_save
from unmask.cli.options import Json, Tokens
from unmask.cli.report import print_record
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.models.transformer import Transformer

PER_STEP = 2  # tokens a step of SDAR, whose blocks are short


@dataclass(frozen=True)
class Beside:
    """One way of one reference beside a backend of ours over all rounds: medians; ratios are of the same round."""

    reference: str
    version: str
    replaced: str
    way: str
    backend: str
    parameters: int
    theirs_seconds: float
    seconds: float  # ours
    ratio: float  # theirs over ours
    cpu_ratio: float  # the same of the process's CPU seconds, which other processes do not lengthen
    theirs_forwards: int
    forwards: int
    agreement: float  # share of the new tokens that are theirs
    parts_at: int | None  # the first new token that is not; None: all are

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def config(kind: Kind, size: Size, work: Work) -> dict[str, Any]:
    """config.json of a random network of LLaDA's or of SDAR's, in that family's own keys."""
    length = work.prompt + work.new + work.causal_block
    inner = size.hidden * 8 // 3 // 8 * 8
    mask = size.vocabulary - 1
    end = size.vocabulary - 2
    if kind == "blocks":
        return {
            "architectures": ["SDARForCausalLM"], "model_type": "sdar", "vocab_size": size.vocabulary,
            "hidden_size": size.hidden, "intermediate_size": inner, "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads, "num_key_value_heads": max(1, size.heads // 4),
            "head_dim": size.hidden // size.heads, "max_position_embeddings": length, "rope_theta": 1e6,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "block_size": work.causal_block,
            "mask_token_id": mask, "eos_token_id": end, "bos_token_id": end, "use_sliding_window": False,
            "fuse_cross_entropy": True,
        }  # fmt: skip
    return {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "vocab_size": size.vocabulary,
        "embedding_size": size.vocabulary, "d_model": size.hidden, "n_layers": size.layers, "n_heads": size.heads,
        "n_kv_heads": size.heads, "mlp_hidden_size": inner, "max_sequence_length": length, "rope": True,
        "rope_theta": 5e5, "rms_norm_eps": 1e-5, "layer_norm_type": "rms", "block_type": "llama",
        "activation_type": "silu", "alibi": False, "include_bias": False, "include_qkv_bias": False,
        "bias_for_layer_norm": False, "weight_tying": False, "attention_dropout": 0.0, "residual_dropout": 0.0,
        "embedding_dropout": 0.0, "flash_attention": False, "init_device": "cpu", "mask_token_id": mask,
        "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip


def make(folder: Path, kind: Kind, size: Size, work: Work, seed: int = 0) -> None:
    """Writes the checkpoint. Its weights are wide, so that texts vary, and [MASK] is never the best token."""
    raw = config(kind, size, work)
    write_text(folder / CONFIG, json.dumps(raw))
    found = Checkpoint.open(folder)
    model = Transformer(found.config).initialise(seed, std=2 * size.hidden**-0.5)
    with torch.no_grad():
        model.head.weight[found.config.mask_token_id].zero_()
    write_checkpoint(folder, raw, weights_to_save(model, found.family, raw), None)


def bench_reference(
    checkouts: dict[str, Path],
    size: Size,
    work: Work,
    backends: list[str],
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Beside]:
    """Each way of each named reference beside ours, in turns, after a round that is not counted.

    checkouts: their folders by name (`references.NAMES`). Their code is run. float32 on the CPU, greedy, by a
    fixed number of tokens a step. Raises UnmaskError where a reference cannot be imported.
    """
    with redirect_stdout(sys.stderr):  # what their code prints is no part of the result
        found = {name: load(name, checkouts) for name in checkouts}
    for name, reference in found.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            folder.mkdir()
            os.environ["UNMASK_CACHE"] = str(Path(temporary, "cache"))
            progress(f"{name}: making the network")
            make(folder, reference.kind, size, work)
            theirs = reference.load(folder)
            ours = {backend: DiffusionLM.from_pretrained(folder, backend=backend).backend for backend in backends}
        for way in reference.ways:
            yield from _beside(name, reference, way, theirs, ours, work, progress)


def _beside(
    name: str,
    reference: Reference,
    way: Way,
    theirs: Any,
    ours: dict[str, Any],
    work: Work,
    progress: Callable[[str], None],
) -> Iterator[Beside]:
    blocks = reference.kind == "blocks"
    work = replace(work, per_step=PER_STEP) if blocks else work
    block = work.causal_block if blocks else work.block
    mask = next(iter(ours.values())).config.mask_token_id
    asked = Asked(work.new, block, -(-block // work.per_step), mask)
    prompt = torch.tensor([prompt_of(work, mask)])
    forwards = [0]
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in (name, *ours)}  # seconds, and of CPU
    made: dict[str, Any] = {}
    count = theirs.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))

    def run(side: str) -> None:
        forwards[0] = 0 if side == name else forwards[0]
        began = time.perf_counter()
        worked = time.process_time()
        if side == name:
            with torch.inference_mode():
                made[side] = way.generate(theirs, prompt, asked)[0, work.prompt : work.prompt + work.new].numpy()
        else:
            made[side] = decode(ours[side], reference.kind, way.cache, work, way.rule)
        taken[side].append((time.perf_counter() - began, time.process_time() - worked))

    for number in range(work.rounds + 1):
        progress(f"{name}, {way.name}: round {number} of {work.rounds}")
        for side in list(taken)[:: 1 if number % 2 else -1]:  # none is always the one that comes first
            run(side)
    count.remove()
    for backend in ours:
        decoder = made[backend]
        same = decoder.canvas.ids[0, work.prompt :] == made[name]
        pairs = list(zip(taken[name][1:], taken[backend][1:], strict=True))
        yield Beside(
            name,
            reference.version,
            reference.replaced,
            way.name,
            backend,
            sum(p.numel() for p in theirs.parameters()),
            statistics.median(a[0] for a, _ in pairs),
            statistics.median(b[0] for _, b in pairs),
            statistics.median(a[0] / b[0] for a, b in pairs),
            statistics.median(a[1] / b[1] for a, b in pairs),
            forwards[0],
            decoder.steps[0],
            float(same.mean()),
            None if same.all() else int(same.argmin()),
        )


def command(
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
    backends: Annotated[str, typer.Option(help=f"Ours: some of {', '.join(BACKENDS)}.")] = "torch,native-f32,native",
    as_json: Json = False,
) -> None:
    """Our loop beside the references' own generate functions: same random weights, in turns, ids compared.

    This runs the code in the checkouts that you name (LLaDA's, NVlabs/Fast-dLLM's, JetAstra/SDAR's): name only
    what you trust. It needs transformers 4.52 and einops beside unmask. Float32 on the CPU, greedy.

    Example: `unmask bench reference --checkout fast-dllm=Fast-dLLM --checkout sdar=SDAR`
    """
    from benchmarks.cache import Size, Work
    from benchmarks.references import NAMES
    from rich.console import Console

    from unmask.cli.terminal import table

    numbers = (max_new_tokens, prompt, block_length, per_step, hidden, layers, heads, vocabulary, rounds)
    if min(numbers) < 1 or hidden % (2 * heads) or vocabulary < 4:
        raise UnmaskError("sizes must be at least 1 (4 tokens), and --hidden an even multiple of --heads")
    if max_new_tokens % block_length or max_new_tokens % 4 or prompt % 4:
        raise UnmaskError("--max-new-tokens must be whole blocks (of --block-length, and of 4), --prompt blocks of 4")
    if block_length % per_step:
        raise UnmaskError("--block-length must be a multiple of --per-step")
    names = [name.strip() for name in backends.split(",")]
    for name in names:
        if name not in BACKENDS:
            raise UnmaskError(f"there is no backend '{name}'; there are {', '.join(BACKENDS)}")
    folders = {}
    for given in checkout:
        name, _, path = given.partition("=")
        if name not in NAMES or not path:
            raise UnmaskError(f"--checkout '{given}' must be NAME=PATH with a NAME of {', '.join(NAMES)}")
        folders[name] = Path(path)
    size = Size(hidden, layers, heads, vocabulary)
    work = Work(prompt, max_new_tokens, block_length, 4, per_step, rounds)
    with Console(stderr=True).status("running the code of the checkouts") as status:
        results = list(bench_reference(folders, size, work, names, lambda text: status.update(text)))
    if as_json:
        print_record([r.to_dict() for r in results])
        return
    rows = []
    for r in results:
        forwards = f"{r.forwards} / {r.theirs_forwards}"
        ids = "equal" if r.parts_at is None else f"part at token {r.parts_at}, {r.agreement:.1%} equal"
        speed = [f"{r.seconds:.2f}", f"{r.theirs_seconds:.2f}", f"{r.ratio:.2f}", f"{r.cpu_ratio:.2f}"]
        rows.append([f"{r.reference} {r.way}", r.backend, f"{r.parameters / 1e6:.0f}M", *speed, forwards, ids])
    columns = ["reference", "ours", "size", "ours s", "theirs s", "ratio", "of CPU", "forwards", "ids"]
    title = f"{max_new_tokens} new tokens after {prompt}, float32, {rounds} rounds; ratio: theirs over ours"
    Console(width=max(120, Console().width)).print(table(title, columns, rows))
    for reference, version, replaced in dict.fromkeys((r.reference, r.version, r.replaced) for r in results):
        print(f"{reference}: {version}" + (f"; {replaced}" if replaced else ""))
