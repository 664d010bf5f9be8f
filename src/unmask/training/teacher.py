"""The network that an objective with a teacher learns from."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch

from unmask.models.transformer import Transformer
from unmask.objectives.objective import Objective

TeacherKind = Literal["start", "average"]


class Teacher:
    """A frozen network beside the one that is trained.

    kind: `start` is the network as the run began; `average` follows the running mean of its weights, which the trainer
    hands over after every step.
    """

    def __init__(self, network: Transformer, kind: TeacherKind = "start") -> None:
        self.kind = kind
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def teach(self, objective: Objective, noised: Any) -> Any:
        """The batch with this teacher's targets in it."""
        return objective.teach(self.network, noised)

    @torch.no_grad()
    def follow(self, values: dict[str, torch.Tensor]) -> None:
        """Takes over the running mean, where that is what teaches."""
        if self.kind == "average":
            for name, parameter in self.network.named_parameters():
                if name in values:
                    parameter.copy_(values[name])
