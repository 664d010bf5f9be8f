"""A short soak of the real server: every request has an end, the server comes to rest and stops when told."""

from __future__ import annotations

import pytest
from benchmarks.soak import SLACK, Held, Soak, bench_soak

HELD = Held(400 << 20, 9, 20)


def soak(**changes: object) -> Soak:
    same = {"minutes": 1.0, "clients": 4, "memory_first": 400 << 20, "memory_last": 410 << 20, "running_after": 0}
    fine = {
        "outcomes": {"answered": 3, "refused": 2, "vanished": 1},
        "stopped_outcomes": {"answered": 1, "stopping": 1},
        "before": HELD,
        "after": HELD,
    }
    rest = {"waiting_after": 0, "exit_status": 0, "seconds_to_stop": 1.0}
    return Soak(**{**same, **fine, **rest, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"outcomes": {"answered": 3, "cut": 2, "status 500": 1}}, "2 requests: cut"),
        ({"stopped_outcomes": {"vanished": 1, "TimeoutError": 1}}, "1 requests after SIGTERM: TimeoutError"),
        ({"running_after": 1}, "slot"),
        ({"memory_last": (401 << 20) + SLACK}, "memory grew"),
        ({"after": Held(HELD.memory, 10, 20)}, "threads"),
        ({"after": Held(HELD.memory, 8, 20)}, ""),
        ({"exit_status": 1}, "exit status"),
    ],
)
def test_faults_are_what_nobody_asked_for(changes: dict[str, object], says: str) -> None:
    faults = soak(**changes).faults
    assert says in " ".join(faults)
    assert bool(faults) == bool(says)


@pytest.mark.slow
def test_a_short_soak() -> None:
    told: list[str] = []
    done = bench_soak("default", 0.1, 2, 2, 0.3, 16, told.append)
    assert done.faults == []
    assert done.outcomes["answered"] > 0
    assert done.exit_status == 0
    assert any("SIGTERM" in line for line in told)
