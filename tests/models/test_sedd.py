"""SEDD's config: which forward process its network was trained for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask import UnmaskError
from unmask.checkpoints.families import dit

FIXTURES = Path(__file__).parent.parent / "conformance"
SAID = {"sigma_min": 1e-4, "sigma_max": 20}


@pytest.mark.parametrize(
    ("graph", "said", "schedule", "span"),
    [
        ("absorb", None, "log_linear", (1e-3, 1.0)),
        ("uniform", None, "geometric", (1e-3, 1.0)),
        ("uniform", {"type": "geometric", **SAID}, "geometric", (1e-4, 20.0)),
        ("absorb", {"type": "loglinear", **SAID}, "log_linear", (1e-4, 20.0)),
    ],
)
def test_the_schedule_is_that_of_the_config(
    graph: str, said: dict[str, object] | None, schedule: str, span: tuple[float, float]
) -> None:
    raw = json.loads((FIXTURES / f"sedd_{graph}" / "config.json").read_text()) | ({"noise": said} if said else {})
    config = dit.SEDD.config(raw, "here")
    assert (config.noise_schedule, config.noise_range) == (schedule, span)
    assert config.time_conditioned


@pytest.mark.parametrize(
    ("said", "says"),
    [({"type": "cosine"}, "noise.type 'cosine'"), ({"type": "geometric", "sigma_min": 2.0}, "noise_range")],
)
def test_a_schedule_that_is_none_is_refused(said: dict[str, object], says: str) -> None:
    raw = json.loads((FIXTURES / "sedd_uniform" / "config.json").read_text())
    with pytest.raises(UnmaskError, match=says):
        dit.SEDD.config(raw | {"noise": said}, "here")
