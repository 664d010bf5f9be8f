"""The benches of serving: their figures, the picture, and (slow) the whole of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.company import bench_company, compared
from benchmarks.overhead import WAYS, _lap, bench_overhead
from benchmarks.own_server import Answer, own_server
from benchmarks.serve import Load, Report, _load, bench, draw, requests_of

from unmask.errors import UnmaskError


def test_figures_are_those_of_the_answers() -> None:
    alone = [Answer(f"text {i}", 10, 0.1 * i, float(i)) for i in range(1, 21)]
    other = [Answer("changed", 10, 1.0, 2.0), *alone[1:]]
    load = _load(4, other, alone, 5.0)
    assert load.tokens_per_second == 40
    assert (load.clients, load.requests, load.identical) == (4, 20, 19)
    assert load.first_p50 <= load.first_p95 <= load.whole_p95 == 19.0


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    loads = [Load(n, 8, 30.0 * n, 0.1, 0.2, 1.0, 2.0, 8) for n in (1, 8, 32)]
    report = Report("a model", loads)
    assert [load["times"] for load in report.to_dict()["loads"]] == [1, 8, 32]
    draw(report, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")


def test_overhead_is_the_median_of_the_requests_own_ratios() -> None:
    seconds = dict(zip(WAYS, ([1.0, 2.0, 4.0], [1.1, 2.0, 40.0], [1.0, 2.0, 4.0]), strict=True))
    lap = _lap("server", seconds, 70)
    assert lap.over_generate == pytest.approx(1.1)
    assert (lap.seconds, lap.tokens_per_second) == (2.0, pytest.approx(70 / 43.1))


def test_company_counts_tokens_to_the_first_that_differs() -> None:
    bodies: list[dict[str, Any]] = [{"mode": "ar"}, {"mode": "ar"}, {"mode": "verify"}]
    alone = [Answer("a", 3, 0, 0, {0: 5, 1: 6, 2: 7})] * 3
    beside = [alone[0], Answer("b", 3, 0, 0, {0: 5, 1: 9, 2: 7}), Answer("a", 2, 0, 0, {0: 5, 1: 6})]
    found = compared("t", bodies, alone, beside)
    assert (found.different, found.different_texts, found.tokens, found.before_parting) == (2, 1, 9, 3 + 1 + 2)
    assert found.by_mode == {"ar": [1, 2], "verify": [1, 1]}


def test_prompts_come_in_turn_with_their_own_seeds() -> None:
    bodies = requests_of(45, 8, None)
    assert bodies[0]["prompt"] == bodies[20]["prompt"] != bodies[1]["prompt"]
    assert len({body["seed"] for body in bodies}) == 45
    assert "mode" not in bodies[0]


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(UnmaskError, match="no-such-model"), own_server("no-such-model"):
        pass


@pytest.mark.slow
def test_small_benches_run() -> None:
    report = bench("austen", [1, 3], 6, 12, None, None, lambda text: None)
    assert [load.clients for load in report.loads] == [1, 3]
    assert all(load.identical == 6 and load.tokens_per_second > 0 for load in report.loads)
    company = bench_company("austen", 6, 3, 12, None, 0, lambda text: None)
    assert (company.different, company.requests) == (0, 6)
    assert company.tokens == company.before_parting > 20
    laps = bench_overhead("austen", 3, 12, None, None, lambda text: None)
    assert [lap.name for lap in laps] == list(WAYS)
