from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.canvas import Array, Canvas, Commit, Frame, Kind

MASK, PAD = 12, 0
KINDS: tuple[Kind, ...] = ("unmask", "edit", "remask", "renoise")

rows_of_ids = st.lists(st.lists(st.integers(1, MASK), min_size=1, max_size=7), min_size=1, max_size=3)


def commit(chosen: Array, token: int = 3, kind: Kind = "unmask") -> Commit:
    return Commit(chosen, np.full(chosen.shape, token), np.full(chosen.shape, 0.5), kind)


@given(rows_of_ids)
def test_rows_of_different_length_are_padded_and_frozen(rows: list[list[int]]) -> None:
    canvas = Canvas.of(rows, MASK, PAD)
    for b, row in enumerate(rows):
        assert canvas.ids[b].tolist() == row + [PAD] * (canvas.ids.shape[1] - len(row))
        assert canvas.frozen[b].tolist() == [t != MASK for t in canvas.ids[b].tolist()]
    assert (canvas.masked == ~canvas.frozen).all()


def test_a_mask_literal_in_a_prompt_stays() -> None:
    canvas = Canvas.of([[MASK, 3, MASK], [MASK]], MASK, PAD, given=[[True, True, False], [False]])
    assert canvas.masked.tolist() == [[False, False, True], [True, False, False]]


def test_padding_that_is_the_mask_is_not_open() -> None:
    assert Canvas.of([[MASK, MASK], [MASK]], MASK, MASK).masked.tolist() == [[True, True], [True, False]]


@given(rows_of_ids, st.data())
def test_frames_replayed_give_the_last_canvas(rows: list[list[int]], data: st.DataObject) -> None:
    first = canvas = Canvas.of(rows, MASK, PAD)
    cells = canvas.ids.size
    frames: list[Frame] = []
    for step in range(1, data.draw(st.integers(0, 4)) + 1):
        commits = []
        for kind in data.draw(st.lists(st.sampled_from(KINDS), max_size=3)):  # may well overlap
            flags = np.array(data.draw(st.lists(st.booleans(), min_size=cells, max_size=cells)))
            tokens = np.array(data.draw(st.lists(st.integers(0, MASK), min_size=cells, max_size=cells)))
            chosen = flags.reshape(canvas.ids.shape) & ~canvas.frozen
            commits.append(
                Commit(chosen, tokens.reshape(chosen.shape), np.random.default_rng(step).random(chosen.shape), kind)
            )
        before = canvas.ids.copy()
        canvas, new = canvas.apply(commits, [step] * len(rows))
        assert (first.replay(frames).ids == before).all()  # the earlier canvas is left alone
        assert all(frame.step == step for frame in new)
        frames += new
    replayed = first.replay(frames)
    assert (replayed.ids == canvas.ids).all()
    assert (replayed.ids[first.frozen] == first.ids[first.frozen]).all()
    assert (first.ids == Canvas.of(rows, MASK, PAD).ids).all()


@given(rows_of_ids, st.data())
def test_frozen_positions_can_not_be_committed(rows: list[list[int]], data: st.DataObject) -> None:
    canvas = Canvas.of([[1, *row] for row in rows], MASK, PAD)
    frozen = np.argwhere(canvas.frozen).tolist()
    b, i = data.draw(st.sampled_from(frozen))
    chosen = canvas.masked.copy()
    chosen[b, i] = True
    with pytest.raises(ValueError, match="frozen"):
        canvas.apply([commit(chosen)], [1] * len(canvas.ids))


def test_a_frame_says_what_happened_and_to_whom() -> None:
    canvas = Canvas.of([[MASK, MASK], [1, 2], [5, MASK]], MASK, PAD)
    chosen = np.array([[False, True], [False, False], [False, True]])
    tokens = np.array([[0, 4], [0, 0], [0, 6]])
    confidence = np.array([[0, 0.25], [0, 0], [0, 0.75]])
    after, frames = canvas.apply([Commit(chosen, tokens, confidence, "unmask")], [3, 7, 9])
    assert frames == [  # none for the request that did not change
        Frame(3, (1,), (4,), (0.25,), ("unmask",), row=0),
        Frame(9, (1,), (6,), (0.75,), ("unmask",), row=2),
    ]
    assert after.ids.tolist() == [[MASK, 4], [1, 2], [5, 6]]
    assert frames[0].to_dict() == {
        "step": 3, "positions": (1,), "tokens": (4,), "confidences": (0.25,), "kinds": ("unmask",), "row": 0,
    }  # fmt: skip


def test_nothing_chosen_is_no_frame() -> None:
    canvas = Canvas.of([[MASK]], MASK, PAD)
    after, frames = canvas.apply([commit(np.zeros((1, 1), bool))], [1])
    assert frames == []
    assert (after.ids == canvas.ids).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_frames_that_move_tokens_replay(ids: list[int], data: st.DataObject) -> None:
    """Deleted tokens go, masks come in before others, and nothing outside the moved part is touched."""
    low = data.draw(st.integers(0, len(ids)))
    end = data.draw(st.integers(low, len(ids)))
    flags = st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))
    inside = (np.arange(len(ids)) >= low) & (np.arange(len(ids)) < end)
    deleted, inserted = (np.array(data.draw(flags)) & inside for _ in range(2))
    inserted &= ~deleted
    canvas = Canvas(np.array([ids]), np.zeros((1, len(ids)), bool) | ~inside, MASK)
    commits = [
        Commit(chosen[None], canvas.ids, np.ones((1, len(ids))), kind, end)
        for chosen, kind in ((inserted, "insert"), (deleted, "delete"))
    ]
    after, frames = canvas.apply(commits, [1])
    expected: list[int] = []
    for position in range(low, end):
        expected += [MASK] if inserted[position] else []
        expected += [] if deleted[position] else [ids[position]]
    expected = (expected + [MASK] * len(ids))[: end - low]
    assert after.ids[0].tolist() == ids[:low] + expected + ids[end:]
    assert (canvas.replay(frames).ids == after.ids).all()


def test_writes_come_before_moves() -> None:
    canvas = Canvas.of([[1, 2, MASK, MASK, 5]], MASK, PAD, given=[[True, False, False, False, True]])
    canvas = Canvas(canvas.ids, np.array([[True, False, False, False, True]]), MASK)
    spots = [np.arange(5)[None] == i for i in range(5)]
    commits = [commit(spots[1], kind="delete"), commit(spots[3], token=7)]
    after, frames = canvas.apply([Commit(c.chosen, c.tokens, c.confidence, c.kind, 4) for c in commits], [1])
    assert after.ids.tolist() == [[1, MASK, 7, MASK, 5]]
    assert frames[0].kinds == ("unmask", "delete")
    assert frames[0].to_dict()["end"] == 4


def test_what_is_frozen_does_not_move() -> None:
    canvas = Canvas(np.array([[1, 2, 3]]), np.array([[False, False, True]]), MASK)
    chosen = np.array([[True, False, False]])
    with pytest.raises(ValueError, match="moves a frozen"):
        canvas.apply([Commit(chosen, canvas.ids, np.ones((1, 3)), "delete", 3)], [1])
