"""Folders that cannot be read: what they are, and how to make one that can be read of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError

CONVERT = (
    'convert it where you trust it: python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() '
    "for k, v in torch.load('FILE', weights_only=True).items()}, 'model.safetensors')\""
)
# a file of the folder, matched from its start, and what it says of the whole
SIGNS = (
    (r"model_index\.json$", "belongs to a pipeline of diffusers, which makes images; load a language model"),
    (r"zero_to_fp32\.py$", "is a checkpoint of DeepSpeed; run its own zero_to_fp32.py with --safe_serialization first"),
    (r"pytorch_model_fsdp|__\d+_\d+\.distcp$", "is sharded by FSDP; merge it with: accelerate merge-weights"),
    (r".*\.(bin|pt|pth|ckpt)$", f"is a pickle, which can run code; {CONVERT}"),
    (r"consolidated.*\.safetensors$", "has its maker's own names; take the version of the model for transformers"),
    (r".*\.npz$", "holds weights of an early MLX; take the original model's safetensors"),
    (r".*\.(h5|msgpack)$", "holds weights of TensorFlow or Flax; save them with transformers as safetensors"),
    (r".*\.(onnx|xml|engine|tflite|mlmodel|mlpackage)$", "is a compiled graph; take the model's safetensors"),
    (
        r".*-\d+-of-\d+\.safetensors$",
        "is one of several, and model.safetensors.index.json is missing; fetch it too",
    ),
)
QUANTISED = (  # ends of names of tensors, and what made them
    ((".qweight", ".qzeros"), "GPTQ or AWQ"),
    ((".weight_scale_inv", ".weight_scale", ".input_scale"), "FP8 with scales"),
    ((".absmax", ".SCB", ".quant_map"), "bitsandbytes"),
    ((".weight_packed",), "compressed-tensors"),
    ((".scales",), "MLX"),
)


def unreadable(folder: Path, missing: str) -> UnmaskError:
    """What to say of a folder in which a file is missing."""
    try:
        files = sorted(path.name for path in folder.iterdir())
    except OSError:
        files = []
    if "state.json" in files and "optimizer.safetensors" in files:
        return UnmaskError(
            f"{folder} is the state of a run of `unmask finetune` or `adapt`, made to go on from; the same "
            f"command goes on, and at its end the model is in {folder.parent / 'model'}"
        )
    for pattern, says in SIGNS:
        found = next((name for name in files if re.match(pattern, name)), None)
        if found is not None:
            return UnmaskError(f"{folder / found} {says}")
    inside = [name for name in files if (folder / name / "config.json").is_file()]
    if inside:
        best = "model" if "model" in inside else inside[-1]
        return UnmaskError(f"{folder} is no model itself but holds {len(inside)}; name one, such as {folder / best}")
    if any(name.startswith("checkpoint-") for name in files):
        return UnmaskError(
            f"{folder} is a run of `unmask train` that has not ended; the same command goes on, and at its end the "
            f"model is in {folder / 'model'}"
        )
    return UnmaskError(
        f"{folder / missing} does not exist; a checkpoint folder holds config.json and model.safetensors"
    )


def refuse_quantised(raw: Mapping[str, Any], source: str) -> None:
    """Raises UnmaskError for a config.json whose weights are quantised, naming by what."""
    method = raw.get("quantization_config")
    named = method.get("quant_method", "") if isinstance(method, dict) else ""
    mlx = raw.get("quantization")
    if isinstance(mlx, dict) and mlx and not named:
        raise UnmaskError(
            f"{source}: weights quantised by 'MLX' to {mlx.get('bits')!r:.10} bits are not read; load the unquantised "
            "model, or make one on a Mac: mlx_lm.convert --dequantize"
        )
    if method:
        raise UnmaskError(f"{source}: weights quantised by {named!r:.40} are not read; load the unquantised model")


def quantised_by(names: Collection[str]) -> str | None:
    """What quantised the tensors of these names; None where nothing did."""
    for ends, kind in QUANTISED:
        if any(name.endswith(ends) for name in names):
            return kind
    return None
