"""Requests that nobody would send: never a 5xx, never a hang, always the documented shape, and nothing is left behind.

`make fuzz` sends ten thousand to a server in a process of its own and prints what became of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import hostile
import pytest
import schemathesis
from benchmarks.own_server import OwnServer, own_server
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from live_server import Live
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate], "database": None}
hostile_requests = st.tuples(st.sampled_from(sorted(hostile.BODIES)), hostile.hostile_changes)


@pytest.fixture(scope="module")
def api(live: Live) -> Any:
    return schemathesis.openapi.from_url(f"{live.url.removesuffix('/v1')}/openapi.json")


def operations(api: Any) -> list[tuple[Any, GenerationMode]]:
    """Every operation with requests that hold to its description, and with such that do not."""
    return [
        (found.ok(), mode)
        for found in api.get_all_operations()
        for mode in GenerationMode
        if found.ok().method != "get" or mode is GenerationMode.POSITIVE
    ]


def test_our_own_description_holds(api: Any) -> None:
    sent = 0
    for operation, mode in operations(api):

        @settings(max_examples=4, **QUIET)
        @given(case=operation.as_strategy(generation_mode=mode))
        def some(case: Any) -> None:
            nonlocal sent
            sent += 1
            case.call_and_validate(checks=CHECKS, timeout=30)

        some()
    assert sent > 40


@settings(max_examples=120, **QUIET)
@given(asked=hostile_requests)
def test_hostile_fields(live: Live, asked: tuple[str, dict[str, Any]]) -> None:
    body, streamed = hostile.hostile_request(*asked)
    answer = hostile.send(live.port, "POST", asked[0], body)
    assert not hostile.fault(answer, streamed), (asked, answer)


@settings(max_examples=60, **QUIET)
@given(asked=hostile.broken_bodies)
def test_broken_bodies(live: Live, asked: tuple[str, bytes]) -> None:
    answer = hostile.send(live.port, "POST", *asked)
    assert not hostile.fault(answer), (asked, answer)


@settings(max_examples=40, **QUIET)
@given(asked=hostile.odd_heads)
def test_odd_heads(live: Live, asked: tuple[str, str, dict[str, str]]) -> None:
    method, path, headers = asked
    answer = hostile.send(live.port, method, path, None, headers)
    assert not hostile.fault(answer), (asked, answer)


def test_nothing_is_left_behind(live: Live) -> None:
    live.idle()
    assert live.server.engine.running == live.server.engine.waiting == 0
    assert not live.server.engine._batches


class Storm:
    """Requests to a server until there are enough or the time is up, and what became of them."""

    def __init__(self, server: OwnServer, requests: int, seconds: float) -> None:
        self.server, self.requests, self.until = server, requests, time.monotonic() + seconds
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.slowest, self.shown = 0.0, time.monotonic()

    @property
    def over(self) -> bool:
        return sum(self.statuses.values()) >= self.requests or time.monotonic() > self.until

    def note(self, status: int, seconds: float, fault: str, asked: Any) -> None:
        self.statuses[status] += 1
        self.slowest = max(self.slowest, seconds)
        if fault:
            self.faults.append(f"{fault}: {str(asked)[:600]}")
        if time.monotonic() - self.shown > 5:
            self.shown = time.monotonic()
            told = f"{sum(self.statuses.values())} of {self.requests} requests, {len(self.faults)} faults"
            print(f"{told}, {self.server.held()['memory'] >> 20} MiB", file=sys.stderr, flush=True)

    def described(self, case: Any) -> None:
        """A request that schemathesis made of our description."""
        began, fault = time.monotonic(), ""
        try:
            response = case.call(timeout=hostile.SLOW + 10)
        except OSError as error:  # what requests raises is one
            return self.note(0, time.monotonic() - began, f"no answer, {error!r}", case.as_curl_command())
        try:
            case.validate_response(response, checks=CHECKS)
        except Exception as error:  # all of them are looked at in the end
            fault = f"status {response.status_code}, {' '.join(str(error).split())[:300]}"
        self.note(response.status_code, time.monotonic() - began, fault, case.as_curl_command())

    def hand_made(self, method: str, path: str, body: bytes | None, headers: dict[str, str], streamed: bool) -> None:
        try:
            answer = hostile.send(self.server.port, method, path, body, headers)
        except (OSError, HTTPException) as error:
            return self.note(0, 0.0, f"no answer, {error!r}", (method, path, body, headers))
        self.note(answer.status, answer.seconds, hostile.fault(answer, streamed), (method, path, body, headers))

    def rounds(self) -> None:
        """Some of every kind in turn, others in every round."""
        root = f"http://127.0.0.1:{self.server.port}"
        described = operations(schemathesis.openapi.from_url(f"{root}/openapi.json"))
        kinds: list[tuple[Any, Callable[[Any], None], int]] = [
            (operation.as_strategy(generation_mode=mode), self.described, 20) for operation, mode in described
        ]
        kinds += [
            (hostile_requests, lambda a: self.hand_made("POST", a[0], *self._body(a)), 200),
            (hostile.broken_bodies, lambda a: self.hand_made("POST", a[0], a[1], {}, False), 100),
            (hostile.odd_heads, lambda a: self.hand_made(a[0], a[1], None, a[2], False), 50),
        ]
        number = 0
        while not self.over:
            number += 1
            for strategy, send, count in kinds:
                if not self.over:
                    _drawn(strategy, send, count, number)

    @staticmethod
    def _body(asked: tuple[str, dict[str, Any]]) -> tuple[bytes, dict[str, str], bool]:
        body, streamed = hostile.hostile_request(*asked)
        return body, {}, streamed


def _drawn(strategy: Any, send: Callable[[Any], None], count: int, number: int) -> None:
    @seed(number)
    @settings(max_examples=count, derandomize=False, **QUIET)
    @given(asked=strategy)
    def some(asked: Any) -> None:
        send(asked)

    some()


def at_rest(server: OwnServer) -> dict[str, int]:
    """What a server holds once nothing runs and it has closed the connections that its clients keep open."""
    server.settled()
    time.sleep(6)
    return server.held()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_hostile_requests_leave_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    requests, minutes = int(os.environ.get("FUZZ_REQUESTS", 10000)), float(os.environ.get("FUZZ_MINUTES", 11))
    program = [sys.executable, str(Path(__file__).parent / "small_models.py")]
    with capfd.disabled(), own_server("", command=program) as server:
        Storm(server, min(requests // 10, 500), 60 * minutes).rounds()  # caches grow to their size
        before, began = at_rest(server), time.monotonic()
        storm = Storm(server, requests, 60 * minutes)
        storm.rounds()
        gauges, after = server.settled(), at_rest(server)
        print(
            f"\n{sum(storm.statuses.values())} requests in {time.monotonic() - began:.0f} s, the slowest "
            f"{storm.slowest:.2f} s\nby status: {dict(sorted(storm.statuses.items()))}\nbefore {before}, after {after}"
            f"\nin slots {gauges['unmask_running']:g}, in line {gauges['unmask_waiting']:g}, "
            f"{len(storm.faults)} faults",
            *storm.faults[:20],
            sep="\n",
            file=sys.stderr,
        )
    assert not storm.faults
    assert gauges["unmask_running"] == gauges["unmask_waiting"] == 0
    assert after["memory"] - before["memory"] < 64 << 20
    assert after["threads"] <= before["threads"] + 6  # those of pools start when first needed; a leak is of hundreds
    assert after["files"] <= before["files"]
