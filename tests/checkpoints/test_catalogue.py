"""Names of models: shipped, fetched, aliases and paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from unmask.checkpoints import hub
from unmask.checkpoints.hub import ENTRIES
from unmask.errors import UnmaskError


def test_entries_say_all_that_fetching_needs() -> None:
    for name, entry in ENTRIES.items():
        assert entry.name == name
        assert entry.licence
        assert entry.base is None or entry.base in ENTRIES
        if entry.shipped:
            assert hub.is_present(entry)
        if entry.package is not None:
            assert [Path(entry.package.file).name] == [file.name for file in entry.files]
        for file in entry.files:
            assert Path(file.name).name == file.name
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
    folders = {path.parent.name for path in hub.SHIPPED.glob("*/config.json")}
    assert {e.name for e in ENTRIES.values() if e.shipped} == folders


def test_names_come_before_folders_and_paths_before_hub_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf_writer: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "pull_shown", lambda name: Path("fetched") / name)
    (tmp_path / "austen").mkdir()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert hub.find("austen") == hub.SHIPPED / "austen"
    assert hub.find("./austen") == Path("austen")
    assert hub.find("default") == hub.SHIPPED / "default"
    assert hub.find("runs/mine") == Path("runs/mine")
    assert hub.find("owner/mine") == Path("fetched/owner/mine")
    assert hub.find("smollm2-135m-instruct") == Path("fetched/smollm2-135m-instruct")
    path = gguf_writer(tmp_path / "runs" / "x.gguf")
    assert hub.find(str(path)) == path


@pytest.mark.parametrize("name", ["", "nothing", "a/b/c", "../x", "/no/where", "a/..", "a b/c", "x.gguf", "a/b\n"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UnmaskError, match="smollm2-135m-instruct"):
        hub.find(name if name else "nothing")


def test_hub_ids_make_an_entry_that_holds_no_code() -> None:
    entry = hub.need("owner/name")
    assert (entry.source, entry.package, entry.shipped) == ("the Hugging Face hub", None, False)
    assert hub.DATA == (".json", ".jinja", ".safetensors", ".gguf")
    with pytest.raises(UnmaskError, match="austen"):
        hub.need("nothing")


def test_the_cache_is_where_it_is_asked_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "own"))
    assert hub.cache() == tmp_path / "own"
    monkeypatch.delenv("UNMASK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.cache() == tmp_path / "xdg" / "unmask"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.cache() == tmp_path / ".cache" / "unmask"
