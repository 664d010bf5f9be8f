"""The engine: company changes nothing, slots and memory are bounded, and what goes wrong goes wrong alone."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import value

from unmask.backends.torch import TorchBackend, TorchLogits
from unmask.decoding.feed import Backend, Feed
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import draft
from unmask.decoding.request import Prepared, Request
from unmask.decoding.rules import RuleOptions
from unmask.layout import Layout
from unmask.models.transformer import Transformer
from unmask.serving.engine import Done, Engine, Event, Failed, Job, Limits, Refused, Step

MASK = {"canvas": 12, "blocks": 12, "drafts": 8}


class Backed:
    """A network as the engine takes it; forwards wait a little or fail when told to."""

    def __init__(self, network: Transformer) -> None:
        self.network, self.config = network, network.config
        self.pause, self.fail = 0.0, False
        self.made: list[TorchBackend] = []

    def new_backend(self) -> Backend:
        owner = self

        class Slow(TorchBackend):
            def forward(self, feed: Feed) -> TorchLogits:
                time.sleep(owner.pause)
                if owner.fail:
                    raise RuntimeError("the accelerator fell over")
                return super().forward(feed)

        self.made.append(Slow(self.network))
        return self.made[-1]


@pytest.fixture(scope="module")
def models(tiny: Callable[..., Transformer], drafting: Callable[..., Any]) -> dict[str, Backed]:
    return {
        "canvas": Backed(tiny(0)),
        "blocks": Backed(tiny(1, layout="block_causal", block_length=4)),
        "drafts": Backed(drafting(1, max_length=400)[1]),
    }


@pytest.fixture
def engine(models: dict[str, Backed]) -> Iterator[Engine]:
    for model in models.values():
        model.pause, model.fail = 0.0, False
    made = Engine(models, Limits(slots=4, queue=6, prefill_chunk=3))
    yield made
    made.close()


class Sink:
    """Everything that is told of one job."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()

    def __call__(self, event: Event) -> None:
        self.events.put(event)

    def end(self) -> Done | Failed:
        while True:
            event = self.events.get(timeout=30)
            if not isinstance(event, Step):
                return event

    def done(self) -> Done:
        event = self.end()
        assert isinstance(event, Done), event
        return event


def prepared(model: str, prompt: int, new: int, **options: Any) -> Prepared:
    mask, mode = MASK[model], options.pop("mode", "diffusion")
    block = options.pop("block_length", 4)
    if mode == "ar":
        block, options["rule"] = 1, RuleOptions("sequential")
    if mode == "verify":
        options["method"] = draft.Options()
    asked = Request(
        [(3 * i + prompt) % mask for i in range(prompt)] + [mask] * new, [True] * prompt + [False] * new,
        **{"rule": RuleOptions("threshold", threshold=0.4), "block_length": block, **options},
    )  # fmt: skip
    layout = {"canvas": Layout("bidirectional"), "blocks": Layout("block_causal", block), "drafts": Layout("drafts")}
    return Prepared([asked], layout[model])


def start(engine: Engine, model: str, asked: Prepared) -> tuple[Job, Sink]:
    sink = Sink()
    (job,) = Job.of(model, asked, sink)
    engine.submit([job])
    return job, sink


def alone(models: dict[str, Backed], model: str, asked: Prepared) -> list[int]:
    decoder = Decoder(TorchBackend(models[model].network), asked.layout, asked.requests, asked.eos_ids)
    for _ in decoder.run():
        pass
    return [int(token) for token in decoder.canvas.ids[0]]


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


asked_things = st.lists(
    st.tuples(
        st.sampled_from(["canvas", "blocks", "blocks2", "drafts-ar", "drafts-diffusion", "drafts-verify", "dual"]),
        st.integers(1, 12), st.integers(1, 14), st.integers(0, 5), st.sampled_from([0.0, 0.9]),
    ),
    min_size=2, max_size=9,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(asked_things)
def test_ids_do_not_depend_on_company(
    models: dict[str, Backed], things: list[tuple[str, int, int, int, float]]
) -> None:
    """Law 7 with requests of every model, mode, length and block length that join when there is room."""
    engine = Engine(models, Limits(slots=4, queue=6, prefill_chunk=3))
    running = []
    for kind, prompt, new, seed, temperature in things:
        model, _, mode = kind.partition("-")
        options: dict[str, Any] = {"seed": seed, "temperature": temperature}
        if mode:
            options["mode"] = mode
        if kind in ("blocks2", "dual"):
            model, options = ("blocks", {**options, "block_length": 2}) if kind == "blocks2" else ("canvas", options)
        if kind == "dual":
            options["cache"] = "dual"
        asked = prepared(model, prompt, new, **options)
        running.append((model, asked, start(engine, model, asked)[1]))
    for model, asked, sink in running:
        assert sink.done().ids == alone(models, model, asked)
    wait_until(lambda: engine.idle)
    assert engine.close()


def test_frames_lead_to_the_last_canvas_and_what_is_final_stays(engine: Engine) -> None:
    for model, options in (("canvas", {"remask_budget": 3, "temperature": 1.0}), ("drafts", {"mode": "verify"})):
        asked = prepared(model, 5, 14, **options)
        _, sink = start(engine, model, asked)
        canvas, promised = list(asked.requests[0].ids), []
        while isinstance(event := sink.events.get(timeout=30), Step):
            for position, token in zip(event.frame.positions, event.frame.tokens, strict=True):
                canvas[position] = token
            promised.append((event.final, canvas[: event.final]))
        assert isinstance(event, Done)
        assert canvas == event.ids
        assert all(event.ids[:final] == text for final, text in promised)
        assert promised[-1][0] == len(canvas)


def test_slots_and_the_line_are_bounded(engine: Engine, models: dict[str, Backed]) -> None:
    models["drafts"].pause = 0.02
    running = [start(engine, "drafts", prepared("drafts", 2, 12, mode="ar")) for _ in range(10)]
    with pytest.raises(Refused, match="full") as refused:
        start(engine, "drafts", prepared("drafts", 2, 2))
    assert refused.value.reason == "full"
    wait_until(lambda: engine.running == 4)
    assert engine.waiting == 6
    engine.cancel([job for job, _ in running[2:]])
    wait_until(lambda: engine.running == 2 and engine.waiting == 0)
    models["drafts"].pause = 0.0
    for _, sink in running[:2]:
        sink.done()
    wait_until(lambda: engine.idle)
    assert value(engine.metrics.batch, "_bucket", le="4.0") == value(engine.metrics.batch, "_count") > 0


def test_a_cancelled_job_is_gone_at_the_next_step(engine: Engine, models: dict[str, Backed]) -> None:
    models["drafts"].pause = 0.05
    job, sink = start(engine, "drafts", prepared("drafts", 2, 15, mode="ar"))
    sink.events.get(timeout=30)
    engine.cancel([job])
    before = value(engine.metrics.steps, "_total", model="drafts")
    wait_until(lambda: engine.idle)
    assert value(engine.metrics.steps, "_total", model="drafts") <= before + 1


def test_memory_is_bounded_and_given_back(models: dict[str, Backed]) -> None:
    asked = prepared("drafts", 3, 9, mode="ar")
    probe = Engine(models)
    one = probe.cache_bytes(Job.of("drafts", asked, print)[0].key, 1, len(asked.requests[0].ids))
    probe.close()
    engine = Engine(models, Limits(slots=8, cache_bytes=2 * one))
    running = [start(engine, "drafts", asked)[1] for _ in range(7)]
    for sink in running:
        assert sink.done().ids == alone(models, "drafts", asked)
    assert value(engine.metrics.batch, "_bucket", le="2.0") == value(engine.metrics.batch, "_count")
    wait_until(lambda: engine.idle and not engine._batches)
    assert all(made.cache is None or sum(k.numel() for k in made.cache.keys) == 0 for made in models["drafts"].made)
    engine.close()
    small = Engine(models, Limits(cache_bytes=one - 1))
    with pytest.raises(Refused, match="memory") as refused:
        start(small, "drafts", asked)
    assert refused.value.reason == "too_large"
    small.close()


def test_a_failing_backend_fails_those_it_had_and_no_others(engine: Engine, models: dict[str, Backed]) -> None:
    models["canvas"].pause = 0.01
    _, good = start(engine, "canvas", prepared("canvas", 2, 14))
    models["drafts"].fail = True
    _, bad = start(engine, "drafts", prepared("drafts", 2, 9))
    failed = bad.end()
    assert isinstance(failed, Failed)
    assert "fell over" in str(failed.error)
    models["drafts"].fail = False
    again = prepared("drafts", 2, 9)
    assert start(engine, "drafts", again)[1].done().ids == alone(models, "drafts", again)
    good.done()


def test_a_request_that_raises_fails_alone(engine: Engine, models: dict[str, Backed]) -> None:
    def stop(ids: list[int]) -> bool:
        raise ValueError("a stop that fails")

    fine = prepared("canvas", 2, 12)
    _, good = start(engine, "canvas", fine)
    odd = replace(fine, requests=[replace(fine.requests[0], stop=stop)])
    _, bad = start(engine, "canvas", odd)
    assert isinstance(bad.end(), Failed)
    assert good.done().ids == alone(models, "canvas", fine)


def test_closing_lets_what_runs_finish_or_fails_it(models: dict[str, Backed]) -> None:
    models["drafts"].pause = 0.01
    engine = Engine(models, Limits(slots=1))
    sinks = [start(engine, "drafts", prepared("drafts", 2, 8, mode="ar"))[1] for _ in range(3)]
    assert engine.close(grace=30)
    for sink in sinks:
        sink.done()
    with pytest.raises(Refused, match="shutting down"):
        start(engine, "drafts", prepared("drafts", 2, 8))
    models["drafts"].pause = 0.1
    engine = Engine(models, Limits(slots=1))
    sinks = [start(engine, "drafts", prepared("drafts", 2, 15, mode="ar"))[1] for _ in range(3)]
    assert not engine.close(grace=0.2)
    for sink in sinks:
        assert isinstance(sink.end(), Failed)
    models["drafts"].pause = 0.0


def test_a_long_job_does_not_keep_out_short_ones_nor_another_model(models: dict[str, Backed]) -> None:
    """Each is charged its own length, later ones pass the one that does not fit, and that one is not starved."""
    models["drafts"].pause = models["blocks"].pause = 0.003
    long, short = prepared("drafts", 2, 60, mode="ar"), prepared("drafts", 2, 4, mode="ar")
    probe = Engine(models)
    key = Job.of("drafts", long, print)[0].key
    one = probe.cache_bytes(key, 1, 128)
    probe.close()
    engine = Engine(models, Limits(slots=16, cache_bytes=4 * one))
    wide = prepared("drafts", 130, 20, mode="ar")  # of two steps of the cache's length
    sinks = [start(engine, "drafts", asked)[1] for asked in (long, short, wide, wide, short, short)]
    other = start(engine, "blocks", prepared("blocks", 2, 2))[1]
    began = time.monotonic()
    other.done()
    assert time.monotonic() - began < 1
    for sink, asked in zip(sinks, (long, short, wide, wide, short, short), strict=True):
        assert sink.done().ids == alone(models, "drafts", asked)
    models["drafts"].pause = models["blocks"].pause = 0.0
    engine.close()


def test_a_job_that_does_not_fit_yet_is_passed_for_a_while_only(
    models: dict[str, Backed], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.serving import engine as module

    models["drafts"].pause = 0.002
    small = prepared("drafts", 2, 40, mode="ar")
    large = prepared("drafts", 140, 10, mode="ar")
    probe = Engine(models)
    one = probe.cache_bytes(Job.of("drafts", small, print)[0].key, 1, 128)
    probe.close()
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    engine = Engine(models, Limits(slots=8, queue=1000, cache_bytes=2 * one))
    ended: list[str] = []
    feeding = True

    def feed(event: Event) -> None:
        """A stream of small jobs that never ends by itself: each begins the next one."""
        if not isinstance(event, Step):
            ended.append("small")
            if feeding:
                engine.submit(Job.of("drafts", small, feed))

    for _ in range(3):
        engine.submit(Job.of("drafts", small, feed))
    wait_until(lambda: engine.running > 0)
    _, sink = start(engine, "drafts", large)
    assert isinstance(sink.end(), Done)
    assert "small" in ended
    feeding = False
    models["drafts"].pause = 0.0
    wait_until(lambda: engine.idle)
    engine.close()


def test_one_model_does_not_hold_all_slots(models: dict[str, Backed]) -> None:
    models["drafts"].pause = 0.01
    engine = Engine(models, Limits(slots=2, queue=20))
    crowd = [start(engine, "drafts", prepared("drafts", 2, 40, mode="ar"))[0] for _ in range(8)]
    wait_until(lambda: engine.running == 2)
    _, sink = start(engine, "canvas", prepared("canvas", 2, 2))
    began = time.monotonic()
    sink.done()
    assert time.monotonic() - began < 1
    assert engine.running == 2
    engine.cancel(crowd)
    models["drafts"].pause = 0.0
    engine.close()


def test_long_prompts_are_read_a_few_at_a_time(models: dict[str, Backed]) -> None:
    engine = Engine(models, Limits(slots=8, prefill_chunk=3))
    models["drafts"].pause = 0.01
    readers = [start(engine, "drafts", prepared("drafts", 30, 4, mode="ar"))[1] for _ in range(6)]
    short = start(engine, "drafts", prepared("drafts", 2, 2, mode="ar"))[1]
    short.done()
    assert sum(sink.events.empty() for sink in readers) >= 4
    for sink in readers:
        assert sink.done().ids == alone(models, "drafts", prepared("drafts", 30, 4, mode="ar"))
    models["drafts"].pause = 0.0
    engine.close()
