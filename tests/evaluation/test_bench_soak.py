"""A short soak of the real server: every request has an end, the server comes to rest and stops when told."""

from __future__ import annotations

import pytest

from unmask.evaluation.bench_soak import Soak, bench_soak


def soak(**changes: object) -> Soak:
    same = {"minutes": 1.0, "clients": 4, "memory_before": 1, "memory_after": 1, "running_after": 0}
    fine = {
        "outcomes": {"answered": 3, "refused": 2, "vanished": 1},
        "stopped_outcomes": {"answered": 1, "stopping": 1},
    }
    rest = {"waiting_after": 0, "exit_status": 0, "seconds_to_stop": 1.0}
    return Soak(**{**same, **fine, **rest, **changes})  # type: ignore[arg-type]


def test_faults_are_what_nobody_asked_for() -> None:
    assert soak().faults == 0
    assert soak(outcomes={"answered": 3, "cut": 2, "status 500": 1}).faults == 3
    assert soak(stopped_outcomes={"vanished": 1, "TimeoutError": 1}).faults == 2
    assert soak().to_dict()["faults"] == 0


@pytest.mark.slow
def test_a_short_soak() -> None:
    told: list[str] = []
    done = bench_soak("default", 0.1, 2, 2, 0.3, 16, told.append)
    assert done.faults == 0
    assert done.outcomes["answered"] > 0
    assert (done.running_after, done.waiting_after, done.exit_status) == (0, 0, 0)
    assert any("SIGTERM" in line for line in told)
