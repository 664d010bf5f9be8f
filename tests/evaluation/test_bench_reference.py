"""Our loop beside code of a checkout: here a plain loop written for the test, in a reference's file layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unmask.backends.native.network import library

GENERATE = """
import torch
from model.modeling_llada import LLaDAModelLM

def generate(model, prompt, steps, gen_length, block_length, mask_id):
    x = torch.cat([prompt, torch.full((1, gen_length), mask_id)], 1)
    each = gen_length // steps
    for start in range(prompt.shape[1], x.shape[1], block_length):
        for _ in range(block_length // each):
            p, token = model(x).double().softmax(-1).max(-1)
            open_ones = (x == mask_id) & (torch.arange(x.shape[1]) < start + block_length)
            best = torch.where(open_ones, p, -1.0).topk(each).indices[0]
            x[0, best] = token[0, best] + WRONG
    return x, steps

generate_with_prefix_cache = generate_with_dual_cache = generate
"""
NETWORK = """
import torch
from unmask import DiffusionLM

class LLaDAModelLM(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    @classmethod
    def from_pretrained(cls, folder, torch_dtype):
        return cls(DiffusionLM.from_pretrained(folder, backend="torch").model)

    def forward(self, ids):
        return self.network(ids)
"""
Run = Callable[..., tuple[int, str, str]]
SIZES = ("--hidden", "64", "--layers", "2", "--heads", "4", "--vocabulary", "50", "-n", "16", "--prompt", "8")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    for name in ("model", "model.modeling_llada"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def make(wrong: int) -> Path:
        folder = tmp_path / "llada"
        (folder / "model").mkdir(parents=True)
        (folder / "model/modeling_llada.py").write_text(NETWORK)
        (folder / "generate.py").write_text(f"WRONG = {wrong}\n{GENERATE}")
        return tmp_path

    return make


@pytest.mark.parametrize("wrong", [0, 1])
def test_ids_and_forwards_are_compared(run: Run, checkout: Callable[[int], Path], wrong: int) -> None:
    options = ("--block-length", "8", "--per-step", "2", "--rounds", "1", "--json")
    backends = ["torch"] if library() is None else ["torch", "native-f32"]
    options = (*options, "--backends", ",".join(backends))
    code, out, _ = run("bench", "reference", "--checkout", f"fast-dllm={checkout(wrong)}", *SIZES, *options)
    told = json.loads(out)
    assert code == 0
    assert [one["backend"] for one in told] == 3 * backends  # of each way
    for first in told[: len(backends)]:
        assert first["forwards"] == first["theirs_forwards"] == 8
        assert (first["parts_at"] is None) == (wrong == 0)
        assert first["agreement"] == 1.0 if wrong == 0 else first["agreement"] < 0.5
        assert first["ratio"] > 0
        assert "SHA-256" in first["version"]


def test_bad_input_gets_one_line(run: Run, tmp_path: Path) -> None:
    for options, said in (
        (("--checkout", "other=x"), "NAME of llada"),
        (("--checkout", "llada=x", "--backends", "numpy"), "no backend 'numpy'"),
        (("--checkout", f"sdar={tmp_path}"), "has no generate.py"),
        (("--checkout", f"sdar={tmp_path}", "-n", "30"), "whole blocks"),
        (("--checkout", f"sdar={tmp_path}", "--per-step", "5"), "multiple of --per-step"),
    ):
        code, _, err = run("bench", "reference", *options)
        assert code != 0
        assert said in err
        assert err.count("\n") == 1
    (tmp_path / "generate.py").write_text("")
    assert "holds no network" in run("bench", "reference", "--checkout", f"llada={tmp_path}")[2]
    broken = tmp_path / "training/model/SDAR-4B-Chat/modeling_sdar.py"
    broken.parent.mkdir(parents=True)
    broken.write_text("import a_library_that_is_not_there")
    assert "cannot be imported here" in run("bench", "reference", "--checkout", f"sdar={tmp_path}")[2]
