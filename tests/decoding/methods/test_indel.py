"""Inserting and deleting while denoising: examples by hand, and properties for any network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.backends.torch import TorchBackend
from unmask.canvas import Array, moved
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import edit
from unmask.decoding.methods.edit import Change, Controls, Parameters, Revision
from unmask.decoding.request import Request
from unmask.decoding.rules import RuleOptions
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

MASK, DELETE, INSERT, VOCAB = 0, 1, 2, 12
CONTROLS = Controls(DELETE, INSERT)


def apply(ids: list[int], change: Change) -> list[int]:
    written = np.where(change.written, change.tokens, ids).tolist()
    gone, pushed = (set(np.flatnonzero(x).tolist()) for x in (change.deleted, change.inserted))
    return moved(written, gone, pushed, len(ids), MASK)


Way = tuple[RuleOptions, Parameters]


def ranked(rows: list[list[int]]) -> Array:
    """Probabilities [W, V] that rank the given tokens of each place first to last."""
    p = np.full((len(rows), VOCAB), 1e-9)
    for place, tokens in enumerate(rows):
        p[place, tokens] = 0.9 * 0.1 ** np.arange(len(tokens))
    p[:, MASK] = 0
    return p / p.sum(1, keepdims=True)


def step(revision: Revision, ids: list[int], given: list[bool], p: Array, how: Way) -> list[int]:
    """One step of greedy proposals from probabilities [W, V]; the mask is never proposed."""

    def second(place: int, forbidden: set[int]) -> tuple[int, float]:
        rest = p[place].copy()
        rest[[MASK, *forbidden]] = -1
        return int(rest.argmax()), float(rest.max())

    masked, frozen = np.array([i == MASK for i in ids]), np.array(given)
    own = p.argmax(1), p.max(1)
    return apply(ids, revision.step(np.array(ids), masked & ~frozen, frozen, *own, second, CONTROLS, *how))


def way(threshold: float = 0.9, **own: Any) -> Way:
    return RuleOptions("token_edit", threshold=threshold), Parameters(**own)


FAST = way(threshold=0.5, editing_threshold=0.0)


def test_insert_and_delete_move_original_masks() -> None:
    revision = Revision([False, True, True, True, True])
    ids = step(revision, [3, 0, 0, 0, 0], [True] + [False] * 4, ranked([[3], [INSERT], [DELETE], [7], [8]]), FAST)
    assert ids == [3, MASK, MASK, 7, 8]  # the second mask is the first of the block, pushed on
    assert revision.original == [False, False, True, True, True]


def test_a_deletion_leaves_room_at_the_end() -> None:
    revision = Revision([False] * 4)
    ids = step(revision, [3, 4, 5, 6], [True] + [False] * 3, ranked([[3], [DELETE], [5], [6]]), FAST)
    assert ids == [3, 5, 6, MASK]


def test_what_is_pushed_past_the_end_is_lost() -> None:
    revision = Revision([False, False, True, False])
    ids = step(revision, [3, 4, 5, 6], [True] + [False] * 3, ranked([[3], [INSERT], [INSERT], [6]]), FAST)
    assert ids == [3, MASK, 4, MASK]
    assert revision.original == [False] * 4


def test_nothing_moves_that_was_given() -> None:
    """Before a given token no token comes or goes: the next best is written in its place."""
    revision = Revision([True, False, True, True])
    p = ranked([[DELETE, INSERT, 7], [5], [INSERT, 9], [8]])
    all_at_once = way(threshold=0.0)
    assert step(revision, [0, 5, 0, 0], [False, True, False, False], p, all_at_once) == [7, 5, MASK, MASK]


def test_one_more_is_filled_than_masks_came_in() -> None:
    revision = Revision([False, True, True, False, False])
    p = np.zeros((5, VOCAB))
    for place, (token, sure) in enumerate([(3, 0.9), (5, 0.3), (6, 0.2), (7, 0.45), (8, 0.4)]):
        p[place, token], p[place, 11] = sure, sure / 2
    slow = way(threshold=0.99, editing_threshold=0.9)
    # two masks came in: they and the surer of the two original ones are filled
    assert step(revision, [3, 0, 0, 0, 0], [True] + [False] * 4, p, slow) == [3, 5, MASK, 7, 8]


def test_the_last_step_writes_no_control_token() -> None:
    revision = Revision([False] * 4)
    p = ranked([[DELETE, 8], [DELETE, 5], [INSERT, 6], [INSERT, DELETE, 7]])
    options = way(editing_threshold=0.0, max_post_steps=0)
    assert step(revision, [3, 0, 0, 4], [True] + [False] * 3, p, options) == [3, 5, 6, 7]
    assert revision.finished


def test_a_block_that_comes_back_takes_another_way() -> None:
    revision = Revision([False] * 3)
    options = way(editing_threshold=0.0)
    there, back = ranked([[3], [4], [6, 8]]), ranked([[3], [4], [5, 9]])
    ids, given = [3, 4, 5], [True, False, False]
    ids = step(revision, ids, given, there, options)
    assert ids == [3, 4, 6]
    ids = step(revision, ids, given, back, options)
    assert ids == [3, 4, 5]
    assert step(revision, ids, given, there, options) == [3, 4, 8]  # 6 was tried here


@settings(max_examples=60)
@given(st.integers(0, 2**16), st.integers(1, 8), st.integers(0, 3), st.floats(0, 1), st.floats(0, 1))
def test_every_block_ends(seed: int, width: int, posts: int, threshold: float, editing: float) -> None:
    """Within as many steps as W + max_post_steps + 1, with no mask and no control token, given tokens in place."""
    rng = np.random.default_rng(seed)
    given = rng.random(width) < 0.3
    ids = np.where(given, rng.integers(3, VOCAB, width), MASK).tolist()
    kept = {i: ids[i] for i in np.flatnonzero(given).tolist()}
    options = way(threshold=threshold, editing_threshold=editing, max_post_steps=posts)
    revision = Revision([i == MASK for i in ids])
    while not revision.finished:
        p = rng.dirichlet(np.full(VOCAB, 0.3), width)
        p[:, MASK] = 0
        ids = step(revision, ids, given.tolist(), p, options)
        assert revision.steps <= width + posts + 1
        assert all(ids[i] == token for i, token in kept.items())
    assert not set(ids) & {MASK, DELETE, INSERT}


def network(seed: int) -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, max_length=64,
        layout="block_causal", block_length=5, mask_token_id=MASK, delete_token_id=DELETE, insert_token_id=INSERT,
    )  # fmt: skip
    return Transformer(config).initialise(seed, std=0.5).eval()


@settings(max_examples=15)
@given(st.integers(0, 50), st.integers(0, 7), st.integers(1, 14), st.floats(0, 0.9), st.sampled_from([0.0, 1.0]))
def test_frames_replay_and_the_cache_changes_nothing(
    seed: int, prompt: int, new: int, editing: float, temperature: float
) -> None:
    """Law 10, and exact keys and values of blocks whose tokens came and went."""
    rule, method = (
        RuleOptions("token_edit", threshold=0.3),
        edit.Options(editing_threshold=editing, max_post_steps=4),
    )
    ids = [3 + i for i in range(prompt)] + [MASK] * new
    given_part = [True] * prompt + [False] * new
    asked = Request(ids, given_part, seed=seed, rule=rule, method=method, block_length=5, temperature=temperature)
    decoders = [
        Decoder(TorchBackend(network(seed)), Layout("block_causal", 5), [asked], use_cache=use) for use in (True, False)
    ]
    canvases = []
    for decoder in decoders:
        first = decoder.canvas
        frames = [frame for made in decoder.run() for frame in made]
        assert (first.replay(frames).ids == decoder.canvas.ids).all()
        canvases.append(decoder.canvas.ids[0].tolist())
    assert canvases[0] == canvases[1]
    assert decoders[0].steps == decoders[1].steps
    assert canvases[0][:prompt] == ids[:prompt]
    assert not set(canvases[0][prompt:]) & {MASK, DELETE, INSERT}


def test_tokens_come_and_go() -> None:
    kinds = set()
    for seed in range(8):
        method = edit.Options(editing_threshold=0.0)
        asked = Request([MASK] * 10, [False] * 10, rule=FAST[0], method=method, block_length=5)
        decoder = Decoder(TorchBackend(network(seed)), Layout("block_causal", 5), [asked])
        kinds |= {kind for made in decoder.run() for frame in made for kind in frame.kinds}
    assert kinds == {"unmask", "edit", "insert", "delete"}


@pytest.mark.parametrize("ids", [(None, 2), (2, 2), (MASK, 2)])
def test_control_tokens_are_two_and_not_the_mask(ids: tuple[int | None, int]) -> None:
    with pytest.raises(UnmaskError, match="delete_token_id"):
        ModelConfig(
            vocab_size=VOCAB, hidden_size=32, num_layers=1, num_heads=4, intermediate_size=48,
            mask_token_id=MASK, delete_token_id=ids[0], insert_token_id=ids[1],
        )  # fmt: skip
