"""What noise levels do to a network's layers, beside torch, and how many levels are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from unmask.backends.native.modulation import KEPT, Modulation, stored
from unmask.checkpoints.rows import Held
from unmask.models.transformer import Transformer


def taught(tiny: Callable[..., Transformer]) -> tuple[Transformer, Modulation]:
    network = tiny(time_condition_size=24, num_layers=3)
    for number, (name, parameter) in enumerate(network.named_parameters()):
        if "modulation" in name or "time_embedding" in name:
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    held: dict[str, Any] = {name: Held(p.detach().numpy()) for name, p in network.named_parameters()}
    return network, Modulation(stored(held, 3))


def test_vectors_are_those_of_torch(tiny: Callable[..., Transformer]) -> None:
    network, modulation = taught(tiny)
    times = np.array([0.3, 0.0, 11.0, 0.3], np.float32)
    found, which = modulation.rows(times)
    assert found.shape == (3, (3 * 6 + 2) * 32)
    with torch.inference_mode():
        condition = network.time_embedding(torch.from_numpy(times))  # type: ignore[misc]
        parts = [block.modulation(condition) for block in network.blocks]  # type: ignore[operator]
        expected = torch.cat([*parts, network.final_modulation(condition)], -1)  # type: ignore[misc]
    assert expected.std() > 0.3
    np.testing.assert_allclose(found[which], expected.numpy(), rtol=0, atol=2e-5)


def test_levels_are_the_same_again_after_many_others(tiny: Callable[..., Transformer]) -> None:
    _, modulation = taught(tiny)
    first = modulation.rows(np.array([0.25]))[0].copy()
    for level in np.linspace(0.5, 4, 3 * KEPT):
        modulation.rows(np.array([level]))
    assert len(modulation.known) == KEPT
    assert 0.25 not in modulation.known
    np.testing.assert_array_equal(modulation.rows(np.array([3.9, 0.25]))[0][0], first[0])
