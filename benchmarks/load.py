"""How much memory and time loading takes: a synthetic checkpoint of a public shape, read in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from unmask.checkpoints.families import registry
from unmask.checkpoints.inspect import parameters
from unmask.cli.options import Json, Quantize
from unmask.cli.report import print_record
from unmask.decoding.feed import Columns, Feed
from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.layout import Layout
from unmask.models.config import ModelConfig

SHARD = 5_000_000_000  # bytes, as the hub has them
TEXT = 256  # cached tokens before a step
SMALL = {  # shapes for trying the command out
    "llada-tiny": {"d_model": 64, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 128, "embedding_size": 256},
    "llada-1gb": {"d_model": 2048, "n_layers": 8, "n_heads": 16, "mlp_hidden_size": 5632, "embedding_size": 32000},
}


def _llama(architecture: str, layers: int, size: int, inner: int, heads: int, groups: int, **more: Any) -> Any:
    own = {"num_hidden_layers": layers, "hidden_size": size, "intermediate_size": inner, "num_attention_heads": heads}
    return {
        "architectures": [architecture],
        **own,
        "num_key_value_heads": groups,
        "max_position_embeddings": 4096,
    } | more


def _dit(layers: int, size: int, heads: int, kind: str) -> Any:
    own = {"hidden_dim": size, "cond_dim": 128, "n_blocks": layers, "n_heads": heads, "model_length": 1024}
    return {"model_type": kind, "vocab_size": 50258, **own}


def _gpt2(layers: int, size: int, heads: int) -> Any:
    own = {"n_layer": layers, "n_embd": size, "n_head": heads}
    return {"model_type": "gpt2", "n_positions": 1024, "vocab_size": 50257, **own}


def _sedd(layers: int, size: int, heads: int) -> Any:
    own = {"hidden_size": size, "cond_dim": 128, "n_blocks": layers, "n_heads": heads, "length": 1024}
    return {"graph": {"type": "absorb"}, "tokens": 50257, "model": {**own, "scale_by_sigma": True}}


_BAILING = {"num_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "num_shared_experts": 1} | {
    "first_k_dense_replace": 1, "vocab_size": 157184, "head_dim": 128, "partial_rotary_factor": 0.5,
}  # fmt: skip
QWEN, QWEN_LARGE = 151936, 152064

# config.json of the public checkpoints, as far as it decides the network; rotations and texts' lengths are left out
PUBLIC: dict[str, dict[str, Any]] = {
    "llada-8b": {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 4096, "n_layers": 32, "n_heads": 32,
        "n_kv_heads": 32, "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464,
        "max_sequence_length": 4096, "rope_theta": 500000.0,
    },
    "illada-8b": _llama("ILLaDAForCausalLM", 32, 4096, 14336, 32, 8, vocab_size=155136, tie_word_embeddings=True),
    "llada-moe-7b-a1b": _llama(
        "LLaDAMoEModelLM", 16, 2048, 8192, 16, 16, vocab_size=157184, num_experts=64, num_experts_per_tok=8,
        expert_intermediate_size=1024, dense_intermediate_size=8192,
    ),
    "llada2-mini-16b-a1.4b": _llama("LLaDA2MoeModelLM", 20, 2048, 5120, 16, 4, moe_intermediate_size=512, **_BAILING),
    "llada2-flash-100b-a6b": _llama("LLaDA2MoeModelLM", 32, 4096, 9216, 32, 4, moe_intermediate_size=1024, **_BAILING),
    "dream-7b": _llama("DreamModel", 28, 3584, 18944, 28, 4, vocab_size=QWEN_LARGE),
    "open-dcoder-0.5b": _llama(
        "Qwen2ForCausalLM", 24, 896, 4864, 14, 2, vocab_size=QWEN, tie_word_embeddings=True, mask_token_id=151665
    ),
    "sdar-1.7b": _llama("SDARForCausalLM", 28, 2048, 6144, 16, 8, head_dim=128, vocab_size=QWEN),
    "sdar-4b": _llama("SDARForCausalLM", 36, 2560, 9728, 32, 8, head_dim=128, vocab_size=QWEN),
    "sdar-8b": _llama("SDARForCausalLM", 36, 4096, 12288, 32, 8, head_dim=128, vocab_size=QWEN),
    "sdar-30b-a3b": _llama(
        "SDARMoeForCausalLM", 48, 2048, 6144, 32, 4, head_dim=128, vocab_size=QWEN, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
    ),
    "a2d-qwen3-0.6b": _llama(
        "A2DQwen3LMHeadModel", 28, 1024, 3072, 16, 8, model_type="a2d-qwen3", head_dim=128, vocab_size=QWEN,
        tie_word_embeddings=True,
    ),
    "fast-dllm-v2-1.5b": _llama(
        "Fast_dLLM_QwenForCausalLM", 28, 1536, 8960, 12, 2, vocab_size=QWEN, tie_word_embeddings=True
    ),
    "fast-dllm-v2-7b": _llama("Fast_dLLM_QwenForCausalLM", 28, 3584, 18944, 28, 4, vocab_size=QWEN_LARGE),
    "stable-diffcoder-8b": _llama("StableDiffcoderForCausalLM", 32, 4096, 14336, 32, 8, vocab_size=155136),
    "nemotron-labs-3b": _llama("NemotronLabsDiffusionModel", 26, 3072, 9216, 32, 8, head_dim=128, vocab_size=131072),
    "nemotron-labs-8b": _llama("NemotronLabsDiffusionModel", 34, 4096, 14336, 32, 8, head_dim=128, vocab_size=131072),
    "diffullama-7b": _llama("DiffuLlamaForCausalLM", 32, 4096, 11008, 32, 32, vocab_size=32000),
    "qwen3-0.6b": _llama(
        "Qwen3ForCausalLM", 28, 1024, 3072, 16, 8, head_dim=128, vocab_size=QWEN, tie_word_embeddings=True
    ),
    "qwen3-8b": _llama("Qwen3ForCausalLM", 36, 4096, 12288, 32, 8, head_dim=128, vocab_size=QWEN),
    "diffugpt-s": _gpt2(12, 768, 12),
    "diffugpt-m": _gpt2(24, 1024, 16),
    "mdlm-owt": _dit(12, 768, 12, "mdlm"),
    "bd3lm-owt": _dit(12, 768, 12, "bd3lm") | {"adaln": False},
    "sedd-small": _sedd(12, 768, 12),
    "sedd-medium": _sedd(24, 1024, 16),
}  # fmt: skip


SHAPES = PUBLIC | {name: PUBLIC["llada-8b"] | own | {"n_kv_heads": own["n_heads"]} for name, own in SMALL.items()}


def cut(shape: str, layers: int | None = None, part: int = 1) -> dict[str, Any]:
    """config.json of a shape with so many layers, or with a part of its layers and of its tokens."""
    raw = dict(SHAPES[shape])
    count = next(key for key in ("num_hidden_layers", "n_layers", "n_blocks", "n_layer") if key in raw)
    raw[count] = max(1, raw[count] // part) if layers is None else layers
    if part > 1:
        raw |= {key: raw[key] // part for key in ("vocab_size", "embedding_size") if key in raw}
        raw |= {f"{role}_token_id": number for number, role in enumerate(("pad", "bos", "eos", "mask"))}
    return raw


def network_config(raw: dict[str, Any]) -> ModelConfig:
    """What a released config.json describes."""
    family = registry.recognise(raw, "")
    assert family is not None
    return family.config(raw, "")


def feed(ids: np.ndarray, first: int, scored: int) -> Feed:
    """The columns of a text from `first` on, those before them cached; the last of them are scored."""
    count = len(ids) - first
    asked = np.arange(max(0, count - scored), count)
    place = np.arange(first, len(ids))
    columns = Columns(ids[first:], place, np.full(count, -1), asked, place[asked])
    return Feed.of([columns], np.array([first]))


@dataclass(frozen=True)
class Load:
    """What one load took. Bytes; seconds. `imports` is the process before it loads anything; weights that are packed
    were packed by another process, which took `packing_seconds` and `packing_peak`."""

    shape: str
    dtype: str
    parameters: int
    weights: int
    imports: int
    peak: int
    load_seconds: float
    load_cpu: float  # seconds of CPU, which other processes do not lengthen
    step_seconds: float
    step_cpu: float
    canvas: int
    packing_seconds: float = 0.0
    packing_peak: int = 0

    @property
    def ratio(self) -> float:
        """Peak of the whole process over the weights."""
        return self.peak / self.weights

    @property
    def own_ratio(self) -> float:
        """As `ratio`, less what the process was before."""
        return (self.peak - self.imports) / self.weights

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": round(self.ratio, 4), "own_ratio": round(self.own_ratio, 4)}


def alone(module: str, function: str, *given: Any, **environment: str) -> Any:
    """What a function of a bench returns, called in a process of its own. Raises UnmaskError with its last words."""
    code = f"import json; from {module} import {function}; print(json.dumps({function}(*{given!r})))"
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnmaskError(last.removeprefix("unmask.errors.UnmaskError: "))
    return json.loads(done.stdout.splitlines()[-1])


def bench_load(
    shape: str,
    dtype: str,
    canvas: int,
    parent: Path | None,
    quantize: str | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Load:
    """Writes a checkpoint of a shape to a temporary folder (in `parent`), loads it in a fresh process, and makes one
    forward over a canvas of masks. Raises UnmaskError where disk or memory have no room, or the load fails."""
    if shape not in SHAPES:
        raise UnmaskError(f"shape '{shape}' is unknown; known: {', '.join(SHAPES)}")
    if canvas < 1:
        raise UnmaskError(f"--canvas must be at least 1, got {canvas}")
    if parent is not None and not parent.is_dir():
        raise UnmaskError(f"folder {parent} does not exist")
    with tempfile.TemporaryDirectory(prefix="unmask-load-", dir=parent) as name:
        folder = Path(name)
        report("writing the checkpoint")
        write(folder, SHAPES[shape], shape)
        cache = {"UNMASK_CACHE": str(folder / "cache")}
        try:
            packing = {}
            if quantize is not None:
                report("packing it")
                once = alone(__name__, "measure_packed", name, quantize, 1, **cache)
                packing = {"packing_seconds": once["load_seconds"], "packing_peak": once["peak"]}
            report("loading it")
            measured = (
                ("measure", name, dtype, canvas) if quantize is None else ("measure_packed", name, quantize, canvas)
            )
            found = alone(__name__, *measured, **cache)
        except UnmaskError as error:
            raise UnmaskError(f"loading shape '{shape}' failed: {str(error).replace(name, shape)}") from None
        return Load(shape=shape, canvas=canvas, **found, **packing)


def write(folder: Path, raw: dict[str, Any], shape: str, shard: int = SHARD) -> None:
    """Writes config.json and sharded bfloat16 weights of random values, a few megabytes in memory at a time."""
    import torch

    from unmask.checkpoints import weights as checkpoint
    from unmask.models.network import on_meta

    config = network_config(raw)
    needed = 2 * parameters(config).total
    free = shutil.disk_usage(folder).free
    if needed * 1.05 > free:
        raise UnmaskError(f"shape '{shape}' takes {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free")
    shapes = checkpoint.expected_shapes(on_meta(config), registry.recognise(raw, shape))
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(2**21, generator=generator) * 0.02).bfloat16().view(torch.int16).numpy().tobytes()
    ones = torch.ones(2**12, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    parts = list(_shards(shapes, shard))
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        header = {}
        end = 0
        for tensor, size in part.items():
            header[tensor] = {"dtype": "BF16", "shape": list(shapes[tensor]), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor, size in part.items():
                source = ones if len(shapes[tensor]) == 1 else noise
                for start in range(0, size, len(source)):
                    file.write(source[: size - start])
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    write_text(folder / "model.safetensors.index.json", json.dumps({"weight_map": weight_map}))
    write_text(folder / "config.json", json.dumps(raw))


def _shards(shapes: dict[str, tuple[int, ...]], limit: int) -> Iterator[dict[str, int]]:
    """Tensors and their bytes in bfloat16, so many at a time that a shard stays below the limit."""
    part: dict[str, int] = {}
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        if part and sum(part.values()) + size > limit:
            yield part
            part = {}
        part[name] = size
    yield part


def resident(key: str) -> int:
    """Bytes by /proc/self/status: VmRSS now, VmHWM at its highest; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def taken(name: str, began: tuple[float, float]) -> dict[str, float]:
    """Seconds since `clocks` were read, on the clock and of CPU."""
    wall, cpu = (now - then for now, then in zip(clocks(), began, strict=True))
    return {f"{name}_seconds": round(wall, 6), f"{name}_cpu": round(cpu, 6)}


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure(folder: str, dtype: str, canvas: int) -> dict[str, Any]:
    """Loads a checkpoint and makes one forward, in this process; returns the fields of `Load`."""
    import torch

    from unmask.attention import plain_mask
    from unmask.checkpoints.open import Checkpoint

    imports = resident("VmHWM")
    began = clocks()
    network = Checkpoint.open(folder, "cpu", dtype).network()
    loaded = taken("load", began)
    began = clocks()
    config = network.config
    ids = torch.full((1, min(canvas, config.max_length)), config.mask_token_id or 0)
    layout = Layout(config.layout, config.block_length or 1)
    with torch.inference_mode():
        network(ids, None, plain_mask(layout, ids.shape[1], ids.device), time_B=torch.tensor([0.5]))
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    return {
        "dtype": str(network.embedding.weight.dtype).removeprefix("torch."),
        "parameters": network.num_parameters(),
        "weights": weights,
        "imports": imports,
        "peak": resident("VmHWM"),
        **loaded,
        **taken("step", began),
    }


def measure_packed(folder: str, quantize: str, canvas: int) -> dict[str, Any]:
    """As `measure`, by the native forward, whose step denoises masks behind cached text."""
    from unmask import DiffusionLM

    imports = resident("VmHWM")
    began = clocks()
    lm = DiffusionLM.from_pretrained(folder, quantize=quantize)
    backend: Any = lm.backend
    config = lm.config
    loaded = taken("load", began)
    backend.open(Layout(config.layout, config.block_length or 1), 1, TEXT + canvas, True)
    step = feed(np.full(TEXT + canvas, config.mask_token_id or 0), TEXT, canvas)
    backend.forward(step)
    began = clocks()
    backend.forward(step)
    step_taken = taken("step", began)
    return {
        "dtype": quantize,
        "parameters": parameters(config).total,
        "weights": sum(array.nbytes for array in backend.network.weights.values()),
        "imports": imports,
        "peak": resident("VmHWM"),
        **loaded,
        **step_taken,
    }


def command(
    shape: Annotated[
        str, typer.Option(help="A public size, such as llada-8b; an unknown one lists them.")
    ] = "llada-8b",
    dtype: Annotated[str, typer.Option(help="auto (bfloat16, as it is written), bfloat16 or float32.")] = "auto",
    canvas: Annotated[int, typer.Option(help="Tokens of the one forward that is made.")] = 32,
    folder: Annotated[
        Path | None, typer.Option(help="Where to put the checkpoint for as long; the system's own by default.")
    ] = None,
    quantize: Quantize = None,
    as_json: Json = False,
) -> None:
    """Peak memory and seconds of loading a synthetic checkpoint of a public shape, in a process of its own.

    Example: `unmask bench load --shape llada-8b` (writes 16 GB to the temporary folder, and removes them)
    """
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        result = bench_load(shape, dtype, canvas, folder, quantize, lambda text: status.update(text))
    if as_json:
        print_record(result.to_dict())
        return
    print(
        f"{shape}: {result.parameters / 1e9:.2f}B parameters, {result.weights / 1e9:.2f} GB as {result.dtype}; peak "
        f"{result.peak / 1e9:.2f} GB = {result.ratio:.2f} of the weights ({result.own_ratio:.2f} without the "
        f"{result.imports / 1e9:.2f} GB of the process alone); loaded in {result.load_seconds:.1f} s "
        f"({result.load_cpu:.1f} of CPU), one forward over {result.canvas} tokens in {result.step_seconds:.2f} s "
        f"({result.step_cpu:.2f} of CPU)"
    )
    if quantize is not None:
        print(f"packed before, once, in {result.packing_seconds:.0f} s with {result.packing_peak / 1e9:.2f} GB at most")
