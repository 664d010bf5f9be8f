"""Networks of shapes only, and that loading a model stays clear of torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from unmask.models.network import unfilled


def test_parameters_have_shapes_and_no_values() -> None:
    with unfilled():
        embedding, linear = nn.Embedding(4, 2), nn.Linear(3, 5)
    assert embedding.weight.is_meta
    assert (tuple(linear.weight.shape), linear.weight.requires_grad) == ((5, 3), True)
    assert not torch.empty(1).is_meta
    assert nn.Linear(3, 5).weight.abs().max() > 0  # and afterwards they are filled again


def test_loading_a_model_does_not_import_the_compiler() -> None:
    program = (
        "import sys; from unmask.lm import DiffusionLM; DiffusionLM.from_pretrained('austen').generate('a', 2); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
