"""A model of ours may name the backend that it was measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unmask import DiffusionLM
from unmask.checkpoints.open import Checkpoint
from unmask.errors import UnmaskError


def test_a_config_names_its_backend(tiny: Any, tmp_path: Path) -> None:
    DiffusionLM(tiny(1, layout="causal", shift=True), None, None, "small").save_pretrained(tmp_path)
    assert Checkpoint.open(tmp_path).backend is None
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "backend": "torch"}))
    lm = DiffusionLM.from_pretrained(tmp_path)
    assert lm.computes == "torch"
    lm.save_pretrained(tmp_path / "again")
    assert Checkpoint.open(tmp_path / "again").backend == "torch"
    (tmp_path / "config.json").write_text(json.dumps({**config, "backend": "fpga"}))
    with pytest.raises(UnmaskError, match="backend is 'fpga'; use native"):
        Checkpoint.open(tmp_path)
