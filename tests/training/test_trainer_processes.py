"""Runs in processes of their own: one that is killed and goes on, two that share the batches."""

from __future__ import annotations

import copy
import json
import os
import shutil
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
from trees import change

from unmask.checkpoints.safetensors import read_tensors
from unmask.training.finetune import Finetuner
from unmask.training.recipe import FinetuneRecipe, Recipe, parse_recipe
from unmask.training.trainer import Trainer

QUIET = Console(quiet=True)
SCRIPT = Path(__file__).with_name("run_recipe.py")


def curve(folder: Path) -> tuple[list[float], ...]:
    """Loss, validation and gradient norm from the finished model's curve.

    The norm because AdamW and Muon hide a gradient that is wrong by a factor.
    """
    records = [json.loads(line) for line in (folder / "model" / "curve.jsonl").read_text().splitlines()]
    return tuple([r[field] for r in records if field in r] for field in ("loss", "validation", "grad_norm"))


def start(trees: dict[Path, dict[str, Any]], **environment: str) -> subprocess.Popen[str]:
    """Runs recipes in the folders that they are given by, one after another."""
    arguments = [str(SCRIPT)]
    for folder, tree in trees.items():
        recipe = folder.with_suffix(".yaml")
        recipe.write_text(yaml.safe_dump(tree))
        arguments += [str(recipe), str(folder)]
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(trees: dict[Path, dict[str, Any]], port: int, **environment: str) -> tuple[list[int], list[str]]:
    """The same in two processes, as `torchrun --nproc-per-node 2` does it without a third that imports torch; returns
    how they ended and what they said."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    ranks = [start(trees, **world, **environment, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [process.returncode for process in ranks], outputs


def test_a_killed_run_continues_its_own_curve(
    make_tree: Callable[..., Any], make_recipe: Callable[..., Recipe], finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    process = start({folder: make_tree()}, DIE_AT="8")  # killed while it saves its second checkpoint
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
    folder = tmp_path / "two"
    tree = {folder: make_tree(training__micro_batch_size=1)}  # and each accumulates
    codes, outputs = start_two(tree, free_port, STOP_AT="6")  # one is told to stop, and both do
    assert codes == [143, 143], "\n".join(outputs)
    assert "stopped at step 6, saved in" in outputs[0]
    codes, outputs = start_two(tree, free_port)
    assert codes == [0, 0], "\n".join(outputs)
    assert "step 12/12" in outputs[0]
    assert "step" not in outputs[1]  # one process speaks for both
    # Muon orthogonalises in bfloat16, which enlarges rounding; it shows in the norm first
    for got, expected, rtol in zip(curve(folder), curve(finished), (1e-4, 1e-4, 5e-3), strict=True):
        np.testing.assert_allclose(got, expected, rtol=rtol)
    assert not list(folder.rglob(".*"))


def test_split_over_processes_the_curve_is_the_same(
    make_tree: Callable[..., Any], chat_base: Path, tmp_path: Path, free_port: int
) -> None:
    adamw = make_tree(
        training__steps=8, training__validate_every=2, training__optimizer="adamw", training__micro_batch_size=1
    )
    muon = make_tree(training__steps=6, training__save_every=3)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"the {a}", "response": f"a {a}"}) + "\n" for a in ("cat", "owl")))
    training = {"steps": 3, "batch_size": 4, "threads": 1, "gradient_checkpointing": True, "learning_rate": 1e-2}
    lora = {
        "name": "tuned",
        "base": str(chat_base),
        "objective": {"kind": "bd3lm", "shift": True},
        "data": {"files": [str(rows)], "length": 32},
        "training": training,
        "lora": {"rank": 3},
    }
    trees = {"lora": lora, "muon": muon, "adamw": adamw}
    for name, tree in trees.items():
        recipe = parse_recipe(tree, "recipe")
        made = Finetuner if isinstance(recipe, FinetuneRecipe) else Trainer
        made(recipe, tmp_path / f"{name}-one", QUIET).run()
    halfway = "checkpoint-0000003"
    shutil.copytree(tmp_path / "muon-one" / halfway, tmp_path / "muon" / halfway)  # two go on where one was
    split = {tmp_path / name: change(copy.deepcopy(tree), {"training__shard": True}) for name, tree in trees.items()}
    codes, outputs = start_two(split, free_port, DIE_AT="8")  # in the last run's second checkpoint
    assert codes[0] == -signal.SIGKILL, "\n".join(outputs)
    Trainer(parse_recipe(adamw, "recipe"), tmp_path / "adamw", QUIET).run()  # one goes on where two were
    for name, tolerances in (("lora", (1e-5,) * 3), ("muon", (1e-4, 1e-4, 5e-3)), ("adamw", (1e-5,) * 3)):
        one, two = tmp_path / f"{name}-one", tmp_path / name
        for got, expected, tolerance in zip(curve(two), curve(one), tolerances, strict=True):
            np.testing.assert_allclose(got, expected, rtol=tolerance)
        first, second = (read_tensors(folder / "model" / "model.safetensors") for folder in (one, two))
        for tensor, weight in first.items():
            torch.testing.assert_close(second[tensor], weight, atol=1e-2, rtol=0)
