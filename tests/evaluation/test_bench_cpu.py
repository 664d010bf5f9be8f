"""`unmask bench cpu`: a network and the same with one layer less are timed, and what is worked out adds up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import cpu, load
from benchmarks.cpu import CANVAS, Cost, Released, network_config, page

from unmask.backends.native.network import library

SMALL = load._llama("LLaDA2MoeModelLM", 20, 64, 96, 4, 2, moe_intermediate_size=32, **load._BAILING) | {
    "vocab_size": 512, "head_dim": 16, "num_experts": 16, "mask_token_id": 3, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip


@pytest.mark.skipif(library() is None, reason="no compiled forward here")
@pytest.mark.parametrize("weights", cpu.WEIGHTS)
def test_a_shape_is_measured_by_its_last_layer(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One dense layer and two with experts: what the last adds is counted as often as there are such layers."""
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu, "FLUSHED", 1 << 16)
    monkeypatch.setitem(load.SHAPES, "small", SMALL)
    monkeypatch.setitem(cpu.PUBLIC, "small", SMALL)
    given = []

    def here(module: str, function: str, *arguments: object, **environment: str) -> object:
        given.append((module, function))
        return getattr(cpu, function)(*arguments)

    monkeypatch.setattr(cpu, "alone", here)
    found = cpu.cost(Released("small", "B", 4), weights)
    assert given == [("benchmarks.cpu", "pack"), ("benchmarks.cpu", "measure")]
    assert set(found.seconds) == {1, 4, 8}
    assert found.token_bytes == 20 * 2 * 16 * 2 * 2
    experts = 3 * 16 * 32 * 64 * {"q4": 20, "q8": 34}[weights] / 32
    rest = 20 * 3 * 64 * 128 + 512 * 64 * 4 * 2 + 16 * 64 * 4 * 20 + 2**21
    assert 19 * experts < found.weight_bytes < 19 * experts * 1.1 + rest


def costs(kind: str, block: int) -> Cost:
    seconds = {1: 0.5, 2 * block: 2.0, block: 1.0, CANVAS: 9.0}
    return Cost(Released("shape", kind, block), "q4", 10, 5e9, 1e5, 0.3e9, seconds)


def test_tokens_a_second_are_those_of_a_block() -> None:
    """Step by step: a block of 32 at 4 a step takes one step that reads more, and seven of its own."""
    a = costs("A", 32)
    b = costs("B", 32)
    assert a.tokens_per_second(4) == pytest.approx(32 / (9.0 + 7 * 1.0))
    assert b.tokens_per_second(4) == pytest.approx(32 / (2.0 + 7 * 1.0))
    assert b.tokens_per_second(32) == pytest.approx(32 / 2.0)
    assert costs("B", 4).tokens_per_second(8) is None
    assert a.total == pytest.approx(5e9 + 4096e5 + 0.3e9)


def test_the_page_says_what_fits() -> None:
    heavy = replace(costs("B", 32), released=Released("heavy", "B", 32), weight_bytes=20e9)
    told = page([costs("A", 32), heavy], "a CPU")
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in told.splitlines() if " GB | " in line}
    assert "shape q4: 2" in rows["8 GB"][0]
    assert "heavy" not in "".join(rows["8 GB"])
    assert "heavy q4" in rows["32 GB"][0]  # as fast as a whole block at once makes it
    assert "heavy q4" in rows["32 GB"][1]
    assert "shape q4" in rows["32 GB"][2]
    assert "{" not in told


def test_every_family_is_a_released_shape() -> None:
    for released in cpu.FAMILIES:
        config = network_config(cpu.PUBLIC[released.shape])
        assert released.kind == ("A" if config.layout == "bidirectional" else "B")
        assert config.layout == "bidirectional" or config.block_length == released.block
