"""Long prompts read in parts: the ids, the frames and the steps are those of reading them at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import DiffusionLM
from unmask.backends.torch import TorchBackend
from unmask.canvas import Frame
from unmask.decoding.feed import Feed
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import denoise, draft
from unmask.decoding.request import Request
from unmask.decoding.rules import RuleOptions
from unmask.layout import Layout
from unmask.models.transformer import Transformer

Drafting = Callable[..., tuple[Transformer, Transformer]]


def decode(network: Transformer, layout: Layout, requests: list[Request]) -> tuple[Decoder, list[Frame]]:
    decoder = Decoder(TorchBackend(network), layout, requests)
    return decoder, [frame for step in decoder.run() for frame in step]


def told(frames: list[Frame], row: int) -> list[Any]:
    return [(f.step, f.positions, f.tokens, f.kinds) for f in frames if f.row == row]


@settings(max_examples=20, deadline=None)
@given(
    chunk=st.integers(1, 20),
    prompt=st.integers(1, 30),
    block=st.integers(1, 5),
    seed=st.integers(0, 3),
    guidance=st.sampled_from([0.0, 0.6]),
)
@pytest.mark.parametrize("shift", [False, True])
def test_block_causal(tiny: Any, shift: bool, chunk: int, prompt: int, block: int, seed: int, guidance: float) -> None:
    """Guided requests too, whose twin's prompt is read in the same parts."""
    network = tiny(seed, layout="block_causal", block_length=block, shift=shift)
    layout = Layout("block_causal", block)
    ids = [(7 * i + seed) % 12 for i in range(prompt)]
    rule = RuleOptions("threshold", threshold=0.4)
    whole = Request(
        ids + [12] * 9, [True] * prompt + [False] * 9, 5, rule, temperature=0.8, block_length=block, guidance=guidance
    )
    other = Request([1, 2] + [12] * 14, [True] * 2 + [False] * 14, 1, rule=rule, block_length=block)
    plain, frames = decode(network, layout, [whole])
    parts, part_frames = decode(network, layout, [other, replace(whole, prefill_chunk=chunk)])
    assert told(part_frames, 1) == told(frames, 0)
    row = parts.rows[1]
    assert row.steps == plain.rows[0].steps
    assert row.prefills <= prompt // min(chunk, block * max(1, chunk // block))
    if prompt > 2 * max(chunk, block):
        assert row.prefills > 0


@pytest.mark.parametrize("mode", ["ar", "diffusion", "verify"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts(drafting: Drafting, mode: str, temperature: float) -> None:
    _, network = drafting(1)
    ids = [(5 * i) % 7 for i in range(23)]
    rule = RuleOptions("sequential") if mode == "ar" else RuleOptions("threshold", threshold=0.4)
    block = 1 if mode == "ar" else 3
    options: Any = {"temperature": temperature, "block_length": block, "rule": rule}
    options["method"] = draft.Options() if mode == "verify" else denoise.Options()
    whole = Request(ids + [8] * 12, [True] * 23 + [False] * 12, 3, **options)
    plain, frames = decode(network, Layout("drafts"), [whole])
    for chunk in (1, 4, 22, 23, 100):
        asked = [replace(whole, seed=9, prefill_chunk=0), replace(whole, prefill_chunk=chunk)]
        parts, part_frames = decode(network, Layout("drafts"), asked)
        if mode != "verify":  # what it feeds is what pays, in this company
            assert told(part_frames, 1) == told(frames, 0)
        assert (parts.rows[1].canvas.ids == plain.rows[0].canvas.ids).all()
        assert (parts.rows[1].prefills > 0) == (chunk < 23)


def test_logprobs_are_those_of_the_written_tokens(drafting: Drafting, tiny: Any) -> None:
    """In every mode the first is the written token's; at temperature 0 it is the best one."""
    _, network = drafting(1)
    cases: list[tuple[Transformer, Layout, str, int]] = [(network, Layout("drafts"), m, 8) for m in ("ar", "verify")]
    cases.append((tiny(2), Layout("bidirectional"), "diffusion", 12))
    for model, layout, mode, mask in cases:
        asked = Request(
            [1, 2, 3] + [mask] * 9, [True] * 3 + [False] * 9, rule=RuleOptions("sequential"),
            block_length=1 if mode == "ar" else 3, logprobs=2,
            method=draft.Options() if mode == "verify" else denoise.Options(),
        )  # fmt: skip
        decoder, frames = decode(model, layout, [asked])
        row = decoder.rows[0]
        assert sorted(row.logprobs) == list(range(3, 12))
        for frame in frames:
            for position, token in zip(frame.positions, frame.tokens, strict=True):
                own, *best = row.logprobs[position]
                assert own[0] == token == best[0][0]
                assert own[1] == best[0][1] >= best[1][1]


class Broken(RuntimeError):
    pass


def test_one_bad_request_does_not_stop_the_others(tiny: Any) -> None:
    network = tiny(0)

    def stop(ids: list[int]) -> bool:
        if len(ids) > 2:
            raise Broken("a stop that fails")
        return False

    good = Request([1, 2] + [12] * 8, [True] * 2 + [False] * 8, rule=RuleOptions("sequential"))
    bad = replace(good, stop=stop)
    alone, _ = decode(network, Layout("bidirectional"), [good])
    with pytest.raises(Broken):
        decode(network, Layout("bidirectional"), [bad])
    decoder = Decoder(TorchBackend(network), Layout("bidirectional"), [good, bad, good], isolate=True)
    for _ in decoder.run():
        pass
    assert [row.error is None for row in decoder.rows.values()] == [True, False, True]
    for number in (0, 2):
        assert decoder.rows[number].canvas.ids.tolist() == alone.rows[0].canvas.ids.tolist()


def test_canvases_of_random_tokens() -> None:
    lm = DiffusionLM.from_pretrained(Path(__file__).parent.parent / "conformance" / "diffusion_gemma")
    prompt = [(5 * i + 3) % 40 for i in range(21)]
    asked = lm.prepare(prompt, 20, max_denoising_steps=3, entropy_bound=3.0, seed=4, temperature=1.0)
    plain = Decoder(lm.new_backend(), asked.layout, asked.requests, asked.eos_ids)
    frames = [frame for step in plain.run() for frame in step]
    other = lm.prepare([7, 8], 9, max_denoising_steps=4, seed=1).requests[0]
    for chunk in (1, 8, 20):
        part = replace(asked.requests[0], prefill_chunk=chunk)
        parts = Decoder(lm.new_backend(), asked.layout, [other, part], asked.eos_ids)
        assert told([frame for step in parts.run() for frame in step], 1) == told(frames, 0)
        assert parts.rows[1].prefills > 0


@pytest.mark.parametrize("mode", ["ar", "diffusion", "verify"])
def test_a_shared_beginning_is_read_once_and_changes_no_ids(drafting: Drafting, mode: str) -> None:
    """Who joins an active request takes over what both begin with, and no more than that."""
    _, network = drafting(1)
    rule = RuleOptions("sequential") if mode == "ar" else RuleOptions("threshold", threshold=0.4)
    method = draft.Options() if mode == "verify" else denoise.Options()
    common = [(5 * i) % 7 for i in range(20)]

    def request(ids: list[int]) -> Request:
        given = [True] * len(ids) + [False] * 10
        return Request(ids + [8] * 10, given, block_length=1 if mode == "ar" else 3, rule=rule, method=method)

    asked = [request(ids) for ids in ([*common, 1, 2], [*common, 3, 1, 4], common, common[:12], [6, *common])]
    alone = [decode(network, Layout("drafts"), [one])[0].rows[0].canvas.ids for one in asked]
    decoder = Decoder(TorchBackend(network), Layout("drafts"), asked[:1])
    decoder.step()
    decoder.step()
    fed = list[int]()
    forward = decoder.backend.forward

    def counted(feed: Feed) -> Any:
        fed.append(int((feed.document == 0).sum()))
        return forward(feed)

    decoder.backend.forward = counted  # type: ignore[method-assign]
    for one in asked[1:]:
        decoder.admit(one)
    for _ in decoder.run():
        pass
    assert [row.shared for row in decoder.rows.values()] == [0, 20, 19, 0, 0]
    if mode == "ar":
        assert fed[0] == 1 + 3 + 1 + 12 + 21  # one column of who was there, and what each prompt has of its own
    for row, ids in zip(decoder.rows.values(), alone, strict=True):
        assert (row.canvas.ids == ids).all()
