"""Recipes: the shipped ones, overrides, and one line for every flaw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask.checkpoints.hub import ENTRIES
from unmask.objectives.drafts import Drafts
from unmask.objectives.masked import AR, BD3LM, MDLM
from unmask.training.recipe import AdaptRecipe, FinetuneRecipe, Recipe, TrainRecipe, parse_recipe, read_recipe

Refused = Callable[..., Any]
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
MINIMAL = """
name: small
seed: 1
objective: {kind: mdlm}
model: {hidden_size: 32, num_layers: 1, num_heads: 2, intermediate_size: 64}
data: {files: [a.txt]}
training: {steps: 3, batch_size: 2, learning_rate: 1e-3, betas: [0, 0.5]}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(MINIMAL)
    return path


def test_recipes_are_shipped() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_parse(path: Path) -> None:
    recipe = read_recipe(path, [])
    assert recipe.name == path.stem
    if isinstance(recipe, AdaptRecipe):  # an adapter's network is that of its base
        assert isinstance(recipe.objective, Drafts)
        assert recipe.model.base in ENTRIES
    elif not isinstance(recipe, FinetuneRecipe):
        assert isinstance(recipe, TrainRecipe)
        assert recipe.network_config({"vocab_size": 4096}).vocab_size == 4096


def test_fields_keep_their_defaults_and_types(minimal: Path) -> None:
    recipe = read_recipe(minimal, [])
    assert isinstance(recipe, Recipe)
    assert recipe.objective == MDLM()
    assert recipe.data.files == ("a.txt",)
    assert recipe.training.betas == (0.0, 0.5)
    assert recipe.training.save_every == 200


def test_a_number_that_yaml_reads_as_text_is_a_number(minimal: Path) -> None:
    # YAML 1.1 wants "1.0e-3"; people write "1e-3"
    assert read_recipe(minimal, []).training.learning_rate == 1e-3
    assert read_recipe(minimal, ["training.learning_rate=2e-4"]).training.learning_rate == 2e-4


def test_overrides_reach_every_section(minimal: Path) -> None:
    overrides = [
        "name=other",
        "seed=7",
        "objective.kind=bd3lm",
        "objective.block_length=8",
        "objective.clip=[0.2, 0.9]",
        "model.num_layers=4",
        "data.split=^A=B ",
        "data.files=[b.txt, c.txt]",
        "training.steps=5",
        "training.steps=6",  # the last one counts
        "training.ema=0",
    ]
    recipe = read_recipe(minimal, overrides)
    assert (recipe.name, recipe.seed, recipe.model["num_layers"]) == ("other", 7, 4)
    assert recipe.objective == BD3LM(block_length=8, clip=(0.2, 0.9))
    assert recipe.data.split == "^A=B"
    assert recipe.data.files == ("b.txt", "c.txt")
    assert (recipe.training.steps, recipe.training.ema) == (6, 0.0)


def test_objectives_by_name(minimal: Path) -> None:
    assert isinstance(read_recipe(minimal, ["objective={kind: ar}"]).objective, AR)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stepz=3", ["training", "stepz"]),
        ("data.folder=x", ["data", "folder"]),
        ("objective.blok=3", ["objective", "blok"]),
        ("extra=1", ["extra"]),
        ("training.steps=many", ["training: steps", "many"]),
        ("training.steps=2.5", ["training: steps", "2.5"]),
        ("training.steps=true", ["training: steps", "True"]),
        ("training.steps=", ["training: steps", "None"]),
        ("training.learning_rate=fast", ["training: learning_rate", "fast"]),
        ("training.optimizer=sgd", ["training: optimizer", "sgd"]),
        ("training.precision=fp8", ["training: precision", "fp8"]),
        ("training.betas=0.9", ["training: betas"]),
        ("training.betas=[0.9]", ["training.betas"]),
        ("training.betas=[0.9, 1.5]", ["training.betas"]),
        ("training=3", ["training"]),
        ("data=[a, b]", ["data"]),
        ("data.files=a.txt", ["data: files", "list"]),
        ("data.files=[]", ["data.files"]),
        ("data.files=[3]", ["data: files", "3"]),
        ("data.format=csv", ["data: format", "csv"]),
        ("data.tokenizer=words", ["data: tokenizer", "words"]),
        ("data.packed=1", ["data: packed"]),
        ("data.length=1", ["data.length", "1"]),
        ("data.cut=1.5", ["data.cut", "1.5"]),
        ("data.vocab_size=100", ["data.vocab_size", "100"]),
        ("training.steps=0", ["training.steps", "0"]),
        ("training.batch_size=-2", ["training.batch_size", "-2"]),
        ("training.learning_rate=0", ["training.learning_rate"]),
        ("training.learning_rate=.nan", ["training.learning_rate", "nan"]),
        ("training.weight_decay=-1", ["training.weight_decay"]),
        ("training.clip_norm=-1", ["training.clip_norm"]),
        ("training.ema=1", ["training.ema"]),
        ("training.save_every=0", ["training.save_every"]),
        ("training.threads=-1", ["training.threads"]),
        ("model=null", ["model"]),
        ("model=[1]", ["model"]),
        ("seed=-1", ["seed", "-1"]),
        ("seed=first", ["seed", "first"]),
        ("objective.kind=gan", ["objective.kind", "gan", "mdlm"]),
        ("objective.kind=[mdlm]", ["objective.kind"]),
        ("objective=mdlm", ["objective.kind"]),
        ("objective.clip=[0.0, 1.0]", ["objective", "clip"]),
        ("objective.clip=[0.1]", ["objective"]),
        ("objective={kind: bd3lm, block_length: 0}", ["objective", "block_length"]),
        ("training.steps", ["training.steps", "section.field=value"]),
        ("", ["section.field=value"]),
        ("name.first=x", ["name.first=x"]),
        ("training.steps=[1", ["YAML"]),
        ("name=../../elsewhere", ["name", "../../elsewhere"]),
        ("name=..", ["name", "folder"]),
        ("name=", ["name"]),
        ("name='a/b'", ["name", "a/b"]),
        (r'name="a\0b"', ["name", "folder"]),
        (f"name={'x' * 5000}", ["name", "folder"]),
        ("training.batch_size=9223372036854775808", ["training.batch_size", "below"]),
        ("training.threads=1000000000000", ["training.threads", "below"]),
        ("data.length=4294967296", ["data.length", "below"]),
        ("seed=9223372036854775808", ["seed", "below"]),
    ],
)
def test_a_flaw_is_named_in_one_line(minimal: Path, refused: Refused, override: str, words: list[str]) -> None:
    with refused(*words):
        read_recipe(minimal, [override])


@pytest.mark.parametrize("section", ["name", "objective", "model", "data", "training"])
def test_a_missing_section_is_named(make_tree: Callable[..., dict[str, Any]], refused: Refused, section: str) -> None:
    tree = make_tree()
    del tree[section]
    with refused("r.yaml", "file" if section == "data" else "steps" if section == "training" else section):
        parse_recipe(tree, "r.yaml")


@pytest.mark.parametrize(
    "content",
    [b"", b"just text", b"- a\n- b\n", b"name: [1\n", b"a: b: c\n", b"\xff\xfe\x00", b"name: \x07", b"!!python/x 1"],
    ids=["empty", "text", "list", "open", "colons", "binary", "bell", "tag"],
)
@pytest.mark.parametrize("overrides", [[], ["training.steps=1"]], ids=["plain", "override"])
def test_a_file_that_is_no_recipe_is_refused(
    tmp_path: Path, refused: Refused, content: bytes, overrides: list[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with refused():
        read_recipe(path, overrides)


def test_a_missing_recipe_is_named(tmp_path: Path, refused: Refused) -> None:
    with refused(tmp_path / "none.yaml"):
        read_recipe(tmp_path / "none.yaml", [])
    with refused(tmp_path):
        read_recipe(tmp_path, [])
