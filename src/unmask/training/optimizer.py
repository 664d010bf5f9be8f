"""AdamW and Muon, the learning rate of a step, and the running mean of the weights, which a run validates and saves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unmask.training.shard import local, own_rows, whole

if TYPE_CHECKING:
    from unmask.training.recipe import TrainingConfig

COEFFICIENTS = (3.4445, -4.775, 2.0315)


def orthogonal(matrix: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly, by Newton-Schulz iterations in a dtype."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal (Jordan et al. 2024), scaled to the size of AdamW's.

    As torch.optim.Muon, in a dtype of choice: where bfloat16 is emulated the iterations are far faster in float32.
    Of matrices that are split over processes each process makes all of the update, one matrix at a time, and takes its
    rows.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            momentum = group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                gradient = local(parameter.grad)
                buffer = local(state["momentum_buffer"])
                buffer.lerp_(gradient, 1 - momentum)
                gradient.lerp_(buffer, momentum)
                update = orthogonal(whole(parameter.grad), self.dtype)
                rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape))
                local(parameter).mul_(1 - group["lr"] * group["weight_decay"])
                local(parameter).add_(own_rows(update, parameter), alpha=-rate)


def make_optimizers(
    model: nn.Module, config: TrainingConfig, iterations: torch.dtype = torch.bfloat16
) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for hidden matrices beside AdamW for all else.

    Weight decay touches matrices only. Both optimizers' updates are of one size, so one rate serves both.
    iterations: dtype of Muon's.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    muon = [
        p for n, p in named if config.optimizer == "muon" and p.dim() == 2 and "embedding" not in n and "head" not in n
    ]
    chosen = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if not muon:
        return [adamw]
    return [adamw, Muon(muon, config.learning_rate, config.weight_decay, iterations)]


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to final_learning_rate of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    last = config.final_learning_rate
    return config.learning_rate * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Ema:
    """An exponential moving average of parameters by name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after `step` steps; early on it follows them closely."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            local(self.values[name]).lerp_(local(parameter.detach()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters hold the average within, and their own values again afterwards."""
        current = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        put(self.parameters, self.values)
        try:
            yield
        finally:
            put(self.parameters, current)


@torch.no_grad()
def put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copies values, whole or split as the parameters are, into parameters of the same names."""
    for name, parameter in parameters.items():
        local(parameter).copy_(own_rows(values[name], parameter))
