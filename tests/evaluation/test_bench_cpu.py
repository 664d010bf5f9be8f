"""`unmask bench cpu` and `bench shape`: what they write is what the forward reads, and what they work out adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import cpu
from benchmarks.cpu import CANVAS, Cost, Released, page
from benchmarks.shape import network_config, write_packed

from unmask.backends.native.network import library
from unmask.backends.native.packed_file import PackedFile, mapped
from unmask.backends.native.packing import Plan
from unmask.checkpoints.rows import Held
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

SMALL = ModelConfig(
    vocab_size=9000,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    intermediate_size=96,
    max_length=1024,
    qkv_bias=True,
    tie_embeddings=False,
    mask_token_id=8999,
)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_files_are_those_of_a_real_network(tmp_path: Path, bits: int) -> None:
    folders = {n: tmp_path / str(n) for n in (1, 3)}
    for folder in folders.values():
        folder.mkdir()
    write_packed(folders, SMALL, bits)
    for layers, folder in folders.items():
        config = replace(SMALL, num_layers=layers)
        assert ModelConfig.from_dict(json.loads((folder / "config.json").read_text())) == config
        network = Transformer(config).initialise(0)
        held = {name: Held(p.detach().numpy()) for name, p in network.named_parameters()}
        with (tmp_path / "real").open("wb") as file:
            packed = PackedFile(file)
            Plan(config, held, None, bits, rows_pay=False).write(packed)
            packed.end()
        with (tmp_path / "real").open("rb") as real, (folder / "weights").open("rb") as made:
            expected, found = mapped(real), mapped(made)
        assert {name: array.shape for name, array in expected.items()} == {n: a.shape for n, a in found.items()}
        assert all((found[name] == expected[name]).all() for name in expected if name.endswith(".shape"))


@pytest.mark.skipif(library() is None, reason="no compiled forward here")
def test_a_step_of_packed_networks_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {n: tmp_path / str(n) for n in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
    write_packed(folders, SMALL, 8)
    cpu.native([str(folder) for folder in folders.values()], 8, [1, 4])
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"][1] > found["sizes"][0] > 9000 * 64
    assert set(found["seconds"]) == {"1", "4"}
    assert all(seconds > 0 for pair in found["seconds"].values() for seconds in pair)


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
