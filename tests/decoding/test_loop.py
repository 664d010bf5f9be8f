"""The one decoding loop: its three uses agree where they must, and requests do not touch each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.attention import plain_mask
from unmask.backends.torch import TorchBackend
from unmask.canvas import Frame
from unmask.decoding.budget import plan
from unmask.decoding.convention import Convention
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import edit
from unmask.decoding.request import Request
from unmask.decoding.rules import RULES, RuleOptions
from unmask.layout import Layout
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

VOCAB, MASK, EOS = 17, 16, 15


def network(layout: str = "bidirectional", shift: bool = False, seed: int = 0, block_length: int = 0) -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=48,
        max_length=64,
        layout=layout,  # type: ignore[arg-type]
        block_length=block_length,
        shift=shift,
        mask_token_id=MASK,
        pad_token_id=0,
    )
    return Transformer(config).initialise(seed, std=0.4).eval()  # wide weights, so that choices differ


def request(prompt: list[int], new: int, **options: object) -> Request:
    given_part = [True] * len(prompt) + [False] * new
    rule = options.get("rule")
    if isinstance(rule, RuleOptions) and rule.name == "token_edit":
        options["method"] = edit.Options()
    return Request(prompt + [MASK] * new, given_part, **options)  # type: ignore[arg-type]


def decode(
    model: Transformer, layout: Layout, requests: list[Request], **options: object
) -> tuple[Decoder, list[Frame]]:
    decoder = Decoder(TorchBackend(model), layout, requests, **options)  # type: ignore[arg-type]
    return decoder, [frame for step in decoder.run() for frame in step]


def written(decoder: Decoder, row: int = 0) -> list[int]:
    return decoder.canvas.ids[row, : len(decoder.requests[row].ids)].tolist()


@torch.inference_mode()
def greedy_by_hand(model: Transformer, prompt: list[int], new: int) -> list[int]:
    """Textbook AR decoding: the whole prefix again for every token."""
    ids = list(prompt)
    mask = Layout("causal")
    for _ in range(new):
        raw = model.head(model.hidden(torch.tensor([ids]), None, plain_mask(mask, len(ids), torch.device("cpu"))))
        raw[..., MASK] = -torch.inf
        ids.append(int(raw[0, -1].argmax()))
    return ids


def test_block_of_one_is_autoregressive() -> None:
    model = network("causal", shift=True)
    decoder, frames = decode(model, Layout("causal"), [request([3, 1, 4], 12, block_length=1)])
    assert written(decoder) == greedy_by_hand(model, [3, 1, 4], 12)
    assert decoder.steps == [12]
    assert [f.positions for f in frames] == [(i,) for i in range(3, 15)]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block_length", [1, 3, 4, 16])
def test_exact_cache_changes_nothing(shift: bool, block_length: int) -> None:
    model = network("block_causal", shift=shift, block_length=block_length)
    layout = Layout("block_causal", block_length)
    requests = [
        request([3, 1, 4, 1, 5], 13, block_length=block_length, rule=RuleOptions("threshold", threshold=0.3)),
        request([9, 2], 17, block_length=block_length, rule=RuleOptions("quota"), max_denoising_steps=2),
    ]
    cached, _ = decode(model, layout, requests)
    plain, _ = decode(model, layout, requests, use_cache=False)
    assert cached.steps == plain.steps
    for row in range(2):
        assert written(cached, row) == written(plain, row)


def test_block_as_long_as_the_canvas_is_full_canvas_decoding() -> None:
    model = network("block_causal", block_length=64)
    full, _ = decode(
        model, Layout("bidirectional"), [request([3, 1], 14, max_denoising_steps=5, rule=RuleOptions("quota"))]
    )
    block, _ = decode(
        model, Layout("block_causal", 64), [request([3, 1], 14, max_denoising_steps=5, rule=RuleOptions("quota"))]
    )
    assert written(full) == written(block)
    assert full.steps == block.steps == [5]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", ["bidirectional", "block_causal"])
def test_company_changes_nothing(rule: str, layout: str) -> None:
    """Law 7: requests of other length, seed and options in the batch leave a request's ids alone."""
    model = network(layout, block_length=4)
    shape = Layout("block_causal", 4) if layout == "block_causal" else Layout("bidirectional")
    common = {"rule": RuleOptions(rule, threshold=0.4, entropy_bound=2.0), "temperature": 0.9, "block_length": 4}  # type: ignore[arg-type]
    mine = request([3, 1, 4], 10, seed=7, top_k=9, **common)
    others = [
        request([5], 21, seed=1, max_denoising_steps=2, **common),
        replace(mine, seed=8),
        request([2] * 9, 3, seed=3, rule=RuleOptions("quota"), temperature=0.0, top_p=0.7),
    ]
    alone, alone_frames = decode(model, shape, [mine])
    together, frames = decode(model, shape, [others[0], mine, *others[1:]])
    assert written(together, 1) == written(alone)
    assert together.steps[1] == alone.steps[0]
    mine_frames = [f for f in frames if f.row == 1]
    assert [(f.step, f.positions, f.tokens) for f in mine_frames] == [
        (f.step, f.positions, f.tokens) for f in alone_frames
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(list(RULES)),
    st.integers(0, 6),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(1, 24)),
    st.one_of(st.none(), st.integers(1, 24)),
    st.integers(0, 5),
    st.floats(0, 2),
    st.sampled_from(["even", "linear", "cosine", "timesteps"]),
    st.booleans(),
    st.sampled_from(["none", "prefix", "dual"]),
)
def test_frames_replay_and_nothing_given_moves(
    rule: str,
    prompt: int,
    new: int,
    block: int | None,
    steps: int | None,
    budget: int,
    temperature: float,
    schedule: str,
    empty_steps: bool,
    cache: str,
) -> None:
    """Law 10, for any options; and the step budget holds where the canvas is one block."""
    model = network()
    asked = request(
        list(range(prompt)),
        new,
        seed=new,
        temperature=temperature,
        rule=RuleOptions(rule, Convention(empty_steps=empty_steps), threshold=0.5, schedule=schedule),  # type: ignore[arg-type]
        cache=cache,
        block_length=block,
        max_denoising_steps=steps,
        remask_budget=budget,
    )
    decoder = Decoder(TorchBackend(model), Layout("bidirectional"), [asked])
    first = decoder.canvas
    frames = [frame for step in decoder.run() for frame in step]
    assert (first.replay(frames).ids == decoder.canvas.ids).all()
    assert written(decoder)[:prompt] == list(range(prompt))
    assert MASK not in written(decoder)
    if block is None:
        editing = edit.Options.max_post_steps if rule == "token_edit" else 0
        assert decoder.steps[0] <= (steps or new) + editing
        if empty_steps and asked.rule.ranks:
            assert decoder.steps[0] == (steps or new)
    assert sum(kind == "remask" for f in frames for kind in f.kinds) <= budget


def test_same_number_of_steps_for_any_length() -> None:
    model = network()
    for new in (8, 20, 40):
        decoder, _ = decode(
            model, Layout("bidirectional"), [request([1], new, max_denoising_steps=8, rule=RuleOptions("quota"))]
        )
        assert decoder.steps == [8]


def test_remasking_revises_within_its_budget() -> None:
    model = network()
    asked = request([1], 20, max_denoising_steps=10, rule=RuleOptions("quota"), remask_budget=4, temperature=1.0)
    decoder, frames = decode(model, Layout("bidirectional"), [asked])
    revised = [p for f in frames for p, kind in zip(f.positions, f.kinds, strict=True) if kind == "remask"]
    assert 0 < len(revised) <= 4
    assert len(set(revised)) == len(revised)  # each once
    assert decoder.steps == [10]


@pytest.mark.parametrize("rule", ["threshold", "quota"])
def test_the_coldest_temperatures_are_greedy(rule: str) -> None:
    model = network()
    options = {"rule": RuleOptions(rule), "max_denoising_steps": 3}  # type: ignore[arg-type]
    greedy, _ = decode(model, Layout("bidirectional"), [request([3, 1], 9, **options)])
    cold, _ = decode(model, Layout("bidirectional"), [request([3, 1], 9, temperature=5e-324, **options)])
    assert written(cold) == written(greedy)


def test_a_literal_mask_in_the_prompt_stays() -> None:
    model = network()
    decoder, _ = decode(model, Layout("bidirectional"), [request([1, MASK, 2], 4)])
    assert written(decoder)[:3] == [1, MASK, 2]


def test_end_of_text_stops_early() -> None:
    """With every token an end of text, AR stops after one token and a canvas once its left end is written."""
    ends = frozenset(range(VOCAB - 1))
    decoder, _ = decode(
        network("causal", shift=True), Layout("causal"), [request([3], 10, block_length=1)], eos_ids=ends
    )
    assert decoder.steps == [1]
    asked = request([3], 10, rule=RuleOptions("sequential"), max_denoising_steps=10)
    decoder, _ = decode(network(), Layout("bidirectional"), [asked], eos_ids=ends)
    assert decoder.steps == [1]


def test_stop_is_asked_with_the_finished_left_part() -> None:
    asked_with: list[list[int]] = []

    def stop(ids: list[int]) -> bool:
        asked_with.append(ids)
        return len(ids) >= 3

    asked = request([3, 4], 10, rule=RuleOptions("sequential"), stop=stop)
    decoder, _ = decode(network(), Layout("bidirectional"), [asked])
    assert decoder.steps == [3]
    assert asked_with[-1] == written(decoder)[2:5]


def test_nothing_to_do_takes_no_step() -> None:
    decoder, frames = decode(network(), Layout("bidirectional"), [Request([1, 2], [True, True])])
    assert decoder.steps == [0]
    assert frames == []


@pytest.mark.parametrize("layout", ["bidirectional", "block_causal"])
def test_requests_join_and_leave_between_steps(layout: str) -> None:
    """Law 7 for company that changes: late requests, longer than any before, and one that is taken out."""
    model = network(layout, block_length=4)
    shape = Layout("block_causal", 4) if layout == "block_causal" else Layout("bidirectional")
    common = {"rule": RuleOptions("threshold", threshold=0.4), "temperature": 0.9, "block_length": 4}
    asked = [request([3] * (n + 1), 6 + 5 * n, seed=n, **common) for n in range(4)]
    alone = [decode(model, shape, [one])[0] for one in asked]
    decoder = Decoder(TorchBackend(model), shape, asked[:1])
    for late in asked[1:]:
        decoder.step()
        decoder.admit(late)
    decoder.step()
    gone = decoder.release(2)
    assert gone.masked.any()
    while decoder.busy:
        decoder.step()
    for number in (0, 1, 3):
        row = decoder.rows[number]
        assert row.canvas.ids[0].tolist() == written(alone[number])
        assert row.forwards == alone[number].steps[0]
    assert decoder.release(3).number == 3
    assert list(decoder.rows) == [0, 1]


def test_steps_that_write_nothing_are_left_out_or_paid_for() -> None:
    model = network()
    for schedule in ("even", "linear", "cosine", "timesteps"):
        needed, canvases = sum(n > 0 for n in plan(schedule, 5, 9)), []  # type: ignore[arg-type]
        assert needed < 9
        for empty_steps, steps in ((True, 9), (False, needed)):
            rule = RuleOptions("quota", Convention(empty_steps=empty_steps), schedule=schedule)  # type: ignore[arg-type]
            asked = request([3], 5, rule=rule, max_denoising_steps=9)
            decoder, frames = decode(model, Layout("bidirectional"), [asked])
            assert decoder.steps == [steps]
            assert len(frames) == needed
            canvases.append(written(decoder))
        assert canvases[0] == canvases[1]


def test_a_rule_that_judges_never_pays_for_empty_steps() -> None:
    rule = RuleOptions("threshold", Convention(empty_steps=True), threshold=0.0)
    decoder, _ = decode(network(), Layout("bidirectional"), [request([3], 9, rule=rule, max_denoising_steps=20)])
    assert decoder.steps == [1]


def test_the_first_step_of_a_block_may_write_its_first_token_alone() -> None:
    """And a block that gets one step gets another for the rest."""
    rule = RuleOptions("threshold", Convention(first_step="one"), threshold=0.0)
    asked = request([3, 1], 12, rule=rule, block_length=4, cache="dual")
    decoder, frames = decode(network(shift=True), Layout("bidirectional"), [asked])
    assert [f.positions for f in frames[:3]] == [(2,), (3, 4, 5), (6,)]
    assert decoder.steps == [6]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_an_approximate_cache_refreshed_at_every_step_is_none(cache: str, shift: bool) -> None:
    model = network(shift=shift)
    options = {"rule": RuleOptions("quota"), "block_length": 5}
    plain, _ = decode(model, Layout("bidirectional"), [request([3, 1], 15, **options)])
    approximate = request([3, 1], 15, cache=cache, cache_refresh=1, **options)
    fresh, _ = decode(model, Layout("bidirectional"), [approximate, request([4], 9)])
    assert written(fresh) == written(plain)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cached_step_scores_the_first_position_by_the_column_before_it(cache: str) -> None:
    """Where a shifted head's block still begins with a mask; with one layer what is cached is never stale."""
    config = replace(network(shift=True).config, num_layers=1)
    model = Transformer(config).initialise(2, std=0.4).eval()
    asked = request([3, 1, 4], 6, rule=RuleOptions("sequential"), max_denoising_steps=6)
    backwards = replace(asked, rule=RuleOptions("quota"))
    for one in (asked, backwards):
        plain, _ = decode(model, Layout("bidirectional"), [one])
        cached, _ = decode(model, Layout("bidirectional"), [replace(one, cache=cache)])  # type: ignore[arg-type]
        assert written(cached) == written(plain)


def test_a_request_with_a_cache_may_join_requests_without() -> None:
    model, layout = network(), Layout("bidirectional")
    options = {"rule": RuleOptions("quota"), "block_length": 5}
    asked = [request([3, 1], 15, **options), request([4], 20, cache="dual", **options), request([2] * 4, 9, **options)]
    alone = [decode(model, layout, [one])[0] for one in asked]
    decoder = Decoder(TorchBackend(model), layout, asked[:1])
    for late in asked[1:]:
        decoder.step()
        decoder.admit(late)
    while decoder.busy:
        decoder.step()
    assert [written(decoder, b) for b in range(3)] == [written(one) for one in alone]
