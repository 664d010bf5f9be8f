"""`unmask bench load`: what it writes loads, and what it says adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import load as bench_load

from unmask.backends.native.network import library
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.safetensors import TensorFiles
from unmask.errors import UnmaskError


def test_a_synthetic_checkpoint_is_sharded_and_loads(tmp_path: Path) -> None:
    bench_load.write(tmp_path, bench_load.SHAPES["llada-tiny"], "llada-tiny", shard=50_000)
    files = TensorFiles(tmp_path)
    shards = {stored.path.name for stored in files.stored.values()}
    assert len(shards) > 2
    assert all(name.endswith(f"-of-{len(shards):05}.safetensors") for name in shards)
    assert files.bytes_by_dtype().keys() == {"BF16"}
    found = Checkpoint.open(tmp_path, dtype="auto")
    model = found.network()
    family = found.family
    assert family is not None
    assert model.embedding.weight.std() > 0.01
    assert (model.norm.weight == 1).all()


def test_a_load_is_measured_in_its_own_process(tmp_path: Path) -> None:
    result = bench_load.bench_load("llada-tiny", "auto", 8, tmp_path)
    assert result.weights == 2 * result.parameters
    assert result.peak >= result.imports > 0
    assert (result.dtype, result.canvas) == ("bfloat16", 8)
    assert json.loads(json.dumps(result.to_dict()))["ratio"] == pytest.approx(result.ratio, abs=1e-4)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_measured_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ("none", "auto", 8, None),
        ("llada-tiny", "auto", 0, None),
        ("llada-tiny", "auto", 8, tmp_path / "x"),
    ):
        with pytest.raises(UnmaskError):
            bench_load.bench_load(*arguments)
    with pytest.raises(UnmaskError, match=r"loading shape 'llada-tiny' failed: dtype 'int3' is unknown"):
        bench_load.bench_load("llada-tiny", "int3", 8, tmp_path)
    monkeypatch.setattr(bench_load.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UnmaskError, match=r"takes .* GB and .* free"):
        bench_load.bench_load("llada-tiny", "auto", 8, tmp_path)


@pytest.mark.skipif(library() is None, reason="no compiled forward here")
def test_weights_are_packed_once_and_mapped(tmp_path: Path) -> None:
    result = bench_load.bench_load("llada-tiny", "auto", 8, tmp_path, "q4")
    assert min(result.packing_seconds, result.load_seconds, result.packing_peak, result.step_seconds) > 0
    assert min(result.load_cpu, result.step_cpu) > 0
    assert result.dtype == "q4"
    assert not list(tmp_path.iterdir())
