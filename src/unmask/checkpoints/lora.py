"""Low-rank adapters (LoRA, arXiv 2106.09685) on any projection of any layout, saved and read as PEFT does.

Shapes: N outputs, K inputs, R the rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.canvas import Array
from unmask.checkpoints.folder import LORA as CONFIG
from unmask.checkpoints.folder import LORA_WEIGHTS as WEIGHTS
from unmask.checkpoints.folder import write_json
from unmask.checkpoints.rows import Groups, Matrix, not_finite
from unmask.checkpoints.safetensors import read_tensors, write_tensors
from unmask.decoding.options import option
from unmask.errors import UnmaskError
from unmask.models.network import fill
from unmask.models.transformer import Transformer

PREFIX = "base_model.model."
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """rank 0 trains all weights. targets: names of projections as this package has them, or ends of their paths."""

    rank: int = option(0, ge=0)
    alpha: float = option(16.0, gt=0, lt=1e4)
    targets: tuple[str, ...] = PROJECTIONS
    rslora: bool = False  # scale by alpha / sqrt(rank) (arXiv 2312.03732) in place of alpha / rank
    merge: bool = True  # the finished model is whole; false leaves the adapter alone, for PEFT

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def attach(network: Transformer, config: LoraConfig, seed: int) -> list[str]:
    """Freezes the network and gives its targets a `lora_A` and a `lora_B`, which change nothing yet; returns where.

    Raises UnmaskError for a target that the network does not have.
    """
    network.requires_grad_(False)
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    linear.pop("head", None)  # the loss reads its rows as they are
    chosen: list[str] = []
    for target in config.targets:
        found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not found and target not in PROJECTIONS:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise UnmaskError(f"recipe: lora.targets names {target!r}, which the base does not have; it has {known}")
        chosen += [name for name in found if name not in chosen]
    if not chosen:
        raise UnmaskError(f"recipe: the base has none of lora.targets {', '.join(config.targets)}")
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(chosen):
        module = linear[name]
        bound = 1 / math.sqrt(module.in_features)  # PEFT's start: kaiming_uniform with a = sqrt(5)
        down = torch.empty(config.rank, module.in_features).uniform_(-bound, bound, generator=generator)
        module.lora_A = nn.Parameter(down.to(module.weight.device))
        module.lora_B = nn.Parameter(torch.zeros(module.out_features, config.rank, device=module.weight.device))
        module.register_forward_hook(partial(_added, config.scale))
    return sorted(chosen)


def _added(scale: float, module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """A projection's output with the adapter's share."""
    x = inputs[0]
    low = F.linear(x, module.lora_A.to(x.dtype))
    return output + F.linear(low, module.lora_B.to(low.dtype)).to(output.dtype) * scale


@torch.no_grad()
def merge(network: Transformer, paths: list[str], config: LoraConfig) -> None:
    """Adds the adapters to the weights that they stand beside and takes them away."""
    for path in paths:
        module: Any = network.get_submodule(path)
        share = (module.lora_B.float() @ module.lora_A.float()) * config.scale
        module.weight.copy_((module.weight.float() + share).to(module.weight.dtype))
        del module.lora_A, module.lora_B
        module._forward_hooks.clear()


def put(network: Transformer, config: LoraConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """Attaches an adapter that `read_peft` read to its base; returns where, as `merge` takes it."""
    paths = attach(network, config, seed=0)
    device = network.embedding.weight.device
    fill(network, ((name, tensor.to(device)) for name, tensor in tensors.items()), trained=True)
    return paths


@dataclass(frozen=True)
class Added:
    """A matrix of a base with an adapter's share, its rows read when they are asked for."""

    part: Matrix
    up_NR: Array  # scaled
    down_RK: Array
    kind: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.part.shape

    def values(self, first: int = 0, last: int | None = None) -> Array:
        return self.part.values(first, last) + self.up_NR[first:last] @ self.down_RK

    def groups(self, first: int, last: int) -> Groups:
        raise ValueError("sums have no codes")


def added(rows: Mapping[str, Matrix], config: LoraConfig, tensors: Mapping[str, Tensor]) -> dict[str, Matrix]:
    """The parameters of a base with the adapter that `read_peft` read of a folder."""
    out = dict(rows)
    for path in config.targets:
        up, down = (tensors[f"{path}.lora_{half}"].numpy() for half in "BA")
        out[f"{path}.weight"] = Added(rows[f"{path}.weight"], np.float32(config.scale) * up, down)
    return out


def save_peft(
    folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig, names: Mapping[str, str], base: str
) -> None:
    """Writes an adapter, `PATH.lora_A` and `PATH.lora_B` by our paths, as PEFT does, under `peft_names`."""
    out = {}
    for name, tensor in tensors.items():
        path, _, part = name.rpartition(".")
        out[f"{PREFIX}{names[path]}.{part}.weight"] = tensor.to(torch.bfloat16)
    write_tensors(folder / WEIGHTS, out, {"format": "pt"})
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({names[name.rpartition(".")[0]] for name in tensors}),
    }
    write_json(folder / CONFIG, raw)


def peft_names(paths: list[str], table: Mapping[str, list[str]]) -> dict[str, str]:
    """What the base's own layout calls each projection; one that is joined with others there has no name."""
    theirs = {ours[0]: name for name, ours in table.items() if len(ours) == 1}
    missing = [path for path in paths if f"{path}.weight" not in theirs]
    if missing:
        raise UnmaskError(
            f"the base stores {missing[0]!r} joined with others, which PEFT's layout cannot express; set lora.merge: "
            "true, or leave it out of lora.targets"
        )
    return {path: theirs[f"{path}.weight"].removesuffix(".weight") for path in paths}


def read_peft(
    folder: Path, network: Transformer, table: Mapping[str, list[str]]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter of a PEFT folder in our names, to be attached to its base.

    Raises UnmaskError for one of another kind, of another base, or with parts that are not low-rank pairs.
    """
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        rank = int(raw["r"])
        alpha = float(raw["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnmaskError(f"{folder / CONFIG} is not PEFT's ({error})") from None
    if raw.get("peft_type") != "LORA" or raw.get("use_dora") or raw.get("rank_pattern") or raw.get("alpha_pattern"):
        raise UnmaskError(f"{folder}: only plain LoRA of one rank is read; merge it with PEFT and load the result")
    ours = {name.removesuffix(".weight"): weights for name, weights in table.items()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder / WEIGHTS).items():
        path, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if part not in ("lora_A", "lora_B") or len(ours.get(path, ())) != 1:
            raise UnmaskError(f"{folder}: the base has no projection for its tensor {name!r}; it is of another base")
        own = ours[path][0].removesuffix(".weight")
        module: Any = network.get_submodule(own)
        expected = (rank, module.in_features) if part == "lora_A" else (module.out_features, rank)
        if tuple(tensor.shape) != expected:
            raise UnmaskError(f"{folder}: {name!r} is {list(tensor.shape)}, its base asks for {list(expected)}")
        if not bool(torch.isfinite(tensor).all()):
            raise not_finite(folder / WEIGHTS, name)
        tensors[f"{own}.{part}"] = tensor.float()
    targets = tuple(sorted({name.rpartition(".")[0] for name in tensors}))
    if len(tensors) != 2 * len(targets):
        raise UnmaskError(f"{folder / WEIGHTS} has lora_A or lora_B of a projection, but not both; copy it again")
    return LoraConfig(rank, alpha, targets, bool(raw.get("use_rslora"))), tensors
