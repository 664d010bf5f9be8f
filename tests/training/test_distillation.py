"""`unmask finetune` with a teacher: rounds, resuming, teachers by name, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from unmask import DiffusionLM
from unmask.training.finetune import Finetuner, finetune, open_base, open_teacher
from unmask.training.recipe import parse_recipe
from unmask.training.trainer import Trainer

QUIET = Console(quiet=True)
TEXT = "the cat sat on the mat and the dog sat on the log and " * 40
SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
TRAINING = {"steps": 2, "batch_size": 2, "learning_rate": 0.01, "warmup_steps": 0, "save_every": 1}


def trained(folder: Path, kind: str, text: str = TEXT) -> str:
    """A model from scratch of two steps: masked diffusion, or uniform noise."""
    (folder / "text.txt").write_text(text)
    told = {"time_condition_size": 8} if kind in ("duo", "sedd") else {}
    noise = {"corruption": "uniform"} if kind == "sedd" else {}
    data = {"files": [str(folder / "text.txt")], "tokenizer": "byte", "length": 16}
    tree = {
        "name": kind,
        "objective": {"kind": kind, **noise},
        "model": {**SHAPE, **told},
        "data": data,
        "training": TRAINING,
    }
    return str(Trainer(parse_recipe(tree, kind), folder / kind, QUIET).run())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: trained(folder, kind) for kind in ("mdlm", "duo")}


def recipe_of(base: str, kind: str, **options: Any) -> Any:
    rounds = {} if kind == "mdlm" else {"rounds": [4, 2, 1], "round_length": 2}
    objective = {"kind": kind, **rounds}
    data = {"files": [str(Path(base).parents[1] / "text.txt")], "length": 16, "whole": False}
    data["validation"] = data["files"]
    training = {**TRAINING, "steps": 6, "validate_every": 1, **options.pop("training", {})}
    tree = {"name": "few", "base": base, "objective": objective, "data": data, "training": training, **options}
    return parse_recipe(tree, "few")


KINDS = [("mdlm", "sdtt"), ("mdlm", "consistency"), ("duo", "dcd")]


@pytest.mark.parametrize(("base", "kind"), KINDS)
def test_the_averaged_student_is_the_teacher_of_the_next_round(
    bases: dict[str, str], tmp_path: Path, base: str, kind: str
) -> None:
    trainer = Finetuner(recipe_of(bases[base], kind), tmp_path, QUIET)
    first = trainer.teacher
    assert first is not None
    before = [p.clone() for p in first.parameters()]
    seen = {}
    step = trainer._train_step

    def watched() -> dict[str, float]:
        seen[trainer.step] = {n: t.clone() for n, t in trainer.ema.values.items()}
        out = step()
        assert trainer.teacher is not None
        if trainer.step > 2:
            began = (trainer.step - 1) // 2 * 2  # of the round
            assert all(torch.equal(t, trainer.teacher.get_parameter(n)) for n, t in seen[began].items())
        return out

    trainer._train_step = watched  # type: ignore[method-assign]
    lm = DiffusionLM.from_pretrained(trainer.run(), backend="torch")
    assert all(torch.equal(a, b) for a, b in zip(before, first.parameters(), strict=True))
    assert len(lm.generate("the", 8, max_denoising_steps=2, seed=0).token_ids) > 0
    last_round = [r["validation"] for r in trainer.history[4:]]
    best = trainer.progress.best if last_round[0] < last_round[1] else trainer.ema.values
    assert all(torch.equal(t, best[n]) for n, t in trainer.finished_weights().items())  # not one of an earlier round


def test_a_killed_run_goes_on_bit_for_bit_within_a_round(bases: dict[str, str], tmp_path: Path) -> None:
    recipe = recipe_of(bases["mdlm"], "sdtt")
    finetune(recipe, tmp_path / "whole", console=QUIET)

    class Stopping(Finetuner):
        def _train_step(self) -> dict[str, float]:
            if self.step == 3:
                raise KeyboardInterrupt
            return super()._train_step()

    with pytest.raises(KeyboardInterrupt):
        Stopping(recipe, tmp_path / "parts", QUIET).run()
    finetune(recipe, tmp_path / "parts", console=QUIET)
    model = "model/model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "parts" / model).read_bytes()


def test_a_teacher_is_named(bases: dict[str, str], tmp_path: Path, refused: Callable[..., Any]) -> None:
    other = trained(tmp_path, "mdlm", TEXT[::-1])
    recipe = recipe_of(bases["mdlm"], "sdtt", teacher=other)
    teacher = open_teacher(recipe, open_base(recipe))
    assert teacher is not None
    assert not any(p.requires_grad for p in teacher.parameters())
    expected = DiffusionLM.from_pretrained(other, backend="torch").model
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), expected.parameters(), strict=True))
    wrong = {"austen": ("teacher 'austen'", "vocab_size 4096"), "nowhere/at/all": ("nowhere/at/all",)}
    wrong[bases["duo"]] = ("mask_token_id",)
    wrong[trained(tmp_path, "ar")] = ("layout 'causal'", "'bidirectional'")
    shuffled = Path(other) / "tokenizer.json"
    tokenizer = json.loads(shuffled.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    shuffled.write_text(json.dumps(tokenizer))
    wrong[other] = ("another vocabulary",)
    for name, words in wrong.items():
        with refused(*words):
            recipe = recipe_of(bases["mdlm"], "sdtt", teacher=name)
            open_teacher(recipe, open_base(recipe))
    with refused("nowhere/at/all"):
        open_base(replace(recipe, base="nowhere/at/all"))
    with refused("no teacher"):
        plain = recipe_of(bases["mdlm"], "mdlm", teacher=other)
        open_teacher(plain, open_base(plain))
    with refused("corruption"):
        open_base(recipe_of(bases["mdlm"], "dcd"))
    with refused("output 'log_score'", "'logits'"):
        open_base(recipe_of(trained(tmp_path, "sedd"), "dcd"))
