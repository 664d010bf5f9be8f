"""Runs in processes of their own: one that is killed and goes on, two that share the batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from unmask.checkpoints.safetensors import read_tensors
from unmask.training.recipe import Recipe
from unmask.training.trainer import Trainer

SCRIPT = Path(__file__).with_name("run_recipe.py")


def curve(folder: Path) -> tuple[list[float], ...]:
    """Loss, validation and gradient norm from the finished model's curve.

    The norm because AdamW and Muon hide a gradient that is wrong by a factor.
    """
    records = [json.loads(line) for line in (folder / "model" / "curve.jsonl").read_text().splitlines()]
    return tuple([r[field] for r in records if field in r] for field in ("loss", "validation", "grad_norm"))


def start(tree: dict[str, Any], folder: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(tree))
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(recipe), str(folder), *args],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_run_continues_its_own_curve(
    make_tree: Callable[..., Any], make_recipe: Callable[..., Recipe], finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    process = start(make_tree(), folder, "8")  # killed while it saves its second checkpoint
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL, output
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-0000004"]
    assert list(folder.glob(".checkpoint-0000008.*"))  # half a checkpoint, not to be taken for one
    Trainer(make_recipe(), folder, Console(quiet=True)).run()
    for got, expected in zip(curve(folder), curve(finished), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    first, second = (read_tensors(f / "model" / "model.safetensors") for f in (folder, finished))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(folder.rglob(".*")), "a killed run's half-written files stay for ever"


def test_two_processes_give_the_curve_of_one(
    make_tree: Callable[..., Any], finished: Path, tmp_path: Path, free_port: int
) -> None:
    # what `torchrun --nproc-per-node 2` sets, without a third process that imports torch
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "LOCAL_WORLD_SIZE": "2"}
    tree, folder = make_tree(training__micro_batch_size=1), tmp_path / "two"  # and each accumulates
    ranks = [start(tree, folder, **world, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
    assert "step 12/12" in outputs[0]
    assert "step" not in outputs[1]  # one process speaks for both
    # Muon orthogonalises in bfloat16, which enlarges rounding; it shows in the norm first
    for got, expected, rtol in zip(curve(folder), curve(finished), (1e-4, 1e-4, 5e-3), strict=True):
        np.testing.assert_allclose(got, expected, rtol=rtol)
    assert not list(folder.rglob(".*"))
