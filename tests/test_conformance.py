"""The conformance suite as a product: it holds what is right, finds whatever is wrong, and says what it leaves out."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from conformance.checks import forward
from conformance.checks.__main__ import main
from conformance.checks.fixture import Fixture, find
from conformance.checks.outcome import Outcome, Trace
from conformance.checks.run import Report, run
from conformance.checks.table import render
from unmask import DiffusionLM, UnmaskError
from unmask.checkpoints.families import registry
from unmask.checkpoints.save import write_checkpoint
from unmask.checkpoints.weights import weights_to_save
from unmask.models.transformer import Transformer

FIXTURES = Path(__file__).parent / "conformance"
MODELS = sorted(path.parent.name for path in FIXTURES.glob("*/forward.safetensors"))
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def report() -> Report:
    return run(FIXTURES)


def test_everything_recorded_holds(report: Report) -> None:
    assert [f"{o.family} {o.kind} {o.name}: {o.detail}" for o in report.outcomes if o.holds is False] == []
    assert report.holds


@pytest.mark.parametrize("kind", ["forward", "block-causal", "training pass", "padded", "save", "generation", "rule"])
def test_every_kind_is_checked(report: Report, kind: str) -> None:
    assert any(o.kind == kind and o.holds for o in report.outcomes)


def test_every_fixture_has_a_row_and_every_family_a_word(report: Report) -> None:
    assert {o.family for o in report.outcomes} == {path.name for path in FIXTURES.iterdir() if path.is_dir()} - {
        "checks"
    }
    assert sorted(report.checked + report.only_load) == sorted(f.name for f in registry.FAMILIES)
    assert set(report.families.values()) == set(report.checked)


def test_every_recorded_tensor_is_named(report: Report) -> None:
    """Checked, read by a check that is named after another of its group, or said to be not checked."""
    for family in MODELS:
        unchecked = {o.name for o in report.outcomes if o.family == family and o.holds is None}
        lm, tensors = DiffusionLM.from_pretrained(FIXTURES / family), load(family)
        assert {o.name for o in forward.outcomes(family, lm, tensors) if o.holds is None} <= unchecked


def load(family: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / family / "forward.safetensors")


@pytest.mark.parametrize("family", MODELS)
def test_a_changed_number_is_found(family: str) -> None:
    """Every logit and id that counts as checked: changed, it fails a check or, where ids do, moves the logits."""
    lm, tensors = DiffusionLM.from_pretrained(FIXTURES / family), load(family)
    sound = forward.outcomes(family, lm, tensors)
    unchecked = {o.name for o in sound if o.holds is None}
    for name in sorted(set(tensors) - unchecked):
        if name.endswith("position_ids"):
            continue  # only runs and their starts are read from them
        changed = {**tensors, name: disturbed(tensors[name])}
        assert any(o.holds is False for o in forward.outcomes(family, lm, changed)), name


def disturbed(tensor: Tensor) -> Tensor:
    """All moved to the next column, and numbers by 1 as well."""
    moved = tensor.roll(1, -1) if tensor.dim() else tensor
    return moved + 1 if tensor.is_floating_point() else moved


# --- fixtures of other sizes, made here ---------------------------------------------------------------------

BASE = {"num_hidden_layers": 3, "hidden_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1}
VARIED = {
    "a2d_qwen3": {**BASE, "tie_word_embeddings": False, "head_dim": 20},
    "dream": {**BASE, "num_key_value_heads": 2, "intermediate_size": 72},
    "sdar": {**BASE, "vocab_size": 150, "block_size": 3, "head_dim": 12},
    "stable_diffcoder": {**BASE, "tie_word_embeddings": True, "head_dim": 20},
    "fast_dllm_v2": {**BASE, "bd_size": 5},
    "llada2_moe": {**BASE, "num_experts": 12, "num_experts_per_tok": 3, "head_dim": 20, "first_k_dense_replace": 2},
    "llada": {"n_layers": 1, "d_model": 24, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 40, "weight_tying": True},
    "bd3lm": {"n_blocks": 1, "hidden_dim": 24, "n_heads": 2, "block_size": 3, "model_length": 40},
    "mdlm": {"n_blocks": 3, "hidden_dim": 24, "cond_dim": 8, "model_length": 40, "vocab_size": 50},
}


def vary(family: str, changes: dict[str, Any], folder: Path) -> DiffusionLM:
    """A random checkpoint of a family in other sizes."""
    raw = {**json.loads((FIXTURES / family / "config.json").read_text()), **changes}
    kind = registry.recognise(raw, family)
    assert kind is not None
    model = Transformer(kind.config(raw, family)).initialise(1, 0.3)
    write_checkpoint(folder, raw, weights_to_save(model, kind, raw), None)
    return DiffusionLM.from_pretrained(folder)


def by_hand(lm: DiffusionLM, ids: Tensor, sees: Callable[[int, int], bool], position: Tensor | None = None) -> Tensor:
    """Logits as the head gives them, under a mask made pair by pair."""
    pairs = [[sees(i, j) for j in range(ids.shape[1])] for i in range(ids.shape[1])]
    return lm.model.head(lm.model.hidden(ids, position, torch.tensor(pairs)[None, None]))


@torch.inference_mode()
def record(lm: DiffusionLM, length: int = 11) -> dict[str, Tensor]:
    """What a reference would record of a checkpoint, made without the suite's own masks."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(lm.config.vocab_size, (2, length), generator=generator)
    out = {"input_ids": ids, "sigma": torch.tensor([0.2, 1.1])}
    if lm.config.time_condition_size:
        return {**out, "sigma0.logits": lm.model(ids), "sigma_conditioned.logits": lm.model(ids, time_B=out["sigma"])}
    del out["sigma"]
    out["logits"] = by_hand(lm, ids, lambda i, j: True)
    for block in (1, 5, 7):
        out[f"block{block}.logits"] = by_hand(lm, ids, lambda i, j, n=block: j // n <= i // n)
    for side, start in (("left", 3), ("right", 0)):  # the second row is shorter by three
        where = (1, slice(start, start + length - 3))
        padded, valid, logits = torch.zeros_like(ids), torch.zeros_like(ids), torch.zeros_like(out["logits"])
        padded[0], valid[0], logits[0] = ids[0], 1, out["logits"][0]
        padded[where], valid[where] = ids[1, 3:], 1
        logits[where] = by_hand(lm, ids[1:, 3:], lambda i, j: True)[0]
        for leaf, tensor in (("input_ids", padded), ("attention_mask", valid), ("logits", logits)):
            out[f"{side}_pad.{leaf}"] = tensor

    def trains(i: int, j: int) -> bool:
        (own, clean), (other, given) = divmod(i, length)[::-1], divmod(j, length)[::-1]
        own, other = own // 4, other // 4
        return (own == other) if clean == given == 0 else given == 1 and (other <= own if clean else other < own)

    x_t = torch.where(torch.rand(ids.shape, generator=generator) < 0.4, 0, ids)
    both = torch.cat([x_t, ids], 1)
    for leaf, tensor in (("x_t", x_t), ("x_0", ids.clone())):
        out[f"train_block4.{leaf}"] = tensor
    out["train_block4.logits"] = by_hand(lm, both, trains, torch.arange(length).repeat(2)[None])
    return out


@pytest.mark.parametrize("family", VARIED)
def test_fixtures_of_other_sizes_are_checked_as_well(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "anything"
    save_file(record(vary(family, VARIED[family], folder)), folder / "forward.safetensors")
    report = run(folder)
    assert [f"{o.name}: {o.detail}" for o in report.outcomes if o.holds is not True] == []
    assert len(report.outcomes) > 2


# --- folders ------------------------------------------------------------------------------------------------


def test_folders_that_are_no_fixture(tmp_path: Path) -> None:
    with pytest.raises(UnmaskError, match="is not a folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(UnmaskError, match=r"holds no fixture: a family's fixture has config\.json"):
        find(tmp_path)
    shutil.copytree(FIXTURES / "duo", tmp_path / "mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    found, skipped = find(tmp_path)
    assert [f.name for f in found] == ["mine"]
    assert skipped == ["other"]
    with pytest.raises(UnmaskError, match="no fixture of 'sdar'; there are mine"):
        run(tmp_path, "sdar")


def test_one_fixture_is_run_wherever_it_lies(tmp_path: Path) -> None:
    """The family is what config.json says, not what the folder is called."""
    shutil.copytree(FIXTURES / "sdar", tmp_path / "dream")
    report = run(tmp_path / "dream")
    assert report.families == {"dream": "SDAR"}
    assert report.holds
    assert run(tmp_path, "sdar").families == {"dream": "SDAR"}


def test_a_family_without_a_driver_says_so(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "diffugpt", tmp_path / "diffugpt")
    (tmp_path / "diffugpt" / "generate.json").write_text('{"cases": [{"name": "random"}]}')
    report = run(tmp_path)
    assert report.holds
    (found,) = [o for o in report.outcomes if o.kind == "generation"]
    assert (found.holds, found.detail) == (None, "no driver decodes DiffuGPT's recorded cases")


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "a2d_qwen3", "mdlm", "diffusion_gemma"])
def test_a_case_that_says_more_than_is_read_fails(family: str, tmp_path: Path) -> None:
    """A parameter that a driver does not know could change the run: it must not be passed over."""
    shutil.copytree(FIXTURES / family, tmp_path / family)
    path = tmp_path / family / "generate.json"
    recorded = json.loads(path.read_text())
    path.write_text(json.dumps({"cases": [{**recorded["cases"][0], "repetition_penalty": 1.1}]}))
    wrong = [o for o in run(tmp_path).outcomes if o.holds is False]
    assert [o.kind for o in wrong] == ["generation"]
    assert "repetition_penalty" in wrong[0].detail


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("generate.json", '{"cases": 3}', "must hold a list of objects under 'cases'"),
        ("generate.json", "[", "is not valid JSON"),
        ("forward.safetensors", "garbage", "is not a readable safetensors file"),
        ("config.json", '{"model_type": "novel"}', "no known family"),
    ],
)
def test_a_broken_fixture_fails_in_one_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "sdar"
    shutil.copytree(FIXTURES / "sdar", folder)
    (folder / name).write_text(content)
    report = run(folder)
    assert not report.holds
    wrong = [o for o in report.outcomes if o.holds is False]
    assert [o.kind for o in wrong] == ["load"]
    assert said in wrong[0].detail
    assert "\n" not in wrong[0].detail


def test_what_a_group_lacks_is_said(tmp_path: Path) -> None:
    """A group whose inputs are not there fails by name, and the other groups are still checked."""
    tensors = load("llada")
    del tensors["left_pad.attention_mask"]
    lm = DiffusionLM.from_pretrained(FIXTURES / "llada")
    outcomes = forward.outcomes("llada", lm, {**tensors, "novel.logits": torch.zeros(2)})
    assert [o.name for o in outcomes if o.holds is False] == ["padded"]
    assert "novel.logits" in [o.name for o in outcomes if o.holds is None]
    assert "logits" in [o.name for o in outcomes if o.holds]


# --- outcomes, the table and the command --------------------------------------------------------------------


def test_not_a_number_never_holds() -> None:
    assert Outcome.near("f", "forward", "x", float("nan")).holds is False
    assert Outcome.near("f", "forward", "x", 9e-5).holds is True
    assert Outcome.near("f", "forward", "x", 2e-4).detail == "differs by 0.0002, more than 1e-04"


def test_traces_say_where_they_part() -> None:
    one = Trace([[[1, 2, 3]], [[1, 5, 3]]], [[1, 5, 6]], 2)
    assert one.differs_from(one) == ""
    other = Trace([[[1, 2, 3]], [[1, 4, 3]]], [[1, 5, 6]], 2)
    assert one.differs_from(other) == "canvas before forward 2: row 0, position 1 is 5 instead of 4"
    assert one.differs_from(Trace([[[1, 2, 3]]], [[1, 5, 6]], 2)) == "2 canvases instead of 1"
    assert "row 0 has 3 ids instead of 2" in one.differs_from(Trace([[[1, 2]]], [[1, 5, 6]], 2))
    assert "1 rows instead of 2" in one.differs_from(Trace(None, [[1, 5, 6], [1]], 2))
    assert Trace(None, [[1]], 3).differs_from(Trace(None, [[1]], 2)) == "3 forwards instead of 2"
    assert "final ids: row 0, position 0 is 1" in Trace(None, [[1]], 2).differs_from(Trace(None, [[2]], 2))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["conformance", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_the_table_fits_a_terminal(command: Command, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.checks.run.run", lambda *arguments: report)
    code, out, _ = command(str(FIXTURES))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert all(name in out for name in MODELS)
    assert "Held against a reference here: " in out
    assert "Read, with nothing here to hold it against: " in out
    assert "0 fail" in out


def test_a_difference_is_the_exit_status(command: Command, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "sdar", tmp_path / "sdar")
    path = tmp_path / "sdar" / "forward.safetensors"
    save_file({**load("sdar"), "logits": load("sdar")["logits"] + 1}, path)
    code, out, _ = command(str(tmp_path))
    assert code == 1
    assert "Fails" in out
    assert "differs by 1" in out
    code, out, _ = command(str(tmp_path), "--json")
    assert code == 1
    found = json.loads(out)
    assert found["holds"] is False
    assert [o["name"] for o in found["outcomes"] if o["holds"] is False] == ["logits"]


def test_one_line_for_what_is_no_fixture(command: Command, tmp_path: Path) -> None:
    code, out, err = command(str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"conformance: {tmp_path} holds no fixture")
    assert len(err.splitlines()) == 1


def test_fixtures_stay_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*")) < 10e6
    assert all(Fixture.at(path) is not None for path in FIXTURES.iterdir() if path.is_dir() and path.name != "checks")


def test_the_table_in_the_docs_is_the_one_that_is_printed(report: Report) -> None:
    """But for seconds, and for differences, whose last digit is the machine's."""
    console = Console(width=100, file=io.StringIO())
    console.print(render(report))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    document = (Path(__file__).parents[1] / "docs" / "conformance.md").read_text()
    lines = [comparable(line) for line in document.split("```\n")[1].splitlines()]
    assert lines == [comparable(line) for line in printed.splitlines()]


def comparable(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\d+e[-+]\d+|\d+\.\d s$", "", line)).strip()
