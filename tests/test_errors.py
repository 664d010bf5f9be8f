"""Messages of refusals: one printable line of bounded length that keeps its beginning and its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask import DiffusionLM
from unmask.errors import MOST, TAIL, UnmaskError
from unmask.serving.api.errors import APIError


@pytest.mark.parametrize("kind", [lambda text: str(UnmaskError(text)), lambda text: str(APIError(400, text))])
def test_a_message_of_any_length_is_one_line(kind: object) -> None:
    assert callable(kind)
    whole = "a" * MOST
    assert kind(whole) == whole
    cut = kind(f"what: {'x' * 100_000}; remedy")
    assert len(cut) == MOST
    assert cut.startswith("what: x")
    assert cut.endswith("x; remedy")
    assert cut[MOST - TAIL - 5 : MOST - TAIL] == " ... "
    assert kind("a\nb\x1b\u202ec") == "a b  c"


def test_a_config_of_long_values_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x" * 50_000, "architectures": ["y" * 50_000]}))
    with pytest.raises(UnmaskError) as caught:
        DiffusionLM.from_pretrained(str(tmp_path))
    assert 20 < len(str(caught.value)) <= MOST
