"""A released model's shape with random weights: starting with packed weights, seconds of a step, memory, and packing.

One layer's values stand for all layers. Packing starts from files as their makers write them, in bfloat16.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from benchmarks import load

from unmask.cli.options import Json
from unmask.cli.report import report
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.config import ModelConfig

QWEN3: dict[str, Any] = {
    "architectures": ["SDARForCausalLM"],
    "model_type": "sdar",
    "vocab_size": 151936,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 28,
    "max_position_embeddings": 4096,
    "mask_token_id": 151669,
    "block_size": 32,
    "rope_theta": 1e6,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llada-8b": {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 32,
        "mlp_hidden_size": 12288,
        "max_sequence_length": 4096,
        "vocab_size": 126464,
        "embedding_size": 126464,
        "rope_theta": 500000.0,
        "mask_token_id": 126336,
    },
    "sdar-1.7b": {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "tie_word_embeddings": True},
    "qwen3-0.6b": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "tie_word_embeddings": True},
    "llada-moe-7b-a1b": {**load.SHAPES["llada-moe-7b-a1b"], "mask_token_id": 156895, "max_position_embeddings": 4096},
}
TEXT = 256  # tokens before the block
BLOCK = 32
AFTER = 32  # masks behind it, as the dual cache keeps them
STEPS = 3
PART = 8160  # rows of the vocabulary that are made and repeated; no other product has as many
IDS = ("mask_token_id", "eos_token_id", "bos_token_id", "pad_token_id")


def write(folder: Path, config: dict[str, Any]) -> None:
    """A checkpoint of random weights, a file for each layer."""
    import torch
    from safetensors.torch import save_file

    from unmask.checkpoints.families import registry
    from unmask.checkpoints.weights import expected_shapes
    from unmask.models.network import on_meta

    folder.mkdir(parents=True, exist_ok=True)
    family = registry.recognise(config, str(folder))
    assert family is not None
    shapes = expected_shapes(on_meta(family.config(config, str(folder))), family)
    random = torch.Generator().manual_seed(0)
    made: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes.items():
        key = (name.rpartition(".")[0].rpartition(".")[2], shape)
        if key not in made:
            size = torch.randn(shape, generator=random, dtype=torch.bfloat16) / shape[-1] ** 0.5
            made[key] = size if len(shape) > 1 else torch.ones(shape, dtype=torch.bfloat16)
        number = next((part for part in name.split(".") if part.isdecimal()), "whole")
        files.setdefault(f"{number}.safetensors", {})[name] = made[key]
    for file, tensors in files.items():
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / file)
    homes = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    (folder / "config.json").write_text(json.dumps(config))


def peak() -> int:
    """The most memory this process has held, in bytes, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def network_config(config: dict[str, Any]) -> ModelConfig:
    """What a released config.json describes."""
    from unmask.checkpoints.families import registry

    family = registry.recognise(config, "")
    assert family is not None
    return family.config(config, "")


def write_packed(folders: dict[int, Path], whole: ModelConfig, bits: int) -> None:
    """Packed weights of random values, without the files that they would be packed from; of so many layers to each."""
    from unmask.backends.native.packed_file import PackedFile
    from unmask.backends.native.packing import Plan
    from unmask.checkpoints.rows import Held
    from unmask.models.network import on_meta

    part = replace(whole, num_layers=1, vocab_size=PART, **dict.fromkeys(IDS))
    random = np.random.default_rng(0)
    held = {}
    for name, parameter in on_meta(part).named_parameters():
        shape = tuple(parameter.shape)
        plain = len(shape) == 1
        values = np.ones(shape) if plain else random.standard_normal(shape, np.float32) / shape[-1] ** 0.5
        held[name] = Held(values.astype(np.float32))
    plan = Plan(part, held, None, bits, rows_pay=False)  # of small networks alone
    made = {product.name: np.concatenate(list(product.packed())) for product in plan.products}
    for product in plan.products:
        rows, columns = product.shape
        rows = whole.vocab_size if rows == PART else rows
        plan.small[f"{product.name}.shape"] = np.array([rows, columns, product.bits, product.by_row], np.int32)
        if product.biases:
            plan.small[f"{product.name}.bias"] = np.ones(-(-rows // 32) * 32, np.float32)
    for layers, folder in folders.items():
        with (folder / "weights").open("wb") as opened:
            file = PackedFile(opened)
            for product in plan.products:
                blocks = made[product.name]
                if product.shape[0] == PART:  # of the vocabulary
                    tiles = -(-whole.vocab_size // 32)
                    pieces = (blocks[: min(len(blocks), tiles - n)] for n in range(0, tiles, len(blocks)))
                    file.add(f"{product.name}.blocks", pieces)
                else:
                    for i in range(layers):
                        file.add(product.name.replace("layer.0.", f"layer.{i}.") + ".blocks", [blocks])
            for name, values in plan.small.items():
                for i in range(layers if name.startswith("layer.0.") else 1):
                    file.add(name.replace("layer.0.", f"layer.{i}."), [values])
            file.end()
        (folder / "config.json").write_text(json.dumps(replace(whole, num_layers=layers).to_dict()))


def stepping(folder: str, bits: int) -> None:
    """In a process of its own: maps packed weights and steps; prints what it took."""
    began = time.perf_counter()
    from unmask.backends.native.backend import NativeBackend
    from unmask.backends.native.network import CompiledNetwork
    from unmask.backends.native.packed_file import mapped
    from unmask.decoding.feed import Columns, Feed
    from unmask.layout import Layout
    from unmask.models.config import ModelConfig

    config = ModelConfig.from_dict(json.loads((Path(folder) / "config.json").read_text()))
    with (Path(folder) / "weights").open("rb") as file:
        backend = NativeBackend(CompiledNetwork(config, mapped(file), bits == 32))
    found: dict[str, Any] = {"start": time.perf_counter() - began}
    backend.open(Layout(config.layout, max(config.block_length, 1)), 1, TEXT + BLOCK + AFTER, True)
    window = np.arange(TEXT, TEXT + BLOCK)
    none = np.full(BLOCK, -1)
    after = (TEXT + BLOCK, TEXT + BLOCK + AFTER) if config.layout == "bidirectional" else (0, 0)
    masks = np.full(BLOCK, config.mask_token_id or 0)
    step = Columns(masks, window, none, window - TEXT, window, cached_after=after)
    feed = Feed.of([step], np.array([TEXT]))  # the cached states are 0, which takes as long as any
    times = []
    for _ in range(STEPS + 1):
        began, worked = time.perf_counter(), time.process_time()
        backend.forward(feed)
        times.append((time.perf_counter() - began, time.process_time() - worked))
        found |= {"step": statistics.median(t for t, _ in times[-STEPS:]), "peak": peak()}
        found |= {"cpu": statistics.median(t for _, t in times[-STEPS:]), "threads": backend.threads}
    print(json.dumps(found))


def packing(folder: str, quantize: str) -> None:
    """In a process of its own: loads a model; prints what it took."""
    began, worked = time.perf_counter(), time.process_time()
    from unmask import DiffusionLM

    DiffusionLM.from_pretrained(folder, quantize=quantize).load_backend()
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu": time.process_time() - worked, "peak": peak()}))


def alone(function: str, *given: Any, file: str = __file__, **environment: str) -> Any:
    """What a function of a file, this one by default, prints, called in a process of its own."""
    code = f"import runpy; runpy.run_path({file!r})[{function!r}](*{given!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnmaskError(f"{function} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def command(
    shape: Annotated[str, typer.Argument(help=f"{', '.join(SHAPES)}.")] = "llada-8b",
    quantize: Annotated[str, typer.Option(help="q8, q4 or none.")] = "q4",
    files: Annotated[bool, typer.Option("--files", help="Write bfloat16 files first, and pack them.")] = False,
    layers: Annotated[int | None, typer.Option(help="Fewer than the shape has.")] = None,
    as_json: Json = False,
) -> None:
    """A step of a released model's shape, random weights: 32 masks, dual cache, behind 256 tokens; and its memory.

    Example: `unmask bench shape llada-8b --quantize q4`, which needs 6 GB of disk, with --files 28
    """
    bits = {"q8": 8, "q4": 4, "none": 32}.get(quantize)
    if shape not in SHAPES or bits is None:
        raise UnmaskError(f"there is no shape '{shape}' as '{quantize}'; shapes are {', '.join(SHAPES)}")
    config = SHAPES[shape]
    if layers is not None:
        config = {**config, "n_layers" if "n_layers" in config else "num_hidden_layers": layers}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        whole = network_config(config)
        write_packed({whole.num_layers: where}, whole, bits)
        size = (where / "weights").stat().st_size
        found = alone("stepping", temporary, bits)
        result = {"shape": shape, "quantize": quantize, "bytes": size, **found}
        (where / "weights").unlink()
        if files:
            write(where / shape, config)
            result["packing"] = alone("packing", str(where / shape), quantize, UNMASK_CACHE=str(where / "cache"))
    rows += [
        ["packed weights", f"{size / 1e9:.2f} GB"],
        ["start, weights mapped", f"{found['start']:.2f} s"],
        [f"a step, {found['threads']} threads", f"{found['step']:.2f} s"],
        ["its CPU time", f"{found['cpu']:.2f} s"],
        ["most memory", f"{found['peak'] / 1e9:.2f} GB"],
    ]
    if files:
        once = result["packing"]
        rows.append(
            ["packing, once", f"{once['seconds']:.0f} s, {once['cpu']:.0f} of CPU, {once['peak'] / 1e9:.2f} GB"]
        )
    report(result, f"{shape} with weights {quantize}, medians of {STEPS} steps", ["", ""], rows, as_json)
