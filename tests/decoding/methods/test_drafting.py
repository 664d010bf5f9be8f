"""The loop in layout `drafts`: mode ar is the base, verify gives what ar gives, diffusion writes it all."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.attention import CausalMask
from unmask.backends.torch import TorchBackend, TorchLogits
from unmask.canvas import Array, Frame
from unmask.decoding.feed import Columns, Feed
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import draft
from unmask.decoding.request import Request
from unmask.decoding.rules import RULES, RuleOptions
from unmask.layout import Coordinates, Layout
from unmask.models.transformer import Transformer

Drafting = Callable[..., tuple[Transformer, Transformer]]
MASK, DRAFTS = 8, Layout("drafts")
PROMPTS = [[1, 2, 3], [0], [5, 5, 1, 0, 7, 2, 4]]


def request(prompt: list[int], new: int, mode: str, mask: int = MASK, **options: Any) -> Request:
    given_part = [True] * len(prompt) + [False] * new
    if mode == "ar":
        options = {**options, "block_length": 1, "rule": RuleOptions("sequential")}
    if mode == "verify":
        options["method"] = draft.Options(lookup=0)  # only what the adapter drafts
    return Request(prompt + [mask] * new, given_part, **options)


class Priced(TorchBackend):
    """A backend whose passes are said to take 1 and `price` more for every further column."""

    def __init__(self, network: Transformer, price: float) -> None:
        super().__init__(network)
        self.price = price
        self.fed = list[int]()

    def pass_costs(self) -> dict[int, float]:  # type: ignore[override]
        return {1: 1.0, 101: 1.0 + 100 * self.price}

    def forward(self, feed: Feed) -> TorchLogits:
        self.fed.append(int((feed.document == 0).sum()))
        return super().forward(feed)


def decode(
    network: Transformer, requests: list[Request], layout: Layout = DRAFTS, price: float = 0.0, **options: Any
) -> tuple[Decoder, list[Frame]]:
    decoder = Decoder(Priced(network, price), layout, requests, **options)
    first = decoder.canvas
    frames = [frame for step in decoder.run() for frame in step]
    assert (first.replay(frames).ids == decoder.canvas.ids).all()
    assert (decoder.canvas.ids[first.frozen] == first.ids[first.frozen]).all()
    return decoder, frames


def written(decoder: Decoder, row: int = 0) -> list[int]:
    return decoder.canvas.ids[row, : len(decoder.requests[row].ids)].tolist()


def up_to(ids: list[int], prompt: int, ends: frozenset[int]) -> list[int]:
    """A canvas up to the first end of text that was written."""
    stop = next((i + 1 for i, token in enumerate(ids) if i >= prompt and token in ends), len(ids))
    return ids[:stop]


@pytest.mark.parametrize("use_cache", [True, False])
def test_ar_is_the_base_decoded_as_a_causal_model(drafting: Drafting, use_cache: bool) -> None:
    for seed in range(2):
        base, network = drafting(seed)
        for temperature in (0.0, 0.8):
            asked = [request(p, 8 + len(p), "ar", temperature=temperature, seed=5) for p in PROMPTS]
            plain, plain_frames = decode(base, asked, Layout("causal"), use_cache=use_cache)
            adapted, frames = decode(network, asked, use_cache=use_cache)
            assert (plain.canvas.ids == adapted.canvas.ids).all()
            assert plain.steps == adapted.steps == [8 + len(p) for p in PROMPTS]
            for one, other in zip(plain_frames, frames, strict=True):
                assert (one.step, one.positions, one.tokens, one.row) == (
                    other.step, other.positions, other.tokens, other.row,
                )  # fmt: skip
                np.testing.assert_allclose(one.confidences, other.confidences, atol=1e-6)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("block_length", [2, 3, 5])
def test_verify_gives_the_ids_of_ar_in_fewer_steps(drafting: Drafting, block_length: int, use_cache: bool) -> None:
    """Requests of different length, all in one batch beside one that is decoded in mode diffusion."""
    kept: Counter[int] = Counter()
    saved = 0
    for seed in range(4):
        _, network = drafting(seed)
        asked = [request(p, 20 - len(p) + seed, "verify", block_length=block_length) for p in PROMPTS]
        slow, _ = decode(network, [request(p, 20 - len(p) + seed, "ar") for p in PROMPTS], use_cache=use_cache)
        other = request([3, 3], 9, "diffusion", block_length=4, rule=RuleOptions("quota"), max_denoising_steps=3)
        fast, frames = decode(network, [asked[0], other, *asked[1:]], use_cache=use_cache)
        assert MASK not in written(fast, 1)
        assert fast.accepted[1] == []
        for row, mine in enumerate((0, 2, 3)):
            assert written(fast, mine) == written(slow, row)
            assert fast.steps[mine] <= slow.steps[row]
            assert fast.steps[mine] == len(fast.accepted[mine])
            # each step writes the drafts that held and one token more, from left to right, if it fits
            made = [f.positions for f in frames if f.row == mine]
            positions = list(range(len(PROMPTS[row]), len(written(fast, mine))))
            for n in fast.accepted[mine]:
                assert made.pop(0) == tuple(positions[: n + 1])
                positions = positions[n + 1 :]
            assert not positions
            assert max(fast.accepted[mine]) <= block_length - 1
            saved += slow.steps[row] - fast.steps[mine]
            kept.update(fast.accepted[mine][1:-1])
    assert saved > 0
    assert set(kept) == set(range(block_length))  # every outcome of a check has happened


@pytest.mark.parametrize("new", range(1, 8))
def test_verify_ends_where_the_canvas_does(drafting: Drafting, new: int) -> None:
    """Also with blocks far longer than what is left of the canvas and of what the network reads."""
    for seed in range(4):
        _, network = drafting(seed, max_length=new + 3)
        for block in (2, 5, 30):
            fast, _ = decode(network, [request([1, 2, 3], new, "verify", block_length=block)])
            slow, _ = decode(network, [request([1, 2, 3], new, "ar")])
            assert written(fast) == written(slow)
            assert fast.steps[0] <= slow.steps[0] == new


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_end_of_text_inside_drafts_ends_the_text_where_ar_ends_it(drafting: Drafting, use_cache: bool) -> None:
    early = inside = 0
    for seed in range(2):
        _, network = drafting(seed)
        for end in range(8):
            ends = frozenset([end])
            asked = [request(p, 12, "verify", block_length=5) for p in PROMPTS]
            fast, _ = decode(network, asked, eos_ids=ends, use_cache=use_cache)
            slow, _ = decode(network, [request(p, 12, "ar") for p in PROMPTS], eos_ids=ends, use_cache=use_cache)
            for row, prompt in enumerate(PROMPTS):
                text = up_to(written(slow, row), len(prompt), ends)
                assert up_to(written(fast, row), len(prompt), ends) == text
                assert fast.steps[row] <= slow.steps[row]
                last = fast.accepted[row][-1]
                made = written(fast, row)[: written(fast, row).index(MASK)] if MASK in written(fast, row) else []
                early += bool(made)
                inside += bool(made) and last > 0 and end in made[-1 - last : -1]
    assert early > 10  # texts that ended before their canvas
    assert inside > 0  # ... with a draft


def checked(prompt: list[int], new: int, threshold: float, **options: Any) -> Request:
    return request(prompt, new, "diffusion", method=draft.Options(lookup=0, tolerance=threshold), **options)


@pytest.mark.parametrize("block_length", [2, 4])
def test_drafts_that_are_likely_enough_are_kept(drafting: Drafting, block_length: int) -> None:
    """Threshold 1 writes what ar writes, 0 keeps what is fed, and in between each kept draft has its odds."""
    in_between = 0
    for seed in range(3):
        _, network = drafting(seed)
        slow, _ = decode(network, [request(p, 12, "ar") for p in PROMPTS])
        strict, _ = decode(network, [checked(p, 12, 1.0, block_length=block_length) for p in PROMPTS])
        assert (slow.canvas.ids == strict.canvas.ids).all()
        loose, _ = decode(network, [checked(p, 12, 0.0, block_length=block_length) for p in PROMPTS])
        assert sum(loose.steps) < sum(strict.steps)
        asked = [checked(p, 12, 0.3, block_length=block_length) for p in PROMPTS]
        some, frames = decode(network, asked)
        again, _ = decode(network, asked, use_cache=False)
        assert (some.canvas.ids == again.canvas.ids).all()
        for row, prompt in enumerate(PROMPTS):
            ids, drafted = written(some, row), []
            for frame, kept in zip((f for f in frames if f.row == row), some.accepted[row], strict=True):
                drafted += frame.positions[:kept]  # the canvas may end with a draft
            with torch.inference_mode():
                clean = network.hidden(torch.tensor([ids]), None, CausalMask())
                p = network.head(clean)[0].index_fill(1, torch.tensor([MASK]), -torch.inf).softmax(-1)
            for i in range(len(prompt), len(ids)):
                odds = float(p[i - 1, ids[i]] / p[i - 1].max())
                assert odds >= (0.3 if i in drafted else 1.0) - 1e-5
                in_between += odds < 1 - 1e-3
    assert in_between > 0


def test_stop_is_asked_with_what_verify_has_finished(drafting: Drafting) -> None:
    _, network = drafting()
    seen: list[list[int]] = []

    def stop(ids: list[int]) -> bool:
        seen.append(ids)
        return len(ids) >= 6

    fast, _ = decode(network, [request([1, 2], 20, "verify", block_length=4, stop=stop)])
    slow, _ = decode(network, [request([1, 2], 20, "ar")])
    assert seen[0] == []
    assert 6 <= len(seen[-1]) <= 9
    assert seen[-1] == written(slow)[2 : 2 + len(seen[-1])]
    assert written(fast)[2 + len(seen[-1]) :] == [MASK] * (20 - len(seen[-1]))


options_of_requests = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["ar", "verify", "diffusion"]),
        "block_length": st.integers(2, 7),
        "temperature": st.sampled_from([0.0, 0.0, 0.7, 1.3]),
        "top_k": st.sampled_from([0, 3]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "seed": st.integers(0, 9),
        "rule": st.builds(
            RuleOptions, st.sampled_from(list(RULES)), threshold=st.just(0.3), entropy_bound=st.just(1.0)
        ),
        "max_denoising_steps": st.sampled_from([None, 1, 2, 3]),
        "remask_budget": st.sampled_from([0, 0, 3]),
    }
)
prompts = st.lists(st.integers(0, 7), min_size=1, max_size=6)
requests_to_draft = st.one_of(
    st.builds(
        lambda prompt, new, options: request(prompt, new, **options), prompts, st.integers(1, 10), options_of_requests
    ),
    st.builds(
        lambda prompt, new, block, warm: checked(prompt, new, 0.3, block_length=block, temperature=warm),
        prompts, st.integers(1, 10), st.integers(2, 4), st.sampled_from([0.0, 0.8]),
    ),
)  # fmt: skip


@settings(max_examples=20)
@given(st.lists(requests_to_draft, min_size=2, max_size=4), st.integers(0, 2), st.sampled_from([0.0, 0.05, 0.3]))
def test_company_and_caches_change_nothing(
    drafting: Drafting, requests: list[Request], seed: int, price: float
) -> None:
    """Law 7 for any modes and options in one batch, and of drafts by likelihood whatever columns cost; nothing is left
    masked and no step writes nothing. What is fed in mode verify does depend on company; its ids do not."""
    _, network = drafting(seed, chain=6 * (seed % 2))
    together, frames = decode(network, requests, price=price)
    plain, plain_frames = decode(network, requests, use_cache=False)
    for row, asked in enumerate(requests):
        alone, own = decode(network, [asked])
        assert MASK not in written(alone)
        assert written(together, row) == written(plain, row) == written(alone)
        assert together.steps[row] <= asked.given.count(False)
        if isinstance(asked.method, draft.Options) and (asked.method.tolerance is None or asked.temperature):
            continue
        assert together.steps[row] == plain.steps[row] == alone.steps[0]
        assert together.accepted[row] == plain.accepted[row]
        mine = [(f.step, f.positions, f.tokens, f.kinds) for f in frames if f.row == row]
        assert mine == [(f.step, f.positions, f.tokens, f.kinds) for f in own]
        assert mine == [(f.step, f.positions, f.tokens, f.kinds) for f in plain_frames if f.row == row]
        assert [step for step, *_ in mine] == list(range(1, alone.steps[0] + 1))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_diffusion_commits_the_first_open_position_at_every_step(
    drafting: Drafting, rule: str, use_cache: bool
) -> None:
    out_of_order = 0
    for seed, temperature in ((0, 0.0), (1, 0.0), (2, 1.0)):
        _, network = drafting(seed)
        options = RuleOptions(rule, threshold=0.35, factor=2.0, entropy_bound=2.5)  # type: ignore[arg-type]
        asked = [
            request(p, 15, "diffusion", rule=options, block_length=6, max_denoising_steps=3, temperature=temperature)
            for p in PROMPTS
        ]
        decoder, frames = decode(network, asked, use_cache=use_cache)
        slow, _ = decode(network, [request(p, 15, "ar") for p in PROMPTS], use_cache=use_cache)
        for row, prompt in enumerate(PROMPTS):
            assert MASK not in written(decoder, row)
            left = list(range(len(prompt), len(prompt) + 15))
            for frame in (f for f in frames if f.row == row):
                assert left[0] in frame.positions  # what no later step could know better
                assert max(frame.positions) < left[0] + 6
                left = [p for p in left if p not in frame.positions]
                out_of_order += bool(left) and left[0] < max(frame.positions)
            assert not left
            if temperature == 0:  # the base alone decides the first token
                assert written(decoder, row)[len(prompt)] == written(slow, row)[len(prompt)]
    assert out_of_order > 0 or rule in ("sequential", "prefix", "prefix_entropy", "nearest")


def test_blocks_of_one_are_ar_in_every_mode_but_verify(drafting: Drafting) -> None:
    _, network = drafting()
    asked = [request(p, 10, "diffusion", block_length=1, rule=RuleOptions("threshold")) for p in PROMPTS]
    one, _ = decode(network, asked)
    ar, _ = decode(network, [request(p, 10, "ar") for p in PROMPTS])
    assert (one.canvas.ids == ar.canvas.ids).all()


# --- against the same written out, one request and one forward at a time --------------------------------------


@torch.inference_mode()
def of_text(base: Transformer, text: list[int]) -> torch.Tensor:
    """The base's distributions of what follows every token of a text, [T, V]."""
    logits = base.head(base.hidden(torch.tensor([text]), None, CausalMask()))[0].double()
    logits[:, MASK] = -torch.inf
    return logits.softmax(-1)


@torch.inference_mode()
def of_group(network: Transformer, text: list[int], slots: list[int]) -> torch.Tensor:
    """Distributions of what follows every slot of a group that hangs on a text's end, [K, V]."""
    logits = network.head(states_of_group(network, text, slots)).double()
    assert network.draft_vocabulary is not None
    proposed = torch.full_like(logits, -torch.inf)
    proposed[:, network.draft_vocabulary] = logits[:, network.draft_vocabulary]
    return proposed.softmax(-1)


@torch.inference_mode()
def states_of_group(network: Transformer, text: list[int], slots: list[int]) -> torch.Tensor:
    """Final states of the slots of a group that hangs on a text's end, [K, D]."""
    ids = torch.tensor([text + slots])
    position = torch.arange(ids.shape[1])[None]
    anchor = torch.where(position < len(text), -1, len(text) - 1)
    row = Coordinates.drafts(position, anchor)
    return network.hidden(ids, position, DRAFTS.dense(row, row), gate_BT=anchor >= 0)[0, len(text) :]


@torch.inference_mode()
def told_one_by_one(
    base: Transformer, network: Transformer, text: list[int], sure: int, states: torch.Tensor
) -> list[int]:
    """Drafts after `text` and the base's `sure` token, of slots' states [K, D] that saw the text alone: each slot is
    told the token before it and the state that this was chosen by."""
    before = base.hidden(torch.tensor([text]), None, CausalMask())[0, -1]
    drafts, known = list[int](), sure
    for state in states:
        if network.chain is not None:
            state = network.chain(state, before, network.embedding.weight[known])
        assert network.draft_vocabulary is not None
        scores = network.head.weight[network.draft_vocabulary] @ state
        known, before = int(network.draft_vocabulary[scores.argmax()]), state
        drafts.append(known)
    return drafts


@pytest.mark.parametrize("chain", [0, 6])
@pytest.mark.parametrize("block_length", [2, 4, 6])
def test_drafts_are_those_of_the_group_that_saw_the_text_before_the_sure_token(
    drafting: Drafting, block_length: int, chain: int
) -> None:
    for seed in range(3):
        base, network = drafting(seed, chain=chain)
        network.draft_vocabulary = torch.tensor([0, 2, 3, 5, 6])
        for prompt in PROMPTS:
            text, length, drafts, accepted = list(prompt), len(prompt) + 14, [], []
            while len(text) < length:
                best = of_text(base, text + drafts)[len(text) - 1 :].argmax(-1).tolist()
                kept = 0
                while kept < len(drafts) and drafts[kept] == best[kept]:
                    kept += 1
                accepted.append(kept)
                text += drafts[:kept]
                slots = [MASK] * min(block_length - 1, length - len(text) - 1)
                states = states_of_group(network, text, slots)
                drafts = told_one_by_one(base, network, text, best[kept], states) if slots else []
                text.append(best[kept])
            decoder, _ = decode(network, [request(prompt, 14, "verify", block_length=block_length)])
            assert written(decoder) == text[:length]
            assert decoder.accepted[0] == accepted


def test_diffusion_is_one_group_that_shows_what_is_committed(drafting: Drafting) -> None:
    sure = 0.3
    for seed in range(3):
        base, network = drafting(seed)
        network.draft_vocabulary = torch.tensor([0, 2, 3, 5, 6])
        for prompt in PROMPTS:
            length, steps = len(prompt) + 14, []
            canvas = prompt + [MASK] * 14
            while MASK in canvas:
                start = canvas.index(MASK)
                window = range(start + 1, min(start + 5, length))
                first = of_text(base, canvas[:start])[-1]
                commits = {start: (int(first.argmax()), float(first.max()))}
                if window:
                    group = of_group(network, canvas[:start], canvas[start : window[-1]])
                    for target, p in zip(window, group, strict=True):
                        if canvas[target] == MASK and p.max() >= sure:
                            commits[target] = (int(p.argmax()), float(p.max()))
                for position, (token, _) in commits.items():
                    canvas[position] = token
                steps.append(commits)
            options = RuleOptions("threshold", threshold=sure)
            decoder, frames = decode(network, [request(prompt, 14, "diffusion", block_length=5, rule=options)])
            assert written(decoder) == canvas
            assert [dict(zip(f.positions, f.tokens, strict=True)) for f in frames] == [
                {position: token for position, (token, _) in commits.items()} for commits in steps
            ]
            for frame, commits in zip(frames, steps, strict=True):
                np.testing.assert_allclose(frame.confidences, [c for _, (_, c) in sorted(commits.items())], atol=1e-5)


# --- text is the base's alone -------------------------------------------------------------------------------


def both_kinds(generator: np.random.Generator, rows: int) -> Feed:
    """Feeds of text with groups of masks and of tokens hung on it at random anchors."""
    requests = []
    for _ in range(rows):
        text = int(generator.integers(3, 9))
        anchors = np.sort(generator.choice(text, 2, replace=False)).repeat(3)
        own = anchors + np.tile([1, 2, 3], 2)
        slots = np.where(generator.random(6) < 0.5, MASK, generator.integers(0, 8, 6))
        ids = np.concatenate([generator.integers(0, 9, text), slots])  # text may hold a literal mask
        position = np.concatenate([np.arange(text), own])
        column = np.arange(len(ids))
        anchor = np.concatenate([np.full(text, -1), anchors])
        requests.append(Columns(ids, position, anchor, column, position + 1))
    return Feed.of(requests, np.zeros(rows, np.int64))


def states(network: Transformer, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> Array:
    """Final hidden states of a feed as the torch backend computes them, [B, W, D]."""
    seen: list[torch.Tensor] = []
    inner = network.hidden

    def hidden(*arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(inner(*arguments, **options))
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(network, "hidden", hidden)
        backend = TorchBackend(network)
        backend.open(DRAFTS, len(feed.ids), 16, True)
        backend.forward(feed)
    return seen[0].numpy()


def test_drafts_never_influence_text(drafting: Drafting, monkeypatch: pytest.MonkeyPatch) -> None:
    """States of text are the base's to the bit, whatever adapter and drafts stand beside it."""
    generator = np.random.default_rng(0)
    for seed, shape in enumerate(({"rank": 4}, {"rank": 0, "width": 6}, {"rank": 2, "width": 3})):
        base, network = drafting(seed, **shape)
        _, louder = drafting(seed, strength=3.0, **shape)
        feed = both_kinds(generator, 3)
        text = feed.anchor < 0
        text &= feed.document == 0
        expected = states(base, feed, monkeypatch)[text]
        for adapted in (network, louder):
            assert (states(adapted, feed, monkeypatch)[text] == expected).all()
        changed = replace(feed, ids=np.where(feed.anchor < 0, feed.ids, generator.integers(0, 9, feed.ids.shape)))
        assert (changed.ids != feed.ids).any()
        assert (states(network, changed, monkeypatch)[text] == expected).all()
        drafted = states(network, feed, monkeypatch)[~text & (feed.document == 0)]
        assert not np.allclose(drafted, states(base, feed, monkeypatch)[~text & (feed.document == 0)], atol=1e-3)
        # and they are the states of plain causal text
        for row in range(3):
            own = text[row]
            ids = torch.from_numpy(feed.ids[row][own])[None]
            with torch.inference_mode():
                alone = base.hidden(ids, None, CausalMask())[0].numpy()
            np.testing.assert_allclose(states(network, feed, monkeypatch)[row][own], alone, atol=2e-5)


def test_groups_do_not_see_each_other(drafting: Drafting, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    _, network = drafting()
    feed = both_kinds(generator, 2)
    before = states(network, feed, monkeypatch)
    changed = feed.ids.copy()
    for row in range(2):
        groups = np.unique(feed.anchor[row][feed.anchor[row] >= 0])
        second = feed.anchor[row] == groups[1]
        changed[row, second] = (changed[row, second] + 1) % 9
    after = states(network, replace(feed, ids=changed), monkeypatch)
    for row in range(2):
        groups = np.unique(feed.anchor[row][feed.anchor[row] >= 0])
        first, second = (feed.anchor[row] == g for g in groups)
        assert (before[row][first] == after[row][first]).all()
        assert not np.allclose(before[row][second], after[row][second], atol=1e-3)


# --- sampled drafts -----------------------------------------------------------------------------------------


@torch.inference_mode()
def exact_joint(base: Transformer, prompt: list[int], length: int, temperature: float, size: int) -> Array:
    """What ar writes after a prompt, enumerated: the distribution of `length` tokens, [size] * length."""
    joint = np.ones(())
    for n in range(length):
        rows = torch.tensor([[*prompt, *written] for written in itertools.product(range(size), repeat=n)])
        logits = base.head(base.hidden(rows, None, CausalMask()))[:, -1].double()
        logits[:, base.config.mask_token_id] = -torch.inf
        p = (logits / temperature).softmax(-1)[:, :size].numpy()
        joint = joint[..., None] * p.reshape((size,) * (n + 1))
    return joint


def chi_square_limit(freedom: int) -> float:
    """What 999 of 1000 true samples stay below (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_sampled_verify_writes_with_the_bases_distribution(drafting: Drafting) -> None:
    """Thousands of seeds in one batch against ar's own distribution, enumerated; each writes what ar writes."""
    size, samples, prompt, temperature = 5, 2500, [1, 3], 1.0
    base, network = drafting(3, vocab_size=size + 1, mask_token_id=size, chain=6)
    expected = samples * exact_joint(base, prompt, 3, temperature, size)
    asked = request(prompt, 3, "verify", size, block_length=4, temperature=temperature)
    decoder, _ = decode(network, [replace(asked, seed=seed) for seed in range(samples)])
    plain = request(prompt, 3, "ar", size, temperature=temperature)
    slow, _ = decode(network, [replace(plain, seed=seed) for seed in range(200)])
    assert (decoder.canvas.ids[:200] == slow.canvas.ids).all()
    made = decoder.canvas.ids[:, 2:5]
    found = np.zeros((size,) * 3)
    np.add.at(found, tuple(made.T), 1)
    held = Counter(n for accepted in decoder.accepted for n in accepted[1:])
    assert min(held[0], held[1]) > 100  # drafts are kept and refused
    for tokens in (1, 2, 3):
        axes = tuple(range(tokens, 3))
        e, f = expected.sum(axes).ravel(), found.sum(axes).ravel()
        rare = e < 5
        e, f = np.append(e[~rare], e[rare].sum()), np.append(f[~rare], f[rare].sum())
        e, f = e[e > 0], f[e > 0]
        assert ((f - e) ** 2 / e).sum() < chi_square_limit(len(e) - 1), tokens


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_that_do_not_pay_are_not_fed_and_change_nothing(drafting: Drafting, temperature: float) -> None:
    """Dear columns leave the very passes of mode ar; the cheaper they are the more are fed."""
    _, network = drafting()

    def asked(mode: str) -> list[Request]:
        return [request(p, 20, mode, block_length=3, temperature=temperature, seed=3) for p in PROMPTS]

    slow, _ = decode(network, asked("ar"), price=1.0)
    widest = []
    for price in (1.0, 0.05, 0.0):
        fast, _ = decode(network, asked("verify"), price=price)
        assert (fast.canvas.ids == slow.canvas.ids).all()
        widest.append(max(fast.backend.fed[1:]))  # type: ignore[attr-defined]
        if price == 1.0:
            assert fast.backend.fed == slow.backend.fed  # type: ignore[attr-defined]
            assert fast.steps == slow.steps
    assert widest[0] == len(PROMPTS) < widest[1] < widest[2] == 9 * len(PROMPTS)


def test_a_seed_repeats_a_sampled_text(drafting: Drafting) -> None:
    _, network = drafting()
    asked = [request([1], 12, "verify", block_length=4, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    decoder, _ = decode(network, asked)
    assert written(decoder, 0) == written(decoder, 2) != written(decoder, 1)
