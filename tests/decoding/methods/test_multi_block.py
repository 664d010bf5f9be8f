"""Several active blocks: one is the existing method; several are what a plain simulation of the rules writes."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.attention import plain_mask
from unmask.backends.torch import TorchBackend
from unmask.decoding.convention import CONVENTIONS
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import DecodingDefaults, denoise, multi_block
from unmask.decoding.methods.multi_block import joins, obeying
from unmask.decoding.request import MethodOptions, Request
from unmask.decoding.rules import RuleOptions
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.lm import DiffusionLM
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

VOCAB, MASK, EOS = 17, 16, 15
LAYOUTS = ("bidirectional", "block_causal")
BLOCK = 4


def network(layout: str, shift: bool, seed: int = 0) -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=48,
        max_length=64,
        layout=layout,  # type: ignore[arg-type]
        block_length=BLOCK if layout == "block_causal" else 0,
        shift=shift,
        mask_token_id=MASK,
        pad_token_id=0,
    )
    return Transformer(config).initialise(seed, std=0.4).eval()


NETWORKS = {
    (layout, shift, seed): network(layout, shift, seed)
    for layout, shift, seed in product(LAYOUTS, (False, True), range(3))
}


def decode(
    model: Transformer,
    method: MethodOptions,
    prompts: list[list[int]],
    new: int,
    use_cache: bool = True,
    eos: int = EOS,
    **options: Any,
) -> tuple[list[list[int]], list[Any]]:
    kind = model.config.layout
    layout = Layout(kind, BLOCK if kind == "block_causal" else 1)
    requests = [
        Request(
            [*prompt, *[MASK] * new],
            [*[True] * len(prompt), *[False] * new],
            method=method,
            block_length=BLOCK,
            seed=number,
            **options,
        )
        for number, prompt in enumerate(prompts)
    ]
    decoder = Decoder(TorchBackend(model), layout, requests, frozenset({eos}), use_cache)
    frames = [frame for step in decoder.run() for frame in step]
    return [row.canvas.ids[0].tolist() for row in decoder.rows.values()], frames


prompts = st.lists(st.integers(0, EOS - 1), min_size=1, max_size=7)
thresholds = st.sampled_from([0.15, 0.3, 0.5, 0.8, 0.95])
networks = st.tuples(st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 2))


@given(
    networks,
    prompts,
    st.integers(1, 18),
    st.sampled_from(["threshold", "factor", "entropy_bound", "prefix", "nearest"]),
    thresholds,
    st.sampled_from(["auto", "prefix", "dual"]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(["unmask", "sdar", "dream", "dllm"]),
)
def test_one_active_block_is_denoise(
    kind: tuple[str, bool, int],
    prompt: list[int],
    new: int,
    rule: Any,
    threshold: float,
    cache: Any,
    steps: int | None,
    convention: str,
) -> None:
    cache = cache if kind[0] == "bidirectional" else "auto"
    options = {
        "rule": RuleOptions(rule, CONVENTIONS[convention], threshold=threshold, entropy_bound=2 * threshold),
        "cache": cache,
        "max_denoising_steps": steps,
    }
    one = multi_block.Options(buffer_size=1)
    assert decode(NETWORKS[kind], one, [prompt], new, **options) == decode(
        NETWORKS[kind], denoise.Options(), [prompt], new, **options
    )


def simulate(
    model: Transformer, prompt: list[int], new: int, options: multi_block.Options, threshold: float, eos: int = EOS
) -> tuple[list[int], int, int]:
    """The rules step by step on whole canvases without a cache; the canvas, the forwards, and how often an end of text
    kept a block out."""
    config = model.config
    ids = [*prompt, *[MASK] * new]
    first = len(prompt)
    causal = config.layout == "block_causal"
    begin = first // BLOCK * BLOCK if causal else first
    blocks = [range(low, min(low + BLOCK, len(ids))) for low in range(begin, len(ids), BLOCK)]
    mask = plain_mask(Layout(config.layout, BLOCK if causal else 1), len(ids), torch.device("cpu"), ())
    active = 1
    forwards = 0
    kept_out = 0
    while True:
        written = ids[first : ids.index(MASK)] if MASK in ids else ids[first:]
        if MASK not in ids or eos in written:
            return ids, forwards, kept_out
        lead = next(n for n, block in enumerate(blocks) if any(ids[i] == MASK for i in block))
        active = max(active, lead + 1)

        def share(n: int) -> float:
            free = [i for i in blocks[n] if i >= first]
            return sum(ids[i] != MASK for i in free) / max(len(free), 1)

        shown = [i for n in range(lead, active) for i in blocks[n] if i >= first]
        wanted = active - lead < options.buffer_size and share(active - 1) >= options.block_add_threshold
        if active < len(blocks) and wanted:
            over = eos in [ids[i] for i in shown]
            active += not over
            kept_out += over
        with torch.no_grad():
            logits = model(torch.tensor([ids]), None, mask)[0].double()
        logits[:, MASK] = -torch.inf
        p = logits.softmax(-1)
        sure, token = p.max(-1).values.tolist(), p.argmax(-1).tolist()
        forwards += 1
        chosen: list[int] = []
        for n in range(lead, active):
            open_here = [i for i in blocks[n] if ids[i] == MASK]
            obeys = n == lead or share(n - 1) >= options.decoded_token_threshold
            kept = [i for i in open_here if sure[i] >= (threshold if obeys else options.skip_threshold)]
            if obeys and open_here and not kept:
                kept = [max(open_here, key=lambda i: sure[i])]
            chosen += kept
        for i in chosen:
            ids[i] = token[i]


options = st.builds(
    multi_block.Options,
    buffer_size=st.integers(2, 4),
    block_add_threshold=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]),
    decoded_token_threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    skip_threshold=st.sampled_from([0.2, 0.3, 0.5, 0.7, 0.95]),
)


@given(networks, prompts, st.integers(1, 22), options, thresholds)
def test_several_blocks_agree_with_a_simulation(
    kind: tuple[str, bool, int], prompt: list[int], new: int, options: multi_block.Options, threshold: float
) -> None:
    rule = RuleOptions("threshold", threshold=threshold)
    model = NETWORKS[kind]
    expected, forwards, _ = simulate(model, prompt, new, options, threshold)
    for use_cache in (True, False):
        ids, frames = decode(model, options, [prompt], new, use_cache, rule=rule)
        assert ids[0] == expected
        assert max(frame.step for frame in frames) == forwards


def test_no_block_joins_behind_an_end_of_text() -> None:
    options = multi_block.Options(buffer_size=3, block_add_threshold=0.0, skip_threshold=0.3)
    kept_out = 0
    for kind in (("bidirectional", False, 0), ("block_causal", True, 1)):
        for eos in range(VOCAB - 1):
            expected, forwards, count = simulate(NETWORKS[kind], [1, 3], 24, options, 0.8, eos)
            ids, frames = decode(
                NETWORKS[kind], options, [[1, 3]], 24, eos=eos, rule=RuleOptions("threshold", threshold=0.8)
            )
            assert ids[0] == expected
            assert frames[-1].step == forwards
            kept_out += count
    assert kept_out > 0


def test_the_simulation_sees_what_it_should() -> None:
    """Blocks do write ahead, fewer forwards come of it, and other ids may."""
    rule = RuleOptions("threshold", threshold=0.5)
    fewer = different = 0
    for kind, model in NETWORKS.items():
        for low in range(3):
            one = decode(model, denoise.Options(), [[low, 3]], 24, rule=rule)
            several = multi_block.Options(buffer_size=3, skip_threshold=0.5)
            two = decode(model, several, [[low, 3]], 24, rule=rule)
            fewer += two[1][-1].step < one[1][-1].step
            different += two[0] != one[0]
            assert kind
    assert fewer > 10
    assert different > 3


@given(networks, st.lists(prompts, min_size=2, max_size=3), st.integers(5, 18), options, thresholds, st.booleans())
def test_company_changes_nothing(
    kind: tuple[str, bool, int],
    several: list[list[int]],
    new: int,
    options: multi_block.Options,
    threshold: float,
    plain_too: bool,
) -> None:
    rule = RuleOptions("threshold", threshold=threshold)
    together, _ = decode(NETWORKS[kind], options, several, new, rule=rule)
    alone = [decode(NETWORKS[kind], options, [prompt], new, rule=rule)[0][0] for prompt in several]
    assert together == alone


@given(networks, prompts, st.integers(5, 18), st.sampled_from(["prefix", "dual"]), options, thresholds)
def test_an_approximate_cache_that_is_always_made_anew_is_none(
    kind: tuple[str, bool, int], prompt: list[int], new: int, cache: Any, options: multi_block.Options, threshold: float
) -> None:
    model = NETWORKS["bidirectional", *kind[1:]]
    rule = RuleOptions("threshold", threshold=threshold)
    cached = decode(model, options, [prompt], new, rule=rule, cache=cache, cache_refresh=1)
    assert cached == decode(model, options, [prompt], new, rule=rule)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_finished_block_is_read_again_for_some_steps(cache: Any) -> None:
    model = NETWORKS["bidirectional", False, 0]
    fed: dict[int, list[list[int]]] = {}
    for delay in (0, 2):
        backend = TorchBackend(model)
        forward = backend.forward
        steps = fed[delay] = []

        def spied(feed: Any, forward: Any = forward, steps: list[list[int]] = steps) -> Any:
            steps.append(feed.position[0].tolist())
            return forward(feed)

        backend.forward = spied  # type: ignore[method-assign]
        options = multi_block.Options(buffer_size=2, skip_threshold=1.0, cache_delay_iter=delay)
        request = Request(
            [1, 2, *[MASK] * 12],
            [True] * 2 + [False] * 12,
            method=options,
            block_length=BLOCK,
            rule=RuleOptions("threshold", threshold=1.0),
            cache=cache,
        )
        list(Decoder(backend, Layout("bidirectional"), [request]).run())
    whole = list(range(14))
    assert [len(step) for step in fed[0]].count(14) == 3
    for steps in fed.values():
        assert [n for n, step in enumerate(steps) if step == whole] == [0, 4, 8]
    end = 14 if cache == "prefix" else 10
    assert fed[0][5:8] == [list(range(6, 14))] * 3
    assert fed[2][5] == list(range(2, 14))  # the step after the whole reading is the second of the block
    assert fed[2][6:8] == [list(range(6, 14))] * 2
    assert fed[0][1] == list(range(2, end if cache == "prefix" else 10))


def test_rules_by_enumeration() -> None:
    levels = [0.0, 0.25, 0.5, 1.0]
    for count in range(1, 4):
        for shares in product(levels, repeat=count):
            for threshold in levels:
                obey = obeying(shares, threshold)
                assert obey[0]
                assert len(obey) == count
                for n in range(1, count):
                    assert obey[n] == (shares[n - 1] >= threshold)
                for most in range(1, 5):
                    assert joins(shares, most, threshold) == (count < most and shares[-1] >= threshold)


def test_who_takes_it() -> None:
    lm = DiffusionLM(NETWORKS["block_causal", False, 0], None, DecodingDefaults(threshold=0.5))
    one = lm.generate([1, 2], 16)
    assert lm.generate([1, 2], 16, buffer_size=1).token_ids == one.token_ids
    several = lm.generate([1, 2], 16, buffer_size=3, block_add_threshold=0.0, skip_threshold=0.3)
    assert len(several.token_ids) == 16
    assert several.steps < one.steps
    assert several.tokens_per_step == 16 / several.steps
    ways = lm.capabilities()["modes"]["diffusion"]
    assert {way["rule"] for way in ways if way["method"] == "multi_block"} >= {"threshold", "factor", "entropy_bound"}
    for wrong, message in (
        ({"rule": "quota"}, "needs a rule that judges"),
        ({"rule": "random"}, "needs a rule that judges"),
        ({"remask_budget": 2}, "remask_budget"),
        ({"cache_delay_iter": 2}, "cache_delay_iter"),
        ({"sub_block_length": 2}, "buffer_size"),
    ):
        with pytest.raises(UnmaskError, match=message):
            lm.generate([1, 2], 16, buffer_size=2, **wrong)
    with pytest.raises(UnmaskError, match="skip_threshold"):
        lm.generate([1, 2], 16, skip_threshold=0.5)
    full = DiffusionLM(NETWORKS["bidirectional", False, 0], None, DecodingDefaults(threshold=0.5))
    with pytest.raises(UnmaskError, match="give block_length too"):
        full.generate([1, 2], 16, buffer_size=2)
    assert len(full.generate([1, 2], 16, buffer_size=2, block_length=4, cache="dual").token_ids) == 16
    assert np.isfinite(full.generate([1, 2], 16, buffer_size=2, block_length=4).frames[0].confidences).all()
