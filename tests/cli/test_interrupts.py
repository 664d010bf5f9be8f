"""Ctrl-C and SIGTERM: the command line ends without a traceback, and leaves nothing half-written behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import unmask
from unmask.__main__ import main
from unmask.decoding.methods import DecodingDefaults
from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer

DECODES = "unmask.decoding.loop.Decoder.step"
READS = "unmask.checkpoints.open.Checkpoint.open"
WRITES = "unmask.checkpoints.save.write_tensors"
GENERATE = ["generate", "the cat", "-m", "{m}", "-n", "8"]
COMMANDS: dict[str, tuple[list[str], str]] = {
    "generate": (
        ["generate", "the cat", "-m", "{m}", "-n", "8", "--trace", "{new}/trace", "--picture", "{new}/a.svg"],
        DECODES,
    ),
    "generate, being drawn": (
        ["generate", "the cat", "-m", "{m}", "-n", "8"],
        "unmask.cli.terminal.CanvasView.advance",
    ),
    "generate json": (["generate", "the cat", "-m", "{m}", "-n", "8", "--json"], DECODES),
    "fill": (["fill", "the [[mask:2]] sat", "-m", "{m}"], DECODES),
    "race": (["race", "the cat", "--diffusion", "{m}", "--ar", "{ar}", "-n", "8"], DECODES),
    "eval": (["eval", "{m}", "{text}", "--method", "nelbo"], "unmask.models.transformer.Transformer.hidden"),
    "batch": (["batch", "{requests}", "{new}/answers.jsonl", "-m", "toy={m}"], DECODES),
    "serve, loading": (["serve", "{m}", "--port", "0"], READS),
    "serve, warming up": (["serve", "{m}", "--port", "0"], "unmask.serving.server.make_app"),
    "export": (["export", "{blocks}", "{new}/sdar"], WRITES),
}


class Interrupted(ModuleType):
    """A module that is interrupted while it is loaded."""

    def __getattr__(self, name: str) -> object:
        raise KeyboardInterrupt


def test_an_interrupt_while_loading_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "unmask.cli.main", Interrupted("unmask.cli.main"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


def test_nothing_large_is_loaded_before_an_interrupt_is_taken() -> None:
    code = "import sys, unmask.__main__; sys.exit(bool({'numpy', 'unmask.lm', 'unmask.cli'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_found_when_they_are_asked_for() -> None:
    assert all(getattr(unmask, name) is not None for name in unmask.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        unmask.Nothing  # noqa: B018


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Transformer]) -> dict[str, str]:
    """Models and files that commands are given, by the names above."""
    tokenizer = train_tokenizer("bpe", ["the cat sat on the mat. "], 300)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
    kinds: dict[str, dict[str, Any]] = {
        "m": {},
        "ar": {"layout": "causal", "shift": True},
        "blocks": {"layout": "block_causal", "block_length": 4, "qk_norm": True, "mask_in_softmax": True},
    }
    home = tmp_path_factory.mktemp("models")
    out = {"text": str(home / "text.txt"), "requests": str(home / "requests.jsonl")}
    for name, options in kinds.items():
        lm = DiffusionLM(tiny(pad_token_id=0, **sizes, **options), tokenizer, DecodingDefaults(rule="quota"), name)
        lm.save_pretrained(home / name)
        out[name] = str(home / name)
    Path(out["text"]).write_text("the cat sat on the mat. ")
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "toy", "prompt": "the"}}
    Path(out["requests"]).write_text(json.dumps(line) + "\n")
    return out


@pytest.fixture
def handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_a_command_in_one_line_at_most(
    name: str,
    number: int,
    code: int,
    places: dict[str, str],
    handlers: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments, window = COMMANDS[name]
    path, _, function = window.rpartition(".")
    try:
        home: Any = import_module(path)
    except ImportError:
        module, _, kind = path.rpartition(".")
        home = getattr(import_module(module), kind)
    usual = getattr(home, function)
    came = []

    def told(*given: Any, **options: Any) -> Any:
        result = usual(*given, **options)
        if not came:
            came.append(name)
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(home, function, told)
    if name.endswith("drawn"):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "argv", ["unmask", *(a.format(**places, new=tmp_path / "new") for a in arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    assert came
    assert left.value.code == code
    assert capfd.readouterr().err.count("\n") <= 1
    left_behind = [path for path in tmp_path.rglob("*") if path.is_file()]
    # a line that came at the same moment is whole
    assert all(path.name == "answers.jsonl" and json.loads(path.read_text()) for path in left_behind)


def test_a_model_that_is_being_saved_stays_as_it_was(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.checkpoints import save

    DiffusionLM.from_pretrained(places["m"]).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    usual = save.write_tensors

    def interrupted(*given: Any) -> None:
        usual(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DiffusionLM.from_pretrained(places["blocks"]).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
