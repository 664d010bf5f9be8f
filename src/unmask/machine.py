"""What this process may use of the machine: free memory, without asking for any, and cores, by its control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from unmask.errors import UnmaskError

UNLIMITED = 2**62  # version 1 of control groups writes "no limit" as a number near 2^63
FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}  # of the versions
FILES[2] = ("memory.max", "memory.current", "inactive_file")


def available(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: what the machine has free, or a control group's rest if that is less.

    None where the system does not say (it is not Linux).
    """
    free = _number(root / "proc/meminfo", "MemAvailable:")
    return None if free is None else max(0, min([free * 1024, *_rests(root)]))


def require(needed: int, what: str, remedy: str, free: int | None = None) -> None:
    """Raises UnmaskError where `needed` bytes cannot be had; `free` is measured unless given."""
    free = available() if free is None else free
    if free is not None and needed > free:
        raise UnmaskError(f"{what} needs {needed / 1e9:.2f} GB of memory and {free / 1e9:.2f} GB is free; {remedy}")


def cores() -> int:
    """Cores that this process may use: OMP_NUM_THREADS, or its affinity within the CPU quota of its control group."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(have, quota())))


def quota(root: Path = Path("/")) -> float:
    """CPUs that the control groups above this process leave it; infinite where none limits it."""
    limits = [float("inf")]
    for version, folder in control_groups(root, "cpu"):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        with suppress(OSError, ValueError, ZeroDivisionError):
            most, period = " ".join((folder / name).read_text() for name in names).split()
            if most not in ("max", "-1"):
                limits.append(int(most) / int(period))
    return min(limits)


def control_groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version (1 or 2) and folder of every control group that this process is in, and of all above it; a container
    sees its own group as the mount itself."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        parts = [part for part in place.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            yield 1 if controllers else 2, mount.joinpath(*parts[:depth])


def _rests(root: Path) -> Iterator[int]:
    """What is left in every control group this process is in."""
    for version, folder in control_groups(root, "memory"):
        limit, used, reclaimable = FILES[version]
        most = _number(folder / limit)
        now = _number(folder / used)
        if most is not None and now is not None and most < UNLIMITED:
            yield most - now + (_number(folder / "memory.stat", reclaimable) or 0)


def _number(path: Path, key: str = "") -> int | None:
    """A file's number, or that of a line that begins with a key; None for "max", or where there is none."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        lines = (line.split() for line in text.splitlines())
        return int(next(line[1] for line in lines if len(line) > 1 and line[0] == key) if key else text)
    except (OSError, ValueError, StopIteration):
        return None
