"""Files are whole or not there: replacing() and write_text()."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from unmask.errors import UnmaskError
from unmask.files import filling, replacing, write_text


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_made_with_its_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "naïve 東京\n")
    assert (tmp_path / "a/b/c.txt").read_bytes() == "naïve 東京\n".encode()
    assert names(tmp_path / "a/b") == ["c.txt"]


def test_a_file_replaces_a_file(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    write_text(target, "old, and longer")
    with replacing(target) as temporary:
        assert temporary.parent == target.parent  # one rename can't cross file systems
        assert temporary.name.startswith(".")
        temporary.write_text("new")
        assert target.read_text() == "old, and longer"  # until the very end
    assert target.read_text() == "new"
    assert names(tmp_path) == ["c.txt"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()], ids=repr)
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "c.txt"
    write_text(target, "old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["c.txt"]


@pytest.mark.parametrize("old", [True, False], ids=["old", "none"])
def test_a_full_disk_is_one_line(tmp_path: Path, old: bool) -> None:
    target = tmp_path / "c.txt"
    if old:
        write_text(target, "old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half of the n")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UnmaskError, match=r"^cannot write .*c\.txt: No space left on device") as caught:
        write()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == (["c.txt"] if old else [])
    assert not old or target.read_text() == "old"


def test_a_folder_is_made_and_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for content in ({"a": "1", "b": "2"}, {"b": "3"}):
        with replacing(target) as temporary:
            for name, text in content.items():
                write_text(temporary / name, text)
        assert {name: (target / name).read_text() for name in names(target)} == content
    assert names(tmp_path) == ["made"]


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "made"
    write_text(target / "a", "old")

    def write() -> None:
        with replacing(target) as temporary:
            write_text(temporary / "a", "new")
            write_text(temporary / "a" / "below a file", "impossible")

    with pytest.raises(UnmaskError):
        write()
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["made"]
    assert names(target) == ["a"]


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename = tmp_path / "made", os.rename
    write_text(target / "a", "old")

    def rename_old_only(source: Path, to: Path) -> None:
        if source.name.endswith(".tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, to)

    monkeypatch.setattr(os, "rename", rename_old_only)

    def write() -> None:
        with replacing(target) as temporary:
            write_text(temporary / "a", "new")

    with pytest.raises(UnmaskError, match="untouched"):
        write()
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["made"]


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UnmaskError, match="cannot write") as caught:
        write_text(tmp_path / "file" / "c.txt", "text")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "a file"


def test_a_file_cannot_take_the_place_of_a_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "made" / "a", "old")
    with pytest.raises(UnmaskError, match="cannot write"):
        write_text(tmp_path / "made", "text")
    assert (tmp_path / "made" / "a").read_text() == "old"
    assert names(tmp_path) == ["made"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    write_text(tmp_path / "c.txt", "old")

    def write() -> None:
        with replacing(tmp_path / "c.txt"):
            pass

    with pytest.raises(UnmaskError):
        write()
    assert (tmp_path / "c.txt").read_text() == "old"


@pytest.mark.parametrize(
    "error", [None, OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_files_that_go_together_take_the_place_of_a_former_set_or_none_does(
    tmp_path: Path, error: BaseException | None
) -> None:
    folder = tmp_path / "set"
    for name in ("config", "part-1", "part-2", "deep/part-3", "notes"):
        write_text(folder / name, "old")

    def write() -> None:
        with filling(folder, ["config", "part-*", "deep/part-*"]) as made:
            write_text(made / "config", "new")
            write_text(made / "deep" / "part-4", "new")
            if error is not None:
                raise error

    def held() -> dict[str, str]:
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    before = held()
    if error is None:
        write()
        assert held() == {"config": "new", "deep/part-4": "new", "notes": "old"}
    else:
        with pytest.raises(UnmaskError if isinstance(error, OSError) else type(error)) as caught:
            write()
        assert held() == before
        assert ".tmp" not in str(caught.value)
    assert not [name for name in names(folder) if name.startswith(".")]


def test_a_new_folder_of_which_nothing_came_is_not_there(tmp_path: Path) -> None:
    def write() -> None:
        with filling(tmp_path / "set") as made:
            write_text(made / "config", "new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", range(7))
def test_a_process_that_dies_while_it_moves_a_set_leaves_none_that_looks_whole(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    for name in ("config.json", "index.json", "part-1"):
        write_text(folder / name, "old")
    calls = 0

    def dying(usual: Callable[..., None]) -> Callable[..., None]:
        def move(*paths: Path, **options: bool) -> None:
            nonlocal calls
            if calls == call:
                raise KeyboardInterrupt
            calls += 1
            usual(*paths, **options)

        return move

    def write() -> None:
        with filling(folder, ["config.json", "index.json", "part-*"]) as made:
            for name in ("config.json", "part-1", "part-2"):
                (made / name).write_text("new")
            monkeypatch.setattr(os, "replace", dying(os.replace))
            monkeypatch.setattr(Path, "unlink", dying(Path.unlink))

    with pytest.raises(KeyboardInterrupt) if call < 6 else nullcontext():
        write()
    held = {name: (folder / name).read_text() for name in names(folder)}
    assert call == 0 or "config.json" not in held or held == dict.fromkeys(("config.json", "part-1", "part-2"), "new")
    assert calls == call
