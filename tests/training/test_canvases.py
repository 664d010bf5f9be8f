"""Canvases that are filled in place: what is read, what is learned, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unmask import DiffusionLM
from unmask.training.data import Corpus, DataConfig
from unmask.training.documents import Documents
from unmask.training.framing import Framing
from unmask.training.recipe import parse_recipe
from unmask.training.token_file import Tokens
from unmask.training.tokenizer import train_tokenizer
from unmask.training.trainer import Trainer


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def latin(seed: int) -> dict[str, str]:
    """A 4 x 4 grid whose rows are the first one turned, half of it given."""
    first = [str((seed + i) % 4 + 1) for i in range(4)]
    canvas = "".join("".join(first[i:] + first[:i]) for i in range(4))
    given = "".join(c if (seed * 7 + i) % 2 else "." for i, c in enumerate(canvas))
    return {"canvas": canvas, "given": given}


def corpus(*files: Path) -> Corpus:
    config = DataConfig(files=tuple(map(str, files)), format="canvases", length=16, packed=False)
    tokens = Tokens.of(Framing(train_tokenizer("char", ["1234"], 0), 0).pieces(Documents(config.files, config)))
    return Corpus(tokens, config, 0, "ignore", 0)


def test_what_is_given_is_not_learned(tmp_path: Path) -> None:
    rows = corpus(write(tmp_path / "a.jsonl", [latin(1)])).rows(0, 1)
    assert train_tokenizer("char", ["1234"], 0).decode(rows.ids[0].tolist()) == latin(1)["canvas"]
    assert rows.supervised[0].tolist() == [mark == "." for mark in latin(1)["given"]]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"canvas": "12"}, "row 2"),
        ({"canvas": "1234", "given": "1"}, "one length"),
        ({"canvas": "1234", "given": "1..."}, "4 tokens on a canvas of 16"),
        (["1234"], "row 2"),
    ],
)
def test_bad_rows_are_named(row: Any, named: str, tmp_path: Path, refused: Callable[..., Any]) -> None:
    path = write(tmp_path / "a.jsonl", [latin(1), row])
    with refused(named):
        corpus(path)


def test_a_missing_file_among_others_is_named(tmp_path: Path, refused: Callable[..., Any]) -> None:
    here = write(tmp_path / "a.jsonl", [latin(1)])
    with refused("none.jsonl"):
        corpus(here, tmp_path / "none.jsonl")


def test_a_looped_network_of_a_grid_trains_and_fills(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", [latin(seed) for seed in range(64)])
    tree = {
        "name": "grid",
        "objective": {"kind": "mdlm", "weight": "none", "normaliser": "masked", "clip": [0.1, 1.0]},
        "model": {
            "hidden_size": 16,
            "num_layers": 1,
            "num_heads": 4,
            "intermediate_size": 32,
            "rope_fraction": 0.0,
            "loops": 2,
            "grid": [4, 4, 2, 2],
        },
        "data": {"files": [str(data)], "format": "canvases", "tokenizer": "char", "length": 16},
        "training": {"steps": 12, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 1, "threads": 1},
    }
    trainer = Trainer(parse_recipe(tree, "recipe"), tmp_path / "run", Console(quiet=True))
    folder = trainer.run()
    losses = [record["loss"] for record in trainer.history]
    assert sum(losses[-3:]) < sum(losses[:3])
    out = DiffusionLM.from_pretrained(folder).fill(latin(3)["given"].replace(".", "[[mask:1]]"))
    kept = [a for a, b in zip(out.text, latin(3)["given"], strict=True) if b != "."]
    assert kept == [mark for mark in latin(3)["given"] if mark != "."]
