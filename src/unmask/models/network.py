"""Making networks: from scratch with random weights, or of shapes only, to be filled from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unmask import machine
from unmask.models.config import ModelConfig
from unmask.models.diffusion_gemma import DiffusionGemma
from unmask.models.transformer import Transformer


def fresh(config: ModelConfig, seed: int) -> Transformer:
    """A network to be trained from scratch, its random weights those of the seed."""
    return _class(config)(config).initialise(seed)


def on_meta(config: ModelConfig) -> Transformer:
    """A network whose parameters have shapes and no values."""
    with unfilled():
        return _class(config)(config)


def fill(network: Transformer, tensors: Iterable[tuple[str, Tensor]], trained: bool = False) -> None:
    """Puts tensors into a network that was made on the meta device, in place of its parameters; a tied head follows."""
    for name, tensor in tensors:
        module, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=trained))
    if network.config.tie_embeddings:
        network.head.weight = network.embedding.weight


def _class(config: ModelConfig) -> type[Transformer]:
    within_quota()
    return DiffusionGemma if config.layout == "canvas" else Transformer


def within_quota() -> None:
    """No more threads of torch than the control group leaves CPUs: it counts those of the machine."""
    most = machine.quota()
    if torch.get_num_threads() > most:
        torch.set_num_threads(max(1, int(most)))


class _NoInitialisation(TorchFunctionMode):
    """Leaves tensors as they are where `torch.nn.init` would fill them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules made inside have parameters on the meta device. Filling them would change nothing, and to do so torch
    imports its compiler, for seconds."""
    with torch.device("meta"), _NoInitialisation():
        yield
