"""The seam for what mixes positions: another mixer takes part in everything that attention takes part in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from unmask import DiffusionLM, UnmaskError
from unmask.models import config as configs
from unmask.models.config import ModelConfig
from unmask.models.mixers import MIXERS, Context
from unmask.models.network import fresh


class Decay(nn.Module):
    """Sums of what came before, weaker with distance: attention-free, causal."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        place = torch.arange(x_BTD.shape[1])
        distance = place[:, None] - place
        weight_TT = torch.where(distance >= 0, self.rate ** distance.clamp(min=0), 0.0)
        return self.proj(torch.einsum("ts,bsd->btd", weight_TT, x_BTD))


@pytest.fixture
def decay(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The two lines that a mixer takes, and a config that asks for it."""
    monkeypatch.setitem(MIXERS, "decay", Decay)
    monkeypatch.setitem(ModelConfig.__annotations__, "mixers", tuple[Literal["attention", "decay"], ...])
    configs._hints.cache_clear()
    sizes = {"vocab_size": 17, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
    yield {**sizes, "layout": "causal", "shift": True, "bos_token_id": 0, "mixers": ["decay"]}
    configs._hints.cache_clear()


def test_another_mixer_is_made_trained_saved_and_loaded(decay: dict[str, Any], tmp_path: Path) -> None:
    network = fresh(ModelConfig.from_dict(decay), seed=0)
    assert all(isinstance(block.mixer, Decay) for block in network.blocks)
    ids = torch.arange(12)[None]
    loss = nn.functional.cross_entropy(network(ids)[0, 1:], ids[0, 1:])
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    before = network.eval()(ids)
    changed = torch.cat([ids[:, :8], ids[:, 8:].flip(1)], 1)
    torch.testing.assert_close(network(changed)[:, :9], before[:, :9])  # causal
    assert not torch.allclose(network(changed)[:, 10:], before[:, 10:])
    DiffusionLM(network, None).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mixers"] == ["decay"]
    again = DiffusionLM.from_pretrained(tmp_path)
    assert torch.equal(again.model(ids), before)
    with pytest.raises(UnmaskError, match=r"does not implement mixers|cannot run"):
        DiffusionLM.from_pretrained(tmp_path, backend="native")


def test_an_unknown_mixer_is_refused() -> None:
    values = {"vocab_size": 17, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24}
    with pytest.raises(UnmaskError, match="mixers"):
        ModelConfig.from_dict({**values, "mixers": ["nothing"]})
    assert ModelConfig.from_dict({**values, "mixer": "attention"}) == ModelConfig.from_dict(values)  # earlier versions
    with pytest.raises(UnmaskError, match="mixer"):
        ModelConfig.from_dict({**values, "mixer": "mamba2"})
