"""Shards of dialogues and the rows they are packed into."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from unmask.errors import UnmaskError
from unmask.layout import PADDING
from unmask.training.dialogues import Dialogues, read_shard, write_shard

Dialogue = tuple[list[int], int]


def some_dialogues(count: int, seed: int = 0, longest: int = 12) -> list[Dialogue]:
    """Every dialogue has a first token of its own."""
    generator = np.random.default_rng(seed)
    out = []
    for number in range(count):
        ids = [1000 + number, *generator.integers(0, 50, generator.integers(1, longest)).tolist()]
        out.append((ids, int(generator.integers(0, len(ids) + 1))))
    return out


def pieces(rows: Any, row: int) -> list[tuple[list[int], list[int], list[bool]]]:
    """The dialogues of a row as they lie in it: ids, positions, which are learned. Padding is checked."""
    document = rows.document[row].tolist()
    edges = [i for i in range(len(document)) if not i or document[i] != document[i - 1]] + [len(document)]
    out = []
    for a, b in itertools.pairwise(edges):
        if document[a] == PADDING:
            assert b == len(document)  # at the end only
            assert not rows.supervised[row, a:].any()
        else:
            out.append(tuple(x[row, a:b].tolist() for x in (rows.ids, rows.position, rows.supervised)))
    assert len({d for d in document if d != PADDING}) == len(out)  # tokens of two dialogues never meet
    return out


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(13, 40), st.integers(0, 5), st.integers(1, 4))
def test_every_dialogue_comes_whole_and_once_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, count: int, length: int, seed: int, files: int
) -> None:
    folder, made = tmp_path_factory.mktemp("text"), some_dialogues(count, seed)
    for number in range(files):
        write_shard(folder / f"train-{number}.safetensors", made[number::files])
    text = Dialogues((f"{folder}/train-*.safetensors",), length, seed)
    assert len(text.tokens.ids) == sum(len(ids) for ids, _ in made)
    rows = text.rows(0, text.num_rows)
    found = [piece for row in range(text.num_rows) for piece in pieces(rows, row)]
    expected = {ids[0]: (ids, list(range(len(ids))), [i >= answer for i in range(len(ids))]) for ids, answer in made}
    assert Counter(ids[0] for ids, _, _ in found) == Counter(expected.keys())
    assert all(piece == expected[piece[0][0]] for piece in found)
    # no row could have taken the next one's first dialogue too
    used = [sum(len(ids) for ids, _, _ in pieces(rows, row)) for row in range(text.num_rows)]
    for row in range(text.num_rows - 1):
        assert used[row] + len(pieces(rows, row + 1)[0][0]) > length


def test_every_epoch_has_an_order_of_its_own(tmp_path: Path) -> None:
    made = [([1000 + n, 1, 2, 3], 2) for n in range(20)]  # of one length, so all epochs have as many rows
    write_shard(tmp_path / "a.safetensors", made)
    text, orders = Dialogues((str(tmp_path / "a.safetensors"),), 8, 3), []
    assert text.num_rows == 10
    for epoch in range(3):
        rows = text.rows(10 * epoch, 10)
        orders.append([ids[0] for row in range(10) for ids, _, _ in pieces(rows, row)])
        assert sorted(orders[-1]) == list(range(1000, 1020))
    assert len({tuple(order) for order in orders}) == 3
    other = Dialogues((str(tmp_path / "a.safetensors"),), 8, 4)
    assert not torch.equal(other.rows(0, 10).ids, text.rows(0, 10).ids)


def test_later_epochs_give_what_fits_the_first_ones_rows(tmp_path: Path) -> None:
    """An order may pack into a row more or fewer; every row of it is still whole dialogues, each once."""
    write_shard(tmp_path / "a.safetensors", some_dialogues(60, 1))
    text = Dialogues((str(tmp_path / "a.safetensors"),), 16, 0)
    for epoch in range(1, 8):
        rows = text.rows(epoch * text.num_rows, text.num_rows)
        firsts = Counter(ids[0] for row in range(text.num_rows) for ids, _, _ in pieces(rows, row))
        packed = [number for row in text._pack(np.random.default_rng([0, epoch])) for number in row]
        assert sorted(packed) == list(range(60))
        assert sum(firsts.values()) >= 60 - 4  # all but those of a row or repeated ones


def test_rows_do_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    """A run that goes on in the middle of an epoch, or in another one, gets the rows it would have got."""
    write_shard(tmp_path / "a.safetensors", some_dialogues(30))
    pattern = (str(tmp_path / "*.safetensors"),)
    whole = Dialogues(pattern, 20, 5)
    through = whole.rows(0, 3 * whole.num_rows + 2)
    for first, count in ((0, 1), (7, 3), (whole.num_rows - 1, 2), (2 * whole.num_rows + 3, 4), (1, 2)):
        for text in (Dialogues(pattern, 20, 5), whole):
            part = text.rows(first, count)
            for name in ("ids", "document", "position", "supervised"):
                expected = getattr(through, name)[first : first + count]
                assert torch.equal(getattr(part, name), expected), (first, name)


def test_dialogues_longer_than_a_row_are_cut_at_its_end(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", [(list(range(30)), 5), (list(range(100, 130)), 25), ([7, 8], 1)])
    rows = Dialogues((str(tmp_path / "a.safetensors"),), 12, 0).rows(0, 3)
    found = {piece[0][0]: piece for row in range(3) for piece in pieces(rows, row)}
    assert found[0] == (list(range(12)), list(range(12)), [False] * 5 + [True] * 7)
    assert found[100] == (list(range(100, 112)), list(range(12)), [False] * 12)  # its answer is beyond the row
    assert found[7] == ([7, 8], [0, 1], [False, True])


def test_a_shard_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, iter([([5, 6, 7], 1), ([8], 0)]))
    shard = read_shard(path)
    assert {name: values.tolist() for name, values in shard.items()} == {
        "ids": [5, 6, 7, 8], "length": [3, 1], "answer": [1, 0],
    }  # fmt: skip
    assert all(values.dtype == torch.int32 for values in shard.values())
    assert list(tmp_path.iterdir()) == [path]


def columns(ids: Any, length: Any, answer: Any) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(v) for name, v in (("ids", ids), ("length", length), ("answer", answer))}


GOOD = columns([5, 6, 7], [2, 1], [1, 0])
BAD: dict[str, dict[str, torch.Tensor]] = {
    "no answers": {name: values for name, values in GOOD.items() if name != "answer"},
    "other tensors": {"weight": torch.zeros(3)},
    "lengths too short": columns([5, 6, 7], [1, 1], [1, 0]),
    "lengths too long": columns([5, 6, 7], [2, 2], [1, 0]),
    "a negative length": columns([5, 6, 7], [4, -1], [1, 0]),
    "fewer answers than dialogues": columns([5, 6, 7], [2, 1], [1]),
    "an answer before its dialogue": columns([5, 6, 7], [2, 1], [-1, 0]),
    "an answer after its dialogue": columns([5, 6, 7], [2, 1], [3, 0]),
    "a negative id": columns([5, -6, 7], [2, 1], [1, 0]),
    "fractions": columns([5.0, 6.0, 7.0], [2.0, 1.0], [1.0, 0.0]),
    "a table": columns([[5, 6, 7]], [1], [0]),
    "a number": columns(5, [1], [0]),
    "nothing": columns(torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0).int()),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_shard_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "train-0.safetensors"
    save_file(BAD[name], path)
    with pytest.raises(UnmaskError, match=r"train-0\.safetensors") as caught:
        Dialogues((str(path),), 8, 0)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_or_missing_shard_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "train-0.safetensors"
    write_shard(path, some_dialogues(3))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UnmaskError, match="not a readable safetensors file") as caught:
        Dialogues((str(path),), 8, 0)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UnmaskError, match="no such file"):
        Dialogues((str(tmp_path / "held-*.safetensors"),), 8, 0)
