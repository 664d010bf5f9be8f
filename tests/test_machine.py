"""Free memory and cores: what control groups, quotas and affinities leave this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import machine
from unmask.models.network import within_quota


def system(root: Path, meminfo: str = "MemTotal: 9 kB\nMemAvailable:    1000 kB\n", **files: str) -> Path:
    """A make-believe root of the file system; double underscores stand for slashes."""
    for name, text in {"proc__meminfo": meminfo, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory_without_groups(tmp_path: Path) -> None:
    assert machine.available(system(tmp_path)) == 1000 * 1024
    assert machine.available(tmp_path / "nowhere") is None
    assert machine.available(system(tmp_path / "odd", "MemAvailable: x")) is None


def test_limits_of_groups_of_version_2(tmp_path: Path) -> None:
    group = {"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__memory.max": "500000"}
    group |= {"sys__fs__cgroup__a__memory.current": "300000", "sys__fs__cgroup__a__b__memory.max": "max"}
    group |= {
        "sys__fs__cgroup__a__b__memory.current": "7",
        "sys__fs__cgroup__a__memory.stat": "anon 1\ninactive_file 50\n",
    }
    assert machine.available(system(tmp_path, **group)) == 200050
    (tmp_path / "sys/fs/cgroup/a/memory.current").write_text("900000")
    assert machine.available(tmp_path) == 0
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")  # a container sees its own group as the root
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("1000")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("10")
    assert machine.available(tmp_path) == 990


def test_limits_of_groups_of_version_1(tmp_path: Path) -> None:
    group = {
        "proc__self__cgroup": "4:memory:/x\n3:cpu,cpuacct:/\n",
        "sys__fs__cgroup__memory__x__memory.usage_in_bytes": "1",
    }
    group |= {"sys__fs__cgroup__memory__x__memory.limit_in_bytes": "4001"}
    group |= {"sys__fs__cgroup__memory__memory.limit_in_bytes": str(2**63 - 4096)}
    group |= {"sys__fs__cgroup__memory__memory.usage_in_bytes": "5"}
    assert machine.available(system(tmp_path, **group)) == 4000


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_the_system_says_is_no_error(tmp_path_factory: pytest.TempPathFactory, info: str, groups: str) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, text in {"proc/meminfo": info, "proc/self/cgroup": groups}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    machine.available(root)
    machine.quota(root)


V1 = "sys__fs__cgroup__cpu__"
GROUPS = {
    "no group": ({}, float("inf")),
    "no limit": ({"proc__self__cgroup": "0::/a\n", "sys__fs__cgroup__a__cpu.max": "max 100000\n"}, float("inf")),
    "one and a half": ({"proc__self__cgroup": "0::/a\n", "sys__fs__cgroup__a__cpu.max": "150000 100000\n"}, 1.5),
    "the group above has less": (
        {
            "proc__self__cgroup": "0::/a/b/c\n",
            "sys__fs__cgroup__a__cpu.max": "200000 100000",
            "sys__fs__cgroup__a__b__cpu.max": "max 100000",
            "sys__fs__cgroup__a__b__c__cpu.max": "800000 100000",
        },
        2.0,
    ),
    "a container, whose group is the mount": (
        {"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "300000 100000"},
        3.0,
    ),
    "a container that sees the host's path": (
        {"proc__self__cgroup": "0::/../../docker/x\n", "sys__fs__cgroup__cpu.max": "300000 100000"},
        3.0,
    ),
    "version 1": (
        {
            "proc__self__cgroup": "5:cpuset:/\n4:cpu,cpuacct:/x/y\n0::/\n",
            f"{V1}x__cpu.cfs_quota_us": "50000\n",
            f"{V1}x__cpu.cfs_period_us": "100000\n",
            f"{V1}x__y__cpu.cfs_quota_us": "-1\n",
            f"{V1}x__y__cpu.cfs_period_us": "100000\n",
        },
        0.5,
    ),
    "version 1 in a container": (
        {
            "proc__self__cgroup": "4:cpuacct,cpu:/docker/x\n",
            f"{V1}cpu.cfs_quota_us": "400000\n",
            f"{V1}cpu.cfs_period_us": "100000\n",
        },
        4.0,
    ),
    "files that say nothing": (
        {"proc__self__cgroup": "0::/a\n", "sys__fs__cgroup__a__cpu.max": "", "sys__fs__cgroup__cpu.max": "5 0"},
        float("inf"),
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_the_quota_of_a_group_and_of_those_above(name: str, tmp_path: Path) -> None:
    files, expected = GROUPS[name]
    assert machine.quota(system(tmp_path, **files)) == expected


@pytest.mark.parametrize(
    ("asked", "affinity", "quota", "expected"),
    [
        ("3", 8, 0.5, 3),
        ("", 8, float("inf"), 8),
        ("0", 8, 2.5, 2),
        ("2,1", 4, 3.0, 3),
        ("many", 2, 64.0, 2),
        ("", 8, 0.5, 1),
    ],
)
def test_cores_are_those_asked_for_or_of_the_cpuset_within_the_quota(
    asked: str, affinity: int, quota: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(affinity)), raising=False)
    monkeypatch.setattr(machine, "quota", lambda: quota)
    assert machine.cores() == expected


def test_torch_keeps_within_the_quota_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        for had, quota, expected in ((6, 2.5, 2), (6, 0.3, 1), (2, 4.0, 2), (3, float("inf"), 3)):
            torch.set_num_threads(had)
            monkeypatch.setattr(machine, "quota", lambda quota=quota: quota)
            within_quota()
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
