"""The bench of a server: its figures, its picture, and (slow) the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.evaluation.bench_serve import Answer, Load, Report, _load, bench, draw


def test_figures_are_those_of_the_answers() -> None:
    alone = [Answer(f"text {i}", 10, 0.1 * i, float(i)) for i in range(1, 21)]
    other = [Answer("changed", 10, 1.0, 2.0), *alone[1:]]
    load = _load(4, other, alone, 5.0)
    assert load.tokens_per_second == 40
    assert (load.clients, load.requests, load.identical) == (4, 20, 19)
    assert load.first_p50 <= load.first_p95 <= load.whole_p95 == 19.0


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    loads = [Load(n, 8, 30.0 * n, 0.1, 0.2, 1.0, 2.0, 8) for n in (1, 8, 32)]
    report = Report("a model", loads, 10.2, 10.0)
    assert report.overhead == pytest.approx(0.02)
    draw(report, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_small_bench_runs() -> None:
    report = bench("austen", [1, 3], 6, 12, None, None, lambda text: None)
    assert [load.clients for load in report.loads] == [1, 3]
    assert all(load.identical == 6 and load.tokens_per_second > 0 for load in report.loads)
    assert report.engine_seconds > 0
