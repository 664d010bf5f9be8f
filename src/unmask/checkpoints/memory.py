"""How much memory is free, without asking for any: /proc/meminfo and the limits of control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unmask.errors import UnmaskError

UNLIMITED = 2**62  # version 1 of control groups writes "no limit" as a number near 2^63


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: what the machine has free, or a control group's rest if that is less.

    None where the system does not say (it is not Linux).
    """
    free = _meminfo(root / "proc/meminfo")
    if free is None:
        return None
    return max(0, min([free, *_groups(root)]))


def require(needed: int, what: str, remedy: str, free: int | None = None) -> None:
    """Raises UnmaskError where `needed` bytes cannot be had; `free` is measured unless given."""
    free = available() if free is None else free
    if free is not None and needed > free:
        raise UnmaskError(f"{what} needs {needed / 1e9:.2f} GB of memory and {free / 1e9:.2f} GB is free; {remedy}")


def _meminfo(path: Path) -> int | None:
    try:
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _groups(root: Path) -> Iterator[int]:
    """What is left in every control group this process is in, of either version, up to the topmost."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if number == "0" and not controllers:
            yield from _climb(root / "sys/fs/cgroup", place, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _climb(root / "sys/fs/cgroup/memory", place, *names)


def _climb(mount: Path, place: str, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    """Rests of a group and of all above it; a container sees its own group as the mount itself."""
    parts = [part for part in place.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        most = _number(folder / limit)
        now = _number(folder / used)
        if most is not None and now is not None and most < UNLIMITED:
            yield most - now + (_number(folder / "memory.stat", reclaimable) or 0)


def _number(path: Path, key: str = "") -> int | None:
    """A file's number, or that of a `key number` line (0 if there is none); None for "max" or no file."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        if not key:
            return int(text)
        pairs = (line.split() for line in text.splitlines())
        return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == key), 0)
    except (OSError, ValueError):
        return 0 if key else None
