"""`unmask adapt` from end to end on a toy base: text, training, a folder that decodes in three modes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from trees import change

from unmask import DiffusionLM
from unmask.checkpoints import adapter_files
from unmask.models import adapter
from unmask.objectives.drafts import Drafts
from unmask.training.adapt import AdapterTrainer, adapt
from unmask.training.dialogues import write_shard
from unmask.training.recipe import AdaptRecipe, Recipe, parse_recipe, read_recipe

Refused = Callable[..., Any]
Tree = dict[str, Any]
MakeTree = Callable[..., Tree]
RECIPES = Path(__file__).parents[2] / "recipes"
QUIET = Console(quiet=True)


@pytest.fixture
def tree(chat_base: Path) -> MakeTree:
    """A recipe of three steps as plain mappings; keywords change single fields."""

    def make(**changes: Any) -> Tree:
        out: Tree = {
            "name": "toy",
            "seed": 4,
            "objective": {"kind": "drafts", "slots": 32, "lengths": [2, 4], "shares": [0.5, 0.5], "temperature": 0.6},
            "model": {"base": str(chat_base), "adapter_rank": 4, "block_length": 4},
            "text": {"tokens": 800, "held_tokens": 200, "batch": 8, "turn": 12},
            "data": {"length": 64},
            "training": {
                "steps": 3,
                "batch_size": 2,
                "learning_rate": 1e-2,
                "warmup_steps": 1,
                "threads": 1,
                "save_every": 1,
                "validate_every": 2,
                "validation_rows": 2,
            },
        }
        return change(out, changes)

    return make


@pytest.fixture
def recipe(tree: MakeTree) -> Callable[..., Recipe]:
    return lambda output, **changes: parse_recipe(tree(**changes), "recipe", output)


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "model" / "curve.jsonl").read_text().splitlines()]


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# all of it


@pytest.mark.parametrize("kind", ["adapter_rank", "adapter_width"])
def test_a_base_becomes_a_model_of_three_modes(
    tree: MakeTree, chat_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also where the base is named by a path from here, and the model is loaded from elsewhere."""
    monkeypatch.chdir(chat_base.parent)
    output = tmp_path / "run"
    model = {"base": chat_base.name, kind: 4, "block_length": 4}
    folder = adapt(parse_recipe(tree(model=model), "recipe", output), output, console=QUIET)
    monkeypatch.chdir(tmp_path)
    assert folder == output / "model"
    assert json.loads((folder / "adapter.json").read_text())["base"] == str(chat_base.resolve())
    assert len(losses(output)) == 3
    lm, base = (DiffusionLM.from_pretrained(path, backend="torch") for path in (folder, chat_base))
    prompt = [{"role": "user", "content": "what is it"}]
    texts = {mode: lm.generate(prompt, 24, mode=mode, temperature=0.0) for mode in ("diffusion", "ar", "verify")}
    assert texts["ar"].token_ids == base.generate(prompt, 24, temperature=0.0).token_ids
    assert texts["verify"].token_ids == texts["ar"].token_ids
    assert all(len(text.token_ids) > 0 for text in texts.values())


def test_an_adapter_goes_on_from_another(tree: MakeTree, tmp_path: Path, refused: Refused) -> None:
    """Its tensors are the start; a chain that it lacks starts fresh, and changes nothing yet."""
    first, second = tmp_path / "first", tmp_path / "second"
    begun = adapt(parse_recipe(tree(model__draft_vocabulary=12), "recipe", first), first, console=QUIET)
    write_shard(tmp_path / "other.safetensors", [(list(range(12, 32)), 4)] * 8)  # other text
    files = {"files": [str(tmp_path / "other.safetensors")], "format": "dialogues", "length": 64}

    def going_on(**model: Any) -> Recipe:
        own = {**tree()["model"], "draft_vocabulary": 12, "chain_width": 8, "start": str(begun), **model}
        return parse_recipe(tree(model=own, data=files, training__precision=False), "recipe", second)

    trainer = AdapterTrainer(going_on(), second / "adapter", QUIET, second / "model")
    before, own = adapter_files.read(begun), adapter.own_parameters(trainer.network)
    assert {name for name in own if not name.startswith("chain.")} == before.keys() - {"draft_vocabulary"}
    assert all(torch.equal(own[name].detach(), t.float()) for name, t in before.items() if name in own)
    assert torch.equal(trainer.network.draft_vocabulary.int(), before["draft_vocabulary"])
    larger = AdapterTrainer(going_on(draft_vocabulary=13), tmp_path / "larger", QUIET)
    assert {*larger.network.draft_vocabulary.tolist()} <= {*range(12, 32)}  # counted anew
    assert not own["chain.out"].any()
    folder = trainer.run()
    assert {path.name for path in folder.glob("model*")} == {*adapter_files.SHARDS, "model.safetensors.index.json"}
    lm = DiffusionLM.from_pretrained(folder, backend="torch")
    prompt = [{"role": "user", "content": "what is it"}]
    texts = {mode: lm.generate(prompt, 24, mode=mode, temperature=0.0).token_ids for mode in ("ar", "verify")}
    assert texts["ar"] == texts["verify"]
    with refused("unknown tensor", "another base or rank"):
        adapt(going_on(adapter_rank=0, adapter_width=8), tmp_path / "other", console=QUIET)


def test_a_run_goes_on_in_either_stage(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    adapt(recipe(whole), whole, console=QUIET)
    assert adapt(recipe(parts), parts, "text", QUIET) == parts / "text"
    assert not (parts / "adapter").exists()
    (parts / "text" / "train-0001.safetensors").unlink()
    step = AdapterTrainer._train_step

    def killed(self: AdapterTrainer) -> dict[str, float]:
        if self.step == 2:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "_train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            adapt(recipe(parts), parts, console=QUIET)
    assert not (parts / "model").exists()
    text = stamps(parts / "text")
    adapt(recipe(parts), parts, console=QUIET)
    assert stamps(parts / "text") == text
    assert losses(parts) == losses(whole)
    for name in ("model.safetensors", "config.json", "adapter.json"):
        assert (parts / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    steps = stamps(parts / "adapter" / "checkpoint-0000003")
    adapt(recipe(parts), parts, console=QUIET)  # all of it is there
    assert stamps(parts / "adapter" / "checkpoint-0000003") == steps


def test_text_that_a_recipe_names_is_trained_on_as_it_is(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    adapt(recipe(first), first, "text", QUIET)
    data = {"files": [f"{first}/text/train-*.safetensors"], "format": "dialogues", "length": 64}
    adapt(recipe(second, data=data), second, console=QUIET)
    assert not (second / "text").exists()
    assert (second / "model" / "config.json").is_file()
    shutil.rmtree(first / "text")
    third = tmp_path / "third"
    with pytest.raises(Exception, match="no such file"):
        adapt(recipe(third, data=data), third, console=QUIET)


def test_training_alone_needs_text(recipe: Callable[..., Recipe], tmp_path: Path, refused: Refused) -> None:
    with refused(tmp_path / "text", "unmask adapt"):
        adapt(recipe(tmp_path), tmp_path, "train", QUIET)


# recipes


def test_an_adapters_data_is_the_runs_own_text(tree: MakeTree) -> None:
    data = parse_recipe(tree(), "recipe").data
    assert data.files == ("runs/toy/text/train-*.safetensors",)
    assert data.validation == ("runs/toy/text/held-*.safetensors",)
    assert data.format == "dialogues"
    assert parse_recipe(tree(), "recipe", Path("a[b]")).data.files == ("a[[]b]/text/train-*.safetensors",)
    assert parse_recipe(tree(text__held_tokens=0), "recipe").data.validation == ()
    given = {"files": ["x"], "format": "dialogues", "length": 9}
    assert (parse_recipe(tree(data=given), "recipe").data.files) == ("x",)


def test_a_recipe_without_a_base_still_needs_files(tree: MakeTree, refused: Refused) -> None:
    with refused("data", "files"):
        parse_recipe(tree(model={"hidden_size": 8}), "recipe")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text__tokens": 0}, ["text.tokens", "0"]),
        ({"text__batch": 0}, ["text.batch"]),
        ({"text__turn_temperature": 0}, ["text.turn_temperature"]),
        ({"text__answer_top_k": -1}, ["text.answer_top_k"]),
        ({"text__length": "long"}, ["text: length", "long"]),
        ({"text__files": []}, ["text", "files"]),
        ({"text": 3}, ["text"]),
    ],
)
def test_a_flaw_of_the_text_section_is_named(
    tree: MakeTree, refused: Refused, change: dict[str, Any], words: list[str]
) -> None:
    with refused(*words):
        parse_recipe(tree(**change), "recipe")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"hidden_size": 8}, "data": {"files": ["x"]}, "text": {}}, ["text"]),
        ({"objective": {"kind": "mdlm"}}, ["drafts"]),
        ({"data": {"format": "text"}}, ["dialogues"]),
        ({"model__hidden_size": 8}, ["model", "hidden_size"]),
        ({"model__base": 3}, ["model: base", "3"]),
        ({"model__base": "no/such/model/here"}, ["no/such/model/here"]),
        ({"model__base": "austen"}, ["autoregressive"]),
        ({"model__adapter_rank": "four"}, ["model: adapter_rank", "four"]),
        ({"model__adapter_rank": -1}, ["model.adapter_rank", "-1"]),
        ({"model__adapter_rank": 0}, ["adapter_rank", "adapter_width"]),
        ({"model__block_length": 1}, ["model.block_length"]),
        ({"model__draft_vocabulary": 0}, ["model.draft_vocabulary"]),
        ({"data__length": 30}, ["data.length"]),
    ],
)
def test_a_recipe_that_is_no_adapters_is_refused_before_anything_is_made(
    recipe: Callable[..., Recipe], tmp_path: Path, refused: Refused, change: dict[str, Any], words: list[str]
) -> None:
    output = tmp_path / "run"
    with refused(*words):
        adapt(recipe(output, **change), output, console=QUIET)
    assert not output.exists()


def test_an_unknown_stage_is_refused(recipe: Callable[..., Recipe], tmp_path: Path, refused: Refused) -> None:
    with refused("model", "text, train or all"):
        adapt(recipe(tmp_path), tmp_path, "model", QUIET)


def test_the_default_recipes_parse_and_agree() -> None:
    for name in ("default", "default-gpu"):
        recipe = read_recipe(RECIPES / f"{name}.yaml", [])
        assert isinstance(recipe.objective, Drafts)
        assert isinstance(recipe, AdaptRecipe)
        assert recipe.model.base == "smollm2-135m-instruct"
        assert recipe.data.files == (f"runs/{name}/text/train-*.safetensors",)
        assert recipe.objective.temperature == recipe.text.answer_temperature  # of the teacher and of its text
        assert recipe.training.validation_rows * recipe.data.length <= recipe.text.held_tokens


# the command line


def test_the_command_adapts_in_stages(run: Any, tree: MakeTree, tmp_path: Path) -> None:
    path, output = tmp_path / "toy.yaml", tmp_path / "run"
    path.write_text(json.dumps(tree()))  # JSON is YAML
    code, out, _ = run("adapt", str(path), "training.steps=1", "--output", str(output), "--stage", "text")
    assert code == 0
    assert f"text written to {output / 'text'}" in out.replace("\n", "")
    code, out, _ = run("adapt", str(path), "training.steps=1", "--output", str(output))
    assert code == 0
    assert f"model written to {output / 'model'}" in out.replace("\n", "")
    assert DiffusionLM.from_pretrained(output / "model", backend="torch").config.layout == "drafts"


def test_train_and_adapt_name_each_other(run: Any, tree: MakeTree, tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps(tree()))
    code, out, err = run("train", str(path), "--output", str(tmp_path / "run"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"unmask adapt {path}" in err
    code, out, err = run("adapt", str(RECIPES / "austen.yaml"), "--output", str(tmp_path / "run"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "unmask train" in err
    assert not (tmp_path / "run").exists()


def test_adapt_helps_with_an_example(run: Any) -> None:
    code, out, _ = run("adapt", "--help")
    assert code == 0
    assert "Example" in out
    assert "text, train or all" in out


@pytest.mark.parametrize(
    "arguments", [("no/such.yaml",), ("{recipe}", "--stage", "model"), ("{recipe}", "text.batch=x"), ("{recipe}", "x")]
)
def test_bad_input_is_one_line(run: Any, tree: MakeTree, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(json.dumps(tree()))
    code, out, err = run("adapt", *(a.format(recipe=path) for a in arguments), "--output", str(tmp_path / "run"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("unmask: ")
