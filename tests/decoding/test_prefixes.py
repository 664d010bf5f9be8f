"""Kept texts against trying all of them."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unmask.decoding.prefixes import Prefixes

LENGTH = 3
texts = st.lists(st.integers(0, 1), max_size=14)


def beginning(text: list[int], n: int) -> tuple[tuple[int, ...], int]:
    """What is stored of a text's n-th block, so that it can be told from all others, and its bytes."""
    return tuple(text[: LENGTH * (n + 1)]), 1


@given(st.lists(texts, max_size=8), texts)
def test_as_much_is_found_as_any_text_has_in_common(kept: list[list[int]], asked: list[int]) -> None:
    store = Prefixes(LENGTH, 1 << 20)
    for text in kept:
        store.keep(np.array(text, np.int64), partial(beginning, text))
    found = store.find(np.array(asked, np.int64))
    alike = [0, *(next((i for i in range(min(len(t), len(asked))) if t[i] != asked[i]), min(len(t), len(asked)))
                  for t in kept)]  # fmt: skip
    assert len(found) == max(alike) // LENGTH
    assert found == [tuple(asked[: LENGTH * (n + 1)]) for n in range(len(found))]
    assert store.size == len(store.blocks) == len({tuple(t[:n]) for t in kept for n in range(3, len(t) + 1, 3)})


@given(st.lists(texts, max_size=12), st.integers(0, 5))
def test_the_limit_holds_and_what_is_kept_can_be_found(kept: list[list[int]], limit: int) -> None:
    store = Prefixes(LENGTH, limit)
    for text in kept:
        ids = np.array(text, np.int64)
        store.keep(ids, lambda n: (n, 1))
        assert store.size == len(store.blocks) <= limit
        assert len(store.find(ids)) == min(limit, len(text) // LENGTH)
        numbers = {0, *(block.number for block in store.blocks.values())}
        assert all(before in numbers for before, _ in store.blocks)
    store.shrink(1)
    assert len(store.blocks) <= 1


def test_what_was_of_use_last_stays() -> None:
    store = Prefixes(LENGTH, 4)
    system, first, second = ([n] * LENGTH for n in (7, 1, 2))
    for text in (system + first, system + second, [9] * LENGTH):
        store.keep(np.array(text), lambda n: (n, 1))
    store.find(np.array(system + first))
    store.keep(np.array([8] * LENGTH), lambda n: (n, 1))
    assert len(store.find(np.array(system + first))) == 2
    assert len(store.find(np.array(system + second))) == 1
