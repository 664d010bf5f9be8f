"""The training loop in one process: learning, checkpoints, averages, schedules and clean failures."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console
from safetensors import SafetensorError

from unmask import DiffusionLM
from unmask.checkpoints.safetensors import read_tensors, write_one_by_one, write_tensors
from unmask.training.optimizer import learning_rate, make_optimizers
from unmask.training.recipe import Recipe
from unmask.training.tokenizer import train_tokenizer
from unmask.training.trainer import Trainer

MakeRecipe = Callable[..., Recipe]
Refused = Callable[..., Any]
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ar": ({"kind": "ar"}, {"layout": "causal"}),
    "ar mamba2": ({"kind": "ar"}, {"layout": "causal", "mixers": ["mamba2"]}),
    "mdlm": ({"kind": "mdlm", "clip": [0.3, 1.0]}, {}),
    "mdlm hybrid": ({"kind": "mdlm", "clip": [0.3, 1.0]}, {"mixers": ["mamba2", "attention"]}),
    "bd3lm": (
        {"kind": "bd3lm", "clip": [0.3, 1.0], "block_length": 4},
        {"layout": "block_causal", "block_length": 4},
    ),
}


def trainer(recipe: Recipe, folder: Path) -> Trainer:
    return Trainer(recipe, folder, Console(quiet=True))


def curve(folder: Path, field: str = "loss") -> list[float]:
    """One field of the steps that have it, from the finished model's curve."""
    records = [json.loads(line) for line in (folder / "model" / "curve.jsonl").read_text().splitlines()]
    return [record[field] for record in records if field in record]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


# learning


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_the_loss_falls_and_the_model_loads(
    make_recipe: MakeRecipe, tmp_path: Path, objective: str, optimizer: str
) -> None:
    kind, shape = OBJECTIVES[objective]
    model = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "qk_norm": True, **shape}
    recipe = make_recipe(objective=kind, model=model, training__steps=24, training__optimizer=optimizer)
    folder = trainer(recipe, tmp_path).run()
    losses = curve(tmp_path)
    assert len(losses) == 24
    # untrained, every byte is equally likely: log 258 = 5.55 nats
    assert np.mean(losses[:2]) > 5
    assert np.mean(losses[-4:]) < 4
    held_out = curve(tmp_path, "validation")
    assert held_out[-1] < held_out[0] - 0.5
    lm = DiffusionLM.from_pretrained(folder)
    logits = lm.logits([[0, 5, 6, 1]])
    assert logits.shape == (1, 4, 258)
    assert logits.isfinite().all()
    assert lm.config.layout == shape.get("layout", "bidirectional")
    assert lm.config.shift == objective.startswith("ar")
    assert lm.tokenizer is not None
    assert lm.tokenizer.encode("the cat").ids == [0, *train_tokenizer("byte", [], 0).encode("the cat").ids]
    assert (folder / "curve.png").stat().st_size > 1000
    assert not leftovers(tmp_path)


def test_the_finished_model_is_the_average_that_was_validated(finished: Path) -> None:
    checked = read_tensors(finished / "checkpoint-0000012" / "model.safetensors")
    saved = read_tensors(finished / "model" / "model.safetensors")
    assert checked.keys() == saved.keys()
    for name, tensor in checked.items():
        torch.testing.assert_close(saved[name], tensor.to(torch.bfloat16))


def test_a_checkpoint_loads_as_a_model(finished: Path) -> None:
    lm = DiffusionLM.from_pretrained(finished / "checkpoint-0000012")
    last = DiffusionLM.from_pretrained(finished / "model")
    assert lm.encode("the cat") == last.encode("the cat")
    assert lm.defaults == last.defaults
    assert len(lm.generate("the", 4, ignore_eos=True).token_ids) == 4


def test_only_the_last_two_checkpoints_are_kept(finished: Path) -> None:
    names = sorted(path.name for path in finished.glob("checkpoint-*"))
    assert names == ["checkpoint-0000008", "checkpoint-0000012"]


def test_scalars_are_written_for_tensorboard(finished: Path) -> None:
    assert any((finished / "tensorboard").iterdir())


def test_validation_leaves_training_alone(make_recipe: MakeRecipe, finished: Path, tmp_path: Path) -> None:
    trainer(make_recipe(data__validation=[]), tmp_path).run()
    assert curve(tmp_path) == curve(finished)
    assert not curve(tmp_path, "validation")
    assert len(curve(finished, "validation")) == 3


def test_padded_prompts_and_responses_are_learned(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{a} + {b} =", "response": f" {a + b}"} for a in range(4) for b in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"files": [str(path)], "format": "jsonl", "tokenizer": "char", "length": 16, "packed": False}
    objective = {"kind": "mdlm", "normaliser": "answer", "eos": "learn"}
    made = trainer(make_recipe(data=data, objective=objective), tmp_path / "run")
    assert "+" in made.tokenizer.get_vocab()  # prompts count for the vocabulary as responses do
    made.run()
    assert np.mean(curve(tmp_path / "run")[-3:]) < np.mean(curve(tmp_path / "run")[:3])


# the same curve another way


@pytest.mark.parametrize("micro", [1, 3])
def test_accumulation_gives_the_curve_of_one_batch(
    make_recipe: MakeRecipe, finished: Path, tmp_path: Path, micro: int
) -> None:
    trainer(make_recipe(training__micro_batch_size=micro), tmp_path).run()
    # the norm too, because AdamW and Muon hide a gradient that is wrong by a factor
    for field, rtol in (("loss", 1e-4), ("validation", 1e-4), ("grad_norm", 5e-3)):
        np.testing.assert_allclose(curve(tmp_path, field), curve(finished, field), rtol=rtol)


def test_accumulation_with_complementary_copies(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    # each row twice, so micro-batches are of 8 rows and not of 4
    objective = {"kind": "mdlm", "complementary": True, "weight": "none"}
    for micro in (0, 3):
        trainer(
            make_recipe(objective=objective, training__steps=4, training__micro_batch_size=micro), tmp_path / f"{micro}"
        ).run()
    np.testing.assert_allclose(curve(tmp_path / "3"), curve(tmp_path / "0"), rtol=1e-4)


def test_a_finished_run_is_not_trained_further(make_recipe: MakeRecipe, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "again")
    again = trainer(make_recipe(), tmp_path / "again")
    again.run()
    assert again.step == 12
    assert (tmp_path / "again/model/curve.jsonl").read_bytes() == (finished / "model/curve.jsonl").read_bytes()


def test_bf16_follows_float32(make_recipe: MakeRecipe, finished: Path, tmp_path: Path) -> None:
    made = trainer(make_recipe(training__precision="bf16"), tmp_path)
    kinds = []
    made.network.blocks[0].mixer.q_proj.register_forward_hook(lambda layer, args, out: kinds.append(out.dtype))
    made.run()
    assert set(kinds) == {torch.bfloat16}  # computed in bfloat16
    assert {p.dtype for p in made.network.parameters()} == {torch.float32}  # kept in float32
    np.testing.assert_allclose(curve(tmp_path), curve(finished), rtol=0.03)


def test_two_precisions_in_one_process(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer(make_recipe(), tmp_path / "a")
    trainer(make_recipe(training__precision="bf16"), tmp_path / "b")


@pytest.mark.parametrize(("keep", "check"), [("best", 1), ("last", 2)])
def test_the_model_is_the_check_that_is_kept_also_after_a_resume(
    keep: str, check: int, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(training__steps=6, training__validate_every=2, training__save_every=2, training__keep=keep)
    values, averages = iter([3.0, 1.0, 2.0]), []

    def validate(self: Trainer) -> dict[str, float]:
        averages.append({n: t.clone() for n, t in self.ema.values.items()})
        return {"validation": next(values)}

    monkeypatch.setattr(Trainer, "_validate", validate)
    first = trainer(recipe, tmp_path)
    first.config = replace(first.config, steps=4)
    first.run()
    trainer(recipe, tmp_path).run()
    saved = read_tensors(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], averages[check][name].to(torch.bfloat16)) for name in saved)


# parts


def test_learning_rate_warms_up_and_decays(make_recipe: MakeRecipe) -> None:
    config = make_recipe(
        training__steps=110,
        training__warmup_steps=10,
        training__learning_rate=2.0,
        training__final_learning_rate=0.1,
    ).training
    rates = [learning_rate(config, step) for step in range(110)]
    np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11))
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half-way down the cosine
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(config, 110) == learning_rate(config, 500) == pytest.approx(0.2)


def test_learning_rate_without_warm_up_or_decay(make_recipe: MakeRecipe) -> None:
    config = make_recipe(training__warmup_steps=0, training__final_learning_rate=1.0).training
    assert {learning_rate(config, step) for step in range(12)} == {1e-2}
    config = make_recipe(training__warmup_steps=100).training  # longer than the run
    assert learning_rate(config, 11) == pytest.approx(12e-4)


def test_the_curve_holds_the_rate_of_each_step(make_recipe: MakeRecipe, finished: Path) -> None:
    expected = [learning_rate(make_recipe().training, step) for step in range(12)]
    assert curve(finished, "learning_rate") == expected


def test_average_weights_follow_the_formula(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    made = trainer(make_recipe(training__ema=0.4), tmp_path)
    expected = {n: p.detach().double().clone() for n, p in made.network.named_parameters()}
    for step in range(8):
        made._train_step()
        decay = min(0.4, (1 + step) / (10 + step))  # 0.1 at first; 0.4 from the sixth step on
        for name, parameter in made.network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    for name, average in made.ema.values.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_every_weight_has_one_optimizer(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "tie_embeddings": False}
    network = trainer(make_recipe(model=shape), tmp_path).network
    names = {id(p): n for n, p in network.named_parameters()}
    config = make_recipe().training
    adamw, muon = make_optimizers(network, config)
    owned = [names[id(p)] for o in (adamw, muon) for group in o.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(names.values())
    by_muon = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    assert by_muon == [n for n in names.values() if n.startswith("blocks.") and "norm" not in n]
    for group in adamw.param_groups:
        for p in group["params"]:
            assert group["weight_decay"] == (config.weight_decay if p.dim() >= 2 else 0.0)


def test_a_curriculum_trains_with_its_blocks_and_checks_with_the_last(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def made(name: str, **objective: Any) -> Trainer:
        return trainer(make_recipe(objective={"kind": "bd3lm", "clip": [0.3, 1.0], **objective}), tmp_path / name)

    both = made("both", block_length=8, curriculum={"every": 1, "block_length": [2], "clip": [[0.2, 0.4]]})
    last, first = made("last", block_length=8), made("first", block_length=2, clip=[0.2, 0.4])
    assert both._validate() == last._validate()
    assert both.network.config == last.network.config
    assert both._train_step()["loss"] == first._train_step()["loss"]
    last.network.load_state_dict(both.network.state_dict())
    last.progress.step = 1
    assert both._train_step()["loss"] == last._train_step()["loss"]


# failures


def test_one_process_splits_nothing(make_recipe: MakeRecipe, refused: Refused, tmp_path: Path) -> None:
    with refused("training.shard", "there is one", "torchrun"):
        trainer(make_recipe(training__shard=True), tmp_path)


def test_tensors_written_one_by_one(refused: Refused, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "step": torch.tensor(3.0), "empty": torch.zeros(0, 4)}
    path = tmp_path / "w.safetensors"
    values = iter([*tensors.values(), torch.ones(1)])
    write_one_by_one(path, tensors, values)
    assert next(values).tolist() == [1]  # no more are taken than are described
    for name, tensor in read_tensors(path).items():
        assert torch.equal(tensor, tensors[name])
    large = {"a": torch.zeros(100_000)}
    with refused(path), files_at_most(10_000):
        write_one_by_one(path, large, iter(large.values()))
    assert read_tensors(path).keys() == tensors.keys()
    assert os.listdir(tmp_path) == ["w.safetensors"]


def full_disk(kind: str) -> Callable[..., None]:
    def fail(tensors: Any, path: str, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")  # what was written before the disk was full
        if kind == "os":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        raise SafetensorError('I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }')

    return fail


@pytest.mark.parametrize("kind", ["os", "safetensors"])
@pytest.mark.parametrize("good", [4, 7], ids=["first tensors", "last tensors"])  # four files a checkpoint
def test_a_full_disk_keeps_the_earlier_checkpoint(
    make_recipe: MakeRecipe,
    refused: Refused,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    good: int,
) -> None:
    calls, save = [], safetensors.torch.save_file

    def save_some(*args: Any, **options: Any) -> None:
        calls.append(args)
        (save if len(calls) <= good else full_disk(kind))(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", save_some)
        with refused("No space left on device", "checkpoint-0000008"):
            trainer(make_recipe(), tmp_path).run()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-0000004"]
    assert not leftovers(tmp_path)
    trainer(make_recipe(), tmp_path).run()  # there is space again
    np.testing.assert_allclose(curve(tmp_path), curve(finished), atol=1e-6, rtol=0)


def test_a_full_disk_leaves_the_finished_model(
    make_recipe: MakeRecipe, refused: Refused, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run/model/model.safetensors").read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", full_disk("os"))
    with refused("No space left on device", tmp_path / "run/model"):
        trainer(make_recipe(), tmp_path / "run").run()
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == before
    assert not leftovers(tmp_path)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """A true failure of the system while a file grows, which a patched function can't give."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_tensors_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", {"w": torch.zeros(3)})
    with refused(tmp_path / "w.safetensors"), files_at_most(10_000):
        write_tensors(tmp_path / "w.safetensors", {"w": torch.ones(100_000)})
    assert read_tensors(tmp_path / "w.safetensors")["w"].tolist() == [0, 0, 0]
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("weights.safetensors", 1000),
        ("weights.safetensors", 5),
        ("model.safetensors", -1),
        ("optimizer.safetensors", 0),
        ("optimizer.safetensors", None),
        ("state.json", 40),
        ("state.json", None),
    ],
)
def test_a_checkpoint_cut_short_is_refused(
    make_recipe: MakeRecipe, refused: Refused, finished: Path, tmp_path: Path, file: str, size: int | None
) -> None:
    newest = shutil.copytree(finished, tmp_path / "run") / "checkpoint-0000012"
    content = (newest / file).read_bytes()
    (newest / file).unlink()
    if size is not None:
        (newest / file).write_bytes(content[:size])
    with refused(newest / file):
        trainer(make_recipe(), tmp_path / "run").run()


@pytest.mark.parametrize("state", ["{}", "[]", '{"step": "three", "history": []}', '{"step": 3}'])
def test_a_checkpoint_without_its_step_is_refused(
    make_recipe: MakeRecipe, refused: Refused, finished: Path, tmp_path: Path, state: str
) -> None:
    newest = shutil.copytree(finished, tmp_path / "run") / "checkpoint-0000012"
    (newest / "state.json").write_text(state)
    with refused(newest / "state.json"):
        trainer(make_recipe(), tmp_path / "run").run()


@pytest.mark.parametrize(
    "change",
    [{"model__num_layers": 3}, {"model__hidden_size": 16}, {"data__tokenizer": "char"}, {"model__qk_norm": False}],
    ids=str,
)
def test_a_checkpoint_of_another_network_is_refused(
    make_recipe: MakeRecipe, refused: Refused, finished: Path, change: dict[str, Any]
) -> None:
    with refused("checkpoint-0000012", "another network"):
        trainer(make_recipe(**change), finished).run()


@pytest.mark.parametrize("first", ["adamw", "muon"])
def test_a_checkpoint_of_another_optimizer_is_refused(
    make_recipe: MakeRecipe, refused: Refused, tmp_path: Path, first: str
) -> None:
    trainer(make_recipe(training__optimizer=first, training__steps=2), tmp_path).run()
    other = "muon" if first == "adamw" else "adamw"
    with refused("checkpoint-0000002", "another optimizer"):
        trainer(make_recipe(training__optimizer=other), tmp_path).run()


def test_a_folder_that_is_a_file_is_refused(make_recipe: MakeRecipe, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with refused(folder):
            trainer(make_recipe(), folder).run()
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_loss_that_is_no_number_ends_the_run(make_recipe: MakeRecipe, refused: Refused, tmp_path: Path) -> None:
    made = trainer(make_recipe(training__save_every=1), tmp_path)
    with torch.no_grad():
        made.network.embedding.weight[:] = float("nan")
    with refused("loss is nan", "step 1", "learning_rate"):
        made.run()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model__num_heads": 32}, ["rope_fraction", "head_dim 1"]),
        ({"model__num_heads": "two"}, ["model: num_heads", "two"]),
        ({"model__heads": 2}, ["model", "heads"]),
        ({"model": {}}, ["model"]),
        ({"model__max_length": 8}, ["max_length 8", "data.length 32"]),
        ({"data__tokenizer_file": "/nowhere/tokenizer.json"}, ["/nowhere/tokenizer.json"]),
        ({"data__validation": ["/nowhere/*.txt"]}, ["/nowhere/*.txt"]),
    ],
    ids=str,
)
def test_a_recipe_that_does_not_fit_is_refused(
    make_recipe: MakeRecipe, refused: Refused, tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    with refused(*words):
        trainer(make_recipe(**change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_mask_trains_ar_only(make_recipe: MakeRecipe, refused: Refused, tmp_path: Path) -> None:
    values = json.loads(train_tokenizer("char", ["the catsonmdgly.foxwhera\n"], 0).to_str())
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] != "<|mask|>"]
    values["model"]["vocab"]["another"] = values["model"]["vocab"].pop("<|mask|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    file = {"data__tokenizer_file": str(tmp_path / "tokenizer.json")}
    with refused("<|mask|>"):
        trainer(make_recipe(**file), tmp_path / "mdlm").run()
    trainer(make_recipe(**file, objective={"kind": "ar"}, training__steps=2), tmp_path / "ar").run()


def test_a_tokenizer_file_of_another_name_is_taken(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    train_tokenizer("char", ["abc"], 0).save(str(tmp_path / "letters.json"))
    made = trainer(make_recipe(data__tokenizer_file=str(tmp_path / "letters.json")), tmp_path / "run")
    assert made.tokenizer.get_vocab_size() == 6
