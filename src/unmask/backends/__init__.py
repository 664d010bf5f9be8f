"""Backends: what computes a model's forwards. Each names the config fields that it implements; all else is refused.

A backend is a module and one line in `BACKENDS`. The module has
  IMPLEMENTS: fields of ModelConfig and which of their values; one that is not named must have its default;
  unavailable(device): why the backend cannot run here on a device, None where it can;
  unfit(config), where fields have to suit each other: why it does not run a model, None where it does;
  create(source, sibling, progress): a `Backend`, which shares the weights of `sibling`, another of the same model;
  progress is called while weights are packed, which is done once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from unmask.decoding.feed import Backend
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from unmask.checkpoints.open import Checkpoint
    from unmask.models.transformer import Transformer

BACKENDS = {
    "torch": "unmask.backends.torch",
    "native": "unmask.backends.native",  # 8-bit weights
    "native-q4": "unmask.backends.native.four_bit",  # 4-bit weights
    "native-f32": "unmask.backends.native.float32",
}
QUANTIZED = {"q8": "native", "q4": "native-q4", "none": "native-f32"}
Allowed = Callable[[Any], bool]
Progress = Callable[[int, int], None]  # bytes packed so far, and in all


def anything(value: Any) -> bool:
    return True


def one_of(*values: Any) -> Allowed:
    return lambda value: value in values


def multiple_of(size: int, most: float = float("inf")) -> Allowed:
    return lambda value: value % size == 0 and value <= most


@dataclass(frozen=True)
class Source:
    """What a backend is made from: a model's config, its torch network once asked for, and the files it came from."""

    config: ModelConfig
    network: Callable[[], Transformer]
    loaded: Checkpoint | None = None


def _module(name: str) -> Any:
    return import_module(BACKENDS[name])


def refusal(name: str, config: ModelConfig, device: str = "cpu") -> str | None:
    """Why a backend does not run a model, in a clause that follows its name; None where it does."""
    module = _module(name)
    reason: str | None = module.unavailable(device)
    if reason is not None:
        return reason
    for field in fields(ModelConfig):
        value = getattr(config, field.name)
        allowed = module.IMPLEMENTS.get(field.name)
        default = None if field.default is MISSING else field.default
        if not (value == default if allowed is None else allowed(value)):
            return f"does not implement {field.name} {value!r}"
    unfit: str | None = module.unfit(config) if hasattr(module, "unfit") else None
    return unfit


def choose(name: str, loaded: Checkpoint, dtype: str | None = None, quantize: str | None = None) -> str:
    """The backend that `name` stands for with a model; `auto` is the fastest that runs it.

    dtype: of the weights, None for the backend's own choice. quantize: q8, q4 or none, of the native backend.
    Raises UnmaskError naming what is unknown or not implemented.
    """
    if quantize is not None:
        if quantize not in QUANTIZED:
            raise UnmaskError(f"quantize '{quantize}' is unknown; use one of {', '.join(QUANTIZED)}")
        if name not in ("auto", "native", QUANTIZED[quantize]) or dtype is not None:
            raise UnmaskError("quantize is of backend 'native', without a dtype; leave the others out")
        name = QUANTIZED[quantize]
    if name == "auto":
        # small ones are fast as they are, and write torch's ids
        fastest = loaded.backend or ("native" if loaded.is_large else "native-f32")
        fits = dtype is None and refusal(fastest, loaded.config, loaded.device) is None
        return fastest if fits else "torch"
    if name not in BACKENDS:
        raise UnmaskError(f"backend '{name}' is unknown; use one of auto, {', '.join(BACKENDS)}")
    if name == "native" and dtype == "float32":
        name = "native-f32"
    if name != "torch" and dtype not in (None, "float32"):
        raise UnmaskError(f"backend '{name}' does not compute in {dtype}; use backend='torch'")
    reason = refusal(name, loaded.config, loaded.device)
    if reason is not None:
        raise UnmaskError(f"backend '{name}' {reason} (model '{loaded.name}'); use backend='torch'")
    return name


def create(name: str, source: Source, sibling: Backend | None = None, progress: Progress | None = None) -> Backend:
    """A backend by its name; for `sibling` and `progress` see above."""
    made: Backend = _module(name).create(source, sibling, progress)
    return made
