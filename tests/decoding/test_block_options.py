"""Ways to decode in blocks: parts of a block, blocks from the prompt's end, editing, where a text ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.attention import plain_mask
from unmask.backends.torch import TorchBackend, TorchLogits
from unmask.decoding.convention import Convention
from unmask.decoding.feed import Feed
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import denoise, edit, sub_blocks
from unmask.decoding.request import MethodOptions, Request
from unmask.decoding.rules import RuleOptions
from unmask.layout import Layout
from unmask.lm import DiffusionLM
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

VOCAB, MASK = 17, 16
FIXTURES = Path(__file__).parent.parent / "conformance"


def network(shift: bool = False, seed: int = 0, block_length: int = 8, layers: int = 2) -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=layers, num_heads=4, num_kv_heads=2, intermediate_size=48,
        max_length=64, layout="block_causal", block_length=block_length, shift=shift, mask_token_id=MASK,
    )  # fmt: skip
    return Transformer(config).initialise(seed, std=0.4).eval()


FROM_PROMPT = Convention(blocks_from_prompt=True)


def parts(length: int) -> MethodOptions:
    return sub_blocks.Options(sub_block_length=length)


def request(prompt: list[int], new: int, **options: Any) -> Request:
    return Request(prompt + [MASK] * new, [True] * len(prompt) + [False] * new, **options)


class Spy(TorchBackend):
    """Remembers what it was fed."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.feeds: list[Feed] = []

    def forward(self, feed: Feed) -> TorchLogits:
        self.feeds.append(feed)
        return super().forward(feed)


def decode(model: Transformer, asked: Request, block: int = 8, **options: Any) -> tuple[list[int], int, Spy]:
    spy = Spy(model)
    decoder = Decoder(spy, Layout("block_causal", block), [asked], **options)
    first = decoder.canvas
    frames = [frame for made in decoder.run() for frame in made]
    assert (first.replay(frames).ids == decoder.canvas.ids).all()  # law 10
    return decoder.canvas.ids[0].tolist(), decoder.steps[0], spy


@settings(max_examples=10)
@given(st.booleans(), st.integers(0, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_parts_of_a_block_and_the_cache(shift: bool, prompt: int, new: int, part: int, block: int, seed: int) -> None:
    model = network(shift, seed, block)
    asked = request(
        [i % 9 for i in range(prompt)], new, block_length=block, method=parts(part), rule=RuleOptions(threshold=0.4)
    )
    cached, steps, _ = decode(model, asked, block)
    assert MASK not in cached
    assert (cached, steps) == decode(model, asked, block, use_cache=False)[:2]


def test_a_part_as_long_as_its_block_is_the_block() -> None:
    """Without a shift; a shifted head takes the first token of a block from the block before."""
    asked = {"block_length": 8, "rule": RuleOptions(threshold=0.4)}
    model = network()
    whole = decode(model, request([1, 2, 3], 18, **asked))[:2]
    assert decode(model, request([1, 2, 3], 18, method=parts(8), **asked))[:2] == whole


@torch.inference_mode()
def test_a_shifted_block_begins_with_the_token_of_the_block_before() -> None:
    model = network(shift=True)
    asked = request([1, 2, 3], 21, block_length=8, method=parts(4))
    ids, _, _ = decode(model, asked)
    for start in (8, 16):
        mask = plain_mask(Layout("block_causal", 8), start, torch.device("cpu"))
        raw = model.head(model.hidden(torch.tensor([ids[:start]]), None, mask))[0, -1]
        raw[MASK] = -torch.inf
        assert ids[start] == int(raw.argmax())


def test_parts_are_written_one_after_another() -> None:
    asked = request([1], 15, block_length=8, method=parts(4), rule=RuleOptions("random"), max_denoising_steps=3)
    decoder = Decoder(TorchBackend(network()), Layout("block_causal", 8), [asked])
    written = [{p // 4 for p in frame.positions} for made in decoder.run() for frame in made]
    assert all(len(part) == 1 for part in written)
    assert [min(part) for part in written] == sorted(min(part) for part in written)


def test_a_dual_cache_reads_a_part_alone() -> None:
    """Which columns are fed, as Fast-dLLM v2 recorded them (`replace_position`)."""
    cases = json.loads((FIXTURES / "fast_dllm_v2" / "generate.json").read_text())["cases"]
    case = next(c for c in cases if c["name"] == "block_cache_threshold0.9")
    model = DiffusionLM.from_pretrained(FIXTURES / "fast_dllm_v2").model
    spy, prompt, block = Spy(model), case["prompt_ids"][0], case["block_size"]
    spy.config = type(spy.config)(**{**vars(spy.config), "mask_token_id": case["mask_id"]})
    new = len(case["final_ids"][0]) - len(prompt)
    asked = Request(
        prompt + [case["mask_id"]] * new, [True] * len(prompt) + [False] * new, block_length=block, cache="dual",
        method=parts(case["small_block_size"]),
        rule=RuleOptions(threshold=case["threshold"], convention=Convention(strict=True)),
    )  # fmt: skip
    list(Decoder(spy, Layout("block_causal", block), [asked]).run())
    theirs = case["forwards"][1:]  # the first reads the prompt only; ours reads it with the first step
    assert len(spy.feeds) == len(theirs)
    for feed, forward in zip(spy.feeds[1:], theirs[1:], strict=True):
        # a block's first forward reads the block before as well, to keep it
        width = len(forward["input_ids"])
        assert feed.ids[0, -width:].tolist() == forward["input_ids"]
        if forward["replace_position"] is not None:
            start = forward["past_len"] + forward["replace_position"]
            assert feed.position[0].tolist() == list(range(start, start + width))
            assert feed.cached_after[0].tolist() == [start + width, forward["past_len"] + block]


@settings(max_examples=10)
@given(st.integers(0, 20), st.integers(1, 24), st.integers(1, 8), st.booleans(), st.integers(0, 9))
def test_a_dual_cache_of_one_layer_is_exact(prompt: int, new: int, part: int, shift: bool, seed: int) -> None:
    """With one layer keys are of a token alone, so those of a block's other parts are never old."""
    model = network(shift, seed, layers=1)
    rule, ids = RuleOptions(threshold=0.3), [i % 9 for i in range(prompt)]
    asked = request(ids, new, block_length=8, method=parts(part), rule=rule)
    assert decode(model, asked)[:2] == decode(model, replace(asked, cache="dual"))[:2]


@settings(max_examples=10)
@given(st.integers(0, 20), st.integers(1, 20), st.integers(1, 9), st.integers(0, 9))
def test_blocks_from_the_prompt(prompt: int, new: int, block: int, seed: int) -> None:
    """The first block has only masks, and where the prompt is whole blocks all is as with absolute ones."""
    model = network(seed=seed, block_length=block)
    options: dict[str, Any] = {"block_length": block, "max_denoising_steps": 2}
    asked = request([i % 9 for i in range(prompt)], new, rule=RuleOptions("quota", FROM_PROMPT), **options)
    ids, steps, spy = decode(model, asked, block)
    assert (ids, steps) == decode(model, asked, block, use_cache=False)[:2]
    assert len(spy.feeds[0].target) == min(block, new)
    if prompt % block == 0:
        plain = request([i % 9 for i in range(prompt)], new, rule=RuleOptions("quota"), **options)
        assert (ids, steps) == decode(model, plain, block)[:2]


def test_rows_with_their_own_offsets_do_not_touch() -> None:
    model = network()
    options: dict[str, Any] = {"block_length": 8, "rule": RuleOptions(threshold=0.4, convention=FROM_PROMPT)}
    asked = [request(list(range(n)), 13, **options) for n in (3, 8, 5)]
    together = Decoder(TorchBackend(model), Layout("block_causal", 8), asked)
    list(together.run())
    for row, one in zip(together.rows.values(), asked, strict=True):
        assert (row.canvas.ids[0].tolist(), row.forwards) == decode(model, one)[:2]


@settings(max_examples=10)
@given(st.integers(0, 9), st.integers(1, 20), st.floats(0, 0.9), st.integers(0, 5), st.integers(0, 9))
def test_editing_and_the_cache(prompt: int, new: int, editing: float, posts: int, seed: int) -> None:
    """What was fed last stays in the cache where nothing changed any more."""
    model = network(seed=seed)
    rule = RuleOptions("token_edit", threshold=0.3)
    method = edit.Options(editing_threshold=editing, max_post_steps=posts)
    asked = request([i % 9 for i in range(prompt)], new, block_length=8, rule=rule, method=method)
    ids, steps, _ = decode(model, asked)
    assert MASK not in ids
    assert (ids, steps) == decode(model, asked, use_cache=False)[:2]
    blocks = -(-(prompt + new) // 8)
    assert steps <= new + blocks * posts


def test_no_edits_is_the_threshold_rule() -> None:
    model, convention = network(), Convention(strict=True, zero_edits=False)
    plain = request([1, 2], 20, block_length=8, rule=RuleOptions("threshold", convention, threshold=0.4))
    rule = RuleOptions("token_edit", convention, threshold=0.4)
    off = edit.Options(editing_threshold=0.0, max_post_steps=0)
    assert decode(model, plain)[:2] == decode(model, request([1, 2], 20, block_length=8, rule=rule, method=off))[:2]
    rule = RuleOptions("token_edit", Convention(strict=True), threshold=0.4)
    on = edit.Options(editing_threshold=0.0, max_post_steps=3)
    assert decode(model, request([1, 2], 20, block_length=8, rule=rule, method=on))[0] != decode(model, plain)[0]


def test_a_text_ends_with_its_block_or_at_once() -> None:
    model = network()
    ids, steps, _ = decode(model, request([1], 31, block_length=8))
    whole = RuleOptions(convention=Convention(ending="block"))
    for eos in set(ids[1:]):
        place = ids.index(eos, 1)
        at_once = decode(model, request([1], 31, block_length=8), eos_ids=frozenset([eos]))
        block = decode(model, request([1], 31, block_length=8, rule=whole), eos_ids=frozenset([eos]))
        end = (place // 8 + 1) * 8
        assert block[0] == ids[:end] + [MASK] * (32 - end)
        assert at_once[0][: place + 1] == ids[: place + 1]
        assert at_once[1] <= block[1] <= steps


def test_a_schedule_of_whole_blocks_does_not_count_masks() -> None:
    """SDAR: two steps of a block of 8 write 4 each, and one step writes all where the prompt leaves 4 or fewer."""
    for prompt, steps in ((8, 2), (4, 1), (3, 2)):
        asked = request(
            list(range(prompt)), 8 - prompt % 8, block_length=8, max_denoising_steps=2,
            rule=RuleOptions("quota", schedule="block"),
        )  # fmt: skip
        assert decode(network(), asked)[1] == steps


def test_strict_thresholds() -> None:
    """Equal is enough, unless strict: a threshold of a confidence that occurs."""
    model = network()
    decoder = Decoder(TorchBackend(model), Layout("block_causal", 8), [request([1], 7, block_length=8)])
    sure = np.sort([c for frame in decoder.step() for c in frame.confidences])
    second = request([1], 7, block_length=8, rule=RuleOptions("quota"), max_denoising_steps=1)
    all_of_them = next(iter(Decoder(TorchBackend(model), Layout("block_causal", 8), [second]).run()))[0]
    level = sorted(all_of_them.confidences)[-2]
    assert level < sure[-1]
    for strict, count in ((False, 2), (True, 1)):
        rule = RuleOptions(threshold=level, convention=Convention(strict=strict))
        one = Decoder(TorchBackend(model), Layout("block_causal", 8), [request([1], 7, block_length=8, rule=rule)])
        assert len(one.step()[0].positions) == count


@settings(max_examples=10)
@given(
    st.integers(9, 40), st.integers(1, 12), st.integers(1, 20), st.booleans(), st.sampled_from(["", "parts", "edits"])
)
def test_a_prompt_read_in_parts_changes_nothing(prompt: int, chunk: int, new: int, own: bool, way: str) -> None:
    """Parts end where blocks do, from wherever they are counted."""
    convention = Convention(blocks_from_prompt=own)
    rule = RuleOptions("token_edit" if way == "edits" else "threshold", convention, threshold=0.4)
    method = {"parts": parts(4), "edits": edit.Options(max_post_steps=2), "": denoise.Options()}[way]
    asked = request([i % 9 for i in range(prompt)], new, block_length=8, rule=rule, method=method)
    model = network(shift=way == "parts")
    whole = Decoder(TorchBackend(model), Layout("block_causal", 8), [asked])
    chunked = Decoder(TorchBackend(model), Layout("block_causal", 8), [replace(asked, prefill_chunk=chunk)])
    for decoder in (whole, chunked):
        list(decoder.run())
    assert chunked.canvas.ids.tolist() == whole.canvas.ids.tolist()
    assert chunked.rows[0].steps == whole.rows[0].steps
    assert chunked.rows[0].prefills >= (prompt > 16 + chunk)
