"""`unmask bench forward`: passes of a part of a shape by several backends, on the same weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import forward, load
from benchmarks.cpu import network_config
from benchmarks.llama_twin import write_random

from unmask import DiffusionLM
from unmask.backends.native.network import library
from unmask.errors import UnmaskError

TINY: dict[str, Any] = {
    "qwen": load._llama("Qwen3ForCausalLM", 4, 64, 96, 4, 2, head_dim=32, vocab_size=1024, tie_word_embeddings=True),
    "moe": {**load.PUBLIC["llada-moe-7b-a1b"], "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    | {"expert_intermediate_size": 32, "dense_intermediate_size": 96, "vocab_size": 16384, "num_experts": 16},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", "")  # which the command sets; put back behind the test
    for name, raw in TINY.items():
        monkeypatch.setitem(load.SHAPES, name, raw)
    monkeypatch.setattr("benchmarks.roofline.product_rate", lambda: 1e9)
    monkeypatch.setattr("benchmarks.roofline.read_rate", lambda: 1e6)


def run(capsys: pytest.CaptureFixture[str], shape: str, backends: str) -> Any:
    forward.command([shape], backends, "1,5", 1, "float32", 1, 0.0, False, True)
    (record,) = json.loads(capsys.readouterr().out)
    return record


@pytest.mark.skipif(library() is None, reason="no compiled forward here")
@pytest.mark.parametrize("shape", ["qwen/2", "moe/4"])
def test_backends_are_timed_on_the_same_weights(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(capsys, shape, "native-f32,torch")
    assert record["rounds"] == forward.FEWEST
    assert {way["name"]: way["agree"] for way in record["ways"]} == {"native-f32": 1.0, "torch": 1.0}
    assert all(len(seconds) == record["rounds"] for way in record["ways"] for seconds in way["seconds"].values())
    config = network_config(load.cut(shape[:-2], part=int(shape[-1])))
    assert (config.num_layers, config.vocab_size) == {"qwen/2": (2, 512), "moe/4": (4, 4096)}[shape]
    reading, operations = record["floors"]["1"]
    seen = 256
    asked = 8 * 32 * 3 * 64 + 16 * 64 if config.num_experts else 96 * 3 * 64
    layer = asked + 64 * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    layer += 2 * seen * config.num_heads * config.head_dim
    assert operations == pytest.approx(2e-9 * (config.num_layers * layer + 64 * config.vocab_size))
    wide = record["floors"]["5"][0] - reading  # columns that ask other experts read more of them
    experts = 4 * config.num_layers * config.num_experts * 3 * 64 * config.expert_size
    assert wide == pytest.approx(1e-6 * experts * (0.5 - 0.5**5), rel=1e-3)


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="no llama.cpp here")
def test_llama_cpp_reads_the_same_network(capsys: pytest.CaptureFixture[str]) -> None:
    record = run(capsys, "qwen/2", "native-q4,llama.cpp")
    assert record["ways"][1]["agree"] > 0.8


def test_a_random_file_is_what_its_config_says(tmp_path: Path) -> None:
    """Its rows differ, so that best tokens tell networks apart."""
    config = network_config(load.cut("qwen", part=2))
    lm = DiffusionLM.from_pretrained(write_random(config, tmp_path / "random.gguf"), backend="torch")
    assert lm.config.num_layers == 2
    assert lm.logits(torch.tensor([[5, 6, 7]])).isfinite().all()
    rows = lm.model.embedding.weight.detach().numpy()
    assert len(np.unique(rows, axis=0)) == len(rows) == 512
    assert rows.std() == pytest.approx(64**-0.5, rel=0.1)


@pytest.mark.parametrize(
    ("shape", "backends", "message"),
    [
        ("none", "native", "no shape 'none'"),
        ("qwen/0", "native", "no shape 'qwen/0'"),
        ("qwen", "x", "no backend 'x'"),
        ("qwen", "llama.cpp", "beside a backend of ours"),
        ("moe", "native,llama.cpp", "Qwen3's shape"),
    ],
)
def test_what_cannot_be_timed_is_refused(
    shape: str, backends: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnmaskError, match=message):
        run(capsys, shape, backends)
