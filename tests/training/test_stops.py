"""A run that is told to stop, whatever it does at that moment: it saves its last whole step and goes on to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from trees import Tree

from unmask.training import checkpointer, trainer
from unmask.training.optimizer import Ema
from unmask.training.recipe import Recipe
from unmask.training.trainer import Trainer

MakeTree = Callable[..., Tree]
MakeRecipe = Callable[..., Recipe]
QUIET = Console(quiet=True)
CHANGES = {"training__micro_batch_size": 2}
FILES = ("model/model.safetensors", "model/config.json")


def curve(folder: Path) -> list[dict[str, float]]:
    """The records of a finished run but for what no two runs share."""
    records = [json.loads(line) for line in (folder / "model/curve.jsonl").open()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def tell(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def told_in(window: str, step: int, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Lets a trainer be told to stop when it enters a function, of its own or of what it calls, after so many steps."""
    home: Any = {"update": Ema, "write_text": checkpointer, "write_tensors": trainer}.get(window, Trainer)
    usual = getattr(home, window)
    here: list[Trainer] = []
    run = Trainer._train

    def watched(self: Trainer) -> None:
        here.append(self)
        run(self)

    def entered(*args: Any, **options: Any) -> Any:
        if here and here[-1].step == step:
            tell(*numbers)
        return usual(*args, **options)

    monkeypatch.setattr(Trainer, "_train", watched)
    monkeypatch.setattr(home, window, entered)


@pytest.fixture(scope="module")
def whole(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(make_recipe(**CHANGES), folder, QUIET).run()
    return folder


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What tests would do to this process if a signal were not taken."""
    before = [(number, signal.getsignal(number)) for number in trainer.STOPS]
    yield
    assert [(number, signal.getsignal(number)) for number in trainer.STOPS] == before


@pytest.mark.parametrize(
    ("window", "step", "saved"),
    [
        ("_train_step", 0, None),  # before anything
        ("_train_step", 6, 6),
        ("_corrupt", 6, 6),
        ("_sum_over_ranks", 6, 6),
        ("update", 6, 7),  # the weights have changed already
        ("_validate", 4, 4),
        ("_taught", 8, 8),  # within a validation
        ("_save_checkpoint", 8, 8),
        ("write_text", 8, 8),
        ("_validate", 12, 12),
    ],
)
@pytest.mark.parametrize("again", [1, 3], ids=["once", "passed on by launchers"])
def test_a_stopped_run_continues_its_own_curve(
    window: str,
    step: int,
    saved: int | None,
    again: int,
    make_recipe: MakeRecipe,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe(**CHANGES)
    with monkeypatch.context() as patch:
        told_in(window, step, patch, *[signal.SIGTERM] * again)
        with pytest.raises(SystemExit) as left:
            Trainer(recipe, tmp_path, QUIET).run()
    assert left.value.code == 143
    states = sorted(tmp_path.glob("checkpoint-*"))
    assert (int(states[-1].name[-7:]) if states else None) == saved
    Trainer(recipe, tmp_path, QUIET).run()
    assert curve(tmp_path) == curve(whole)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_signal_while_the_model_is_written_lets_it_be_finished(
    make_recipe: MakeRecipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_in("write_tensors", 12, monkeypatch, signal.SIGINT, signal.SIGTERM)
    Trainer(make_recipe(), tmp_path, QUIET).run()
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(
    ("seconds", "ends"), [(trainer.PATIENCE - 1, SystemExit), (trainer.PATIENCE + 1, KeyboardInterrupt)]
)
def test_only_a_later_ctrl_c_ends_a_run_at_once(
    seconds: float, ends: type[BaseException], make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Trainer(make_recipe(), tmp_path, QUIET)
    save = made.checkpointer.describe

    def impatient(folder: Path) -> None:
        if made.step == 6:
            made.stopped.since -= seconds
            tell(signal.SIGTERM, signal.SIGINT)
        save(folder)

    made.checkpointer.describe = impatient
    told_in("_train_step", 6, monkeypatch, signal.SIGINT)
    with pytest.raises(ends):
        made.run()
    expected = ["checkpoint-0000004"] + ["checkpoint-0000006"] * (ends is SystemExit)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == expected


@pytest.mark.parametrize("step", [6, 8], ids=["in a step", "in a validation"])
def test_what_fails_with_the_signal_is_a_stop(step: int, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """A compiler of the same process group gets it as well, and the forward that waits for it fails."""

    class Compiled(Trainer):
        signals: tuple[int, ...] = (signal.SIGINT,)

        def _taught(self, *args: Any) -> Any:
            if self.step == step:
                tell(*self.signals)
                raise RuntimeError("the compiler was killed")
            return super()._taught(*args)

    with pytest.raises(SystemExit) as left:
        Compiled(make_recipe(), tmp_path / "stopped", QUIET).run()
    assert left.value.code == 130
    assert (tmp_path / "stopped" / f"checkpoint-{step:07d}").is_dir()
    Compiled.signals = ()
    with pytest.raises(RuntimeError, match="compiler"):
        Compiled(make_recipe(), tmp_path / "failed", QUIET).run()


def test_a_terminal_that_closes_stops_a_run_unless_it_is_told_to_stay(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_in("_train_step", 6, monkeypatch, signal.SIGHUP)
    with pytest.raises(SystemExit) as left:
        Trainer(make_recipe(), tmp_path, QUIET).run()
    assert left.value.code == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by nohup
    try:
        Trainer(make_recipe(), tmp_path, QUIET).run()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_where(make_tree: MakeTree, tmp_path: Path, number: int, code: int) -> None:
    path, folder = tmp_path / "r.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(make_tree(training__steps=100_000, training__save_every=90_000)))
    command = [sys.executable, str(Path(__file__).with_name("run_recipe.py")), str(path), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step "):
                break
        second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert "in use by another run" in second.stdout + second.stderr
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(60) == code
    finally:
        process.kill()
    (saved,) = folder.glob("checkpoint-*")
    assert f"saved in {saved}" in rest.replace("\n", "")
    assert json.loads((saved / "state.json").read_text())["step"] == int(saved.name[-7:]) >= 20
