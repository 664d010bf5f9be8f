"""Data and recipes as people have them: each kind of fault found in real use, with the right value."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from unmask import DiffusionLM
from unmask.training import token_file
from unmask.training.data import DataConfig, make_rows
from unmask.training.documents import Document, Documents
from unmask.training.framing import Framing
from unmask.training.optimizer import Muon, orthogonal
from unmask.training.precision import choose_precision
from unmask.training.recipe import Recipe, TrainRecipe, parse_recipe
from unmask.training.tokenizer import begin_with_eos, special_tokens, train_tokenizer
from unmask.training.trainer import Trainer

Refused = Callable[..., Any]
MakeRecipe = Callable[..., Recipe]
MakeTree = Callable[..., dict[str, Any]]
QUIET = Console(quiet=True)


def read(path: Path, **options: Any) -> list[Document]:
    return list(Documents((str(path),), DataConfig(files=(str(path),), **options)))


def rows_file(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# 16: only the columns that are read matter


@pytest.mark.parametrize(
    "others",
    [
        [{"meta": None}] * 3 + [{"meta": "web"}],
        [{}] * 3 + [{"late": 1}],
        [{"n": 1}, {"n": 1.5}, {"n": "x"}],
        [{"s": {"a": 1}}, {"s": {"b": [1]}}, {"s": None}],
    ],
    ids=["null first", "late column", "int then float", "struct"],
)
def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path, others: list[dict[str, Any]]) -> None:
    path = rows_file(tmp_path / "a.jsonl", [{"text": f"row {i}", **other} for i, other in enumerate(others)])
    assert [d.text for d in read(path)] == [f"row {i}" for i in range(len(others))]


def test_parquet_columns_that_are_not_read_are_not_loaded(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"body": ["a", "b"], "vector": [[1.0] * 4, [2.0] * 4]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert [d.text for d in read(tmp_path / "x.parquet", columns={"text": "body"})] == ["a", "b"]


# 17: rows that teach nothing


@pytest.fixture
def framing() -> Framing:
    tokenizer = train_tokenizer("byte", [], 0)
    begin_with_eos(tokenizer)
    special = special_tokens(tokenizer, DataConfig(files=("x",)), {})
    return Framing(tokenizer, special["eos_token_id"], special["mask_token_id"])


@pytest.mark.parametrize("packing", [{"packed": False}, {"whole": True}], ids=["padded", "whole"])
def test_rows_that_teach_nothing_are_counted_and_refused_cut_or_dropped(
    framing: Framing, refused: Refused, packing: dict[str, bool]
) -> None:
    documents = [Document("it is 1.", "word " * 50), Document("yes", "no?")]
    tokens = token_file.Tokens.of(framing.pieces(documents))

    def rows(policy: Any) -> Any:
        config = DataConfig(files=("x",), length=48, overlong=policy, **packing)  # type: ignore[arg-type]
        return make_rows(tokens, config, 0, "ignore", framing.eos)

    with refused("1 of 2 documents", "number 1", "row of 48", "data.overlong"):
        rows("refuse")
    dropped = rows("drop")
    assert "1 of 2" in dropped.note
    assert dropped.num_rows == 1
    cut = rows("cut")
    batch = cut.rows(0, cut.num_rows)
    assert (batch.supervised.any(1)).all()
    answers = framing.tokenizer.decode(batch.ids[batch.supervised].tolist())
    assert sorted(answers.replace("it is 1.", "1").replace("yes", "2")) == ["1", "2"]
    assert "word" in framing.tokenizer.decode(batch.ids.flatten().tolist())  # what fits of the prompt stays


def test_the_trainer_refuses_them(make_recipe: MakeRecipe, refused: Refused, tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", [{"prompt": "word " * 50, "response": "it is 1."}])
    recipe = make_recipe(data={"files": [str(path)], "tokenizer": "byte", "length": 48, "packed": False})
    with refused("1 of 1 documents", "data.overlong"):
        Trainer(recipe, tmp_path / "run", QUIET)


# 18, 19, 20, 29: encodings, rows and endings


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}\r\n')
    assert [d.text for name in ("a.txt", "b.jsonl") for d in read(tmp_path / name)] == ["one", "two"]


def test_a_zero_character_is_refused_anywhere(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 200_000 + b"\0")
    with refused("a.txt", "zero bytes"):
        read(tmp_path / "a.txt")
    for row in ({"text": "a\0b"}, {"prompt": "a", "response": "\0"}):
        with refused("b.jsonl", "row 1", "U+0000"):
            read(rows_file(tmp_path / "b.jsonl", [row]))


def test_a_wrong_byte_names_its_row(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + '{"text": "café"}\n'.encode("latin-1"))
    with refused("a.jsonl", "row 2", "UTF-8"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("row", "found"), [({"text": None}, "null"), ({"text": 3}, "int"), ({"text": ["a"]}, "list"), ([1], "list")]
)
def test_a_row_that_holds_no_text_is_named(tmp_path: Path, refused: Refused, row: Any, found: str) -> None:
    path = rows_file(tmp_path / "a.jsonl", [{"text": "fine"}, row])
    with refused("row 2", found):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'[{"text": "a"}]', "make rows of it"),
        ("a.csv", b"text\na\n", "make rows of it"),
        ("a.tsv.gz", gzip.compress(b"text\na\n", mtime=0), "make rows of it"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "\\ud800"}\n', "row 3: holds half of a surrogate pair"),
        ("a.jsonl", b'{"prompt": "a", "response": "\\udfff b"}', "row 1: holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": [1]}', "needs text"),
        ("a.jsonl", b'{"text": "a"} {"text": "b"}', "row 1: not readable"),
        ("a.jsonl", b"[" * 100_000, "row 1: not readable"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "row 1: not readable"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:-12], "not readable"),
        ("a.jsonl.gz", gzip.compress(b"a", mtime=0)[:10] + b"\xff" * 99, "not readable"),
        ("a.txt.gz", b"no gzip", "not readable"),
    ],
)
def test_files_that_are_not_what_they_seem(
    tmp_path: Path, refused: Refused, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(name.partition(".")[0], says):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tools": 5}, "'tools' must be a list"),
        ({"tools": {"a": 1}}, "'tools' must be a list"),
        ({"tools": ["a"]}, "'tools' must be a list"),
        ({"tools": "no JSON"}, "'tools' are not JSON"),
        ({"calls": 5}, "'tool_calls' must be a list"),
        ({"calls": {"name": "f"}}, "'tool_calls' must be a list"),
        ({"calls": [{"function": {}}]}, "needs a function with a name"),
        ({"content": "\ud800"}, "surrogate"),
        ({"content": ["a"]}, "'content' that is text"),
    ],
)
def test_conversations_of_wrong_parts_are_named(
    tmp_path: Path, refused: Refused, changed: dict[str, Any], says: str
) -> None:
    answer: dict[str, Any] = {"role": "assistant", "content": changed.get("content", "b")}
    if "calls" in changed:
        answer["tool_calls"] = changed["calls"]
    row = {"messages": [{"role": "user", "content": "a"}, answer], "tools": changed.get("tools")}
    with refused("row 1", says):
        read(rows_file(tmp_path / "a.jsonl", [row]))


def test_the_format_follows_from_the_ending_gzipped_or_not_and_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n', mtime=0))
    rows_file(folder / "2.jsonl", [{"prompt": "a", "response": "b"}])
    (folder / "3.txt.gz").write_bytes(gzip.compress(b"three", mtime=0))
    (folder / "ignored.png").write_bytes(b"\x89")
    assert [d.text for d in read(folder)] == ["one", "b", "three"]


def test_columns_have_the_names_that_the_recipe_gives(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    assert read(path, columns={"prompt": "question", "response": "answer"}) == [Document("a", "q")]


# 25: training and generation frame text alike


def test_a_prompt_is_fed_as_it_was_trained(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    rows = [{"prompt": f"{a}+3=", "response": f"{a + 3}"} for a in (1, 2)]
    path = rows_file(tmp_path / "a.jsonl", rows)
    data = {"files": [str(path)], "tokenizer": "char", "length": 16, "packed": False}
    made = Trainer(make_recipe(data=data, training__steps=1), tmp_path / "run", QUIET)
    first = made.corpus.rows(0, 1)
    given = int(first.supervised[0].int().argmax())
    lm = DiffusionLM.from_pretrained(made.run())
    text = lm.tokenizer.decode(first.ids[0, :given].tolist())  # type: ignore[union-attr]
    assert lm.encode(text) == [first.ids[0, :given].tolist()]


# 26: layout follows from the objective


@pytest.mark.parametrize(
    ("objective", "layout", "block"),
    [({"kind": "ar"}, "causal", 0), ({"kind": "mdlm"}, "bidirectional", 0),
     ({"kind": "bd3lm", "block_length": 8}, "block_causal", 8)],
)  # fmt: skip
def test_the_layout_follows_from_the_objective(
    make_recipe: MakeRecipe, objective: dict[str, Any], layout: str, block: int
) -> None:
    recipe = make_recipe(objective=objective)
    assert isinstance(recipe, TrainRecipe)
    config = recipe.network_config({"vocab_size": 300})
    assert (config.layout, config.block_length, config.shift) == (layout, block, layout == "causal")


@pytest.mark.parametrize(
    ("objective", "model"),
    [("ar", {"layout": "bidirectional"}), ("mdlm", {"layout": "causal"}), ("mdlm", {"shift": True}),
     ("bd3lm", {"layout": "block_causal", "block_length": 16}), ("duo", {"corruption": "absorbing"})],
)  # fmt: skip
def test_a_contradiction_is_refused(
    make_tree: MakeTree, refused: Refused, objective: str, model: dict[str, Any]
) -> None:
    tree = make_tree(objective={"kind": objective})
    tree["model"] |= model
    with refused("contradicts the objective", next(name for name in reversed(model))):
        parse_recipe(tree, "recipe")


# 27: precision


def test_precision_is_chosen_by_the_machine_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("unmask.training.precision.native_bf16", lambda device, native=native: native)
        assert choose_precision("auto", cpu)[0] == dtype
        assert ("emulate" in choose_precision("auto", cpu)[1]) == (not native)
        assert ("slower" in choose_precision("bf16", cpu)[1]) == (not native)


def test_muon_is_that_of_torch_and_near_it_in_float32() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 16), torch.randn(4, 24, 16)
    ends = {}
    for name in ("torch", "bf16", "f32"):
        weight = torch.nn.Parameter(start.clone())
        made: Any
        if name == "torch":
            made = torch.optim.Muon([weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        else:
            made = Muon([weight], 0.01, 0.1, torch.bfloat16 if name == "bf16" else torch.float32)
        for gradient in gradients:
            weight.grad = gradient.clone()
            made.step()
        ends[name] = weight.detach()
    assert torch.equal(ends["bf16"], ends["torch"])
    torch.testing.assert_close(ends["f32"], ends["torch"], atol=2e-3, rtol=0)
    singular = torch.linalg.svdvals(orthogonal(start, torch.float32))
    assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3


# 28: other tokenizers


def test_special_tokens_come_from_the_recipe_or_the_tokenizers_files(
    make_recipe: MakeRecipe, refused: Refused, tmp_path: Path
) -> None:
    words = {"</s>": 0, "[MASK]": 1, "[UNK]": 2, **{c: i for i, c in enumerate("the catsonmdgly.foxwhera\n", 3)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["</s>", "[MASK]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    file = {"data__tokenizer_file": str(tmp_path / "tokenizer.json")}
    with refused("data.eos_token"):
        Trainer(make_recipe(**file), tmp_path / "a", QUIET)
    with refused("'</t>'", "vocabulary"):
        Trainer(make_recipe(**file, data__eos_token="</t>"), tmp_path / "a", QUIET)
    named = Trainer(make_recipe(**file, data__eos_token="</s>"), tmp_path / "b", QUIET)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "mask_token": "[MASK]"}')
    found = Trainer(make_recipe(**file), tmp_path / "c", QUIET)
    given = Trainer(make_recipe(**file, model__mask_token_id=2), tmp_path / "d", QUIET)
    for made, mask in ((named, 1), (found, 1), (given, 2)):
        config = made.network.config
        assert (config.eos_token_id, config.mask_token_id) == (0, mask)


def test_saved_truncation_and_padding_do_not_reach_the_data(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    tokenizer = train_tokenizer("byte", [], 0)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(tmp_path / "cut.json"))
    whole = Trainer(make_recipe(), tmp_path / "a", QUIET)
    cut = Trainer(make_recipe(data__tokenizer_file=str(tmp_path / "cut.json")), tmp_path / "b", QUIET)
    assert whole.corpus.tokens.ids.tolist() == cut.corpus.tokens.ids.tolist()  # type: ignore[attr-defined]


# 30, 31: fields of a recipe


def test_fields_are_checked_before_any_work(make_tree: MakeTree, refused: Refused) -> None:
    tree = make_tree(data__files=["/nowhere/at-all.txt"])
    for name, value in (("adapter_rank", 4), ("hidden_sizes", 3), ("num_heads", "two")):
        with refused(name):
            parse_recipe({**tree, "model": {**tree["model"], name: value}}, "recipe")
    with refused("lacks steps, batch_size"):
        parse_recipe({**tree, "training": {}}, "recipe")
    del tree["seed"]
    assert parse_recipe(tree, "recipe").seed == 0


def test_data_that_changed_since_is_refused(make_tree: MakeTree, refused: Refused, tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_text("the cat sat on the mat\n" * 20)
    tree = make_tree(training__steps=2)
    tree["data"] |= {"files": [str(corpus)], "validation": []}
    Trainer(parse_recipe(tree, "recipe"), tmp_path / "run", QUIET).run()
    corpus.write_text("the cat sat on the rug\n" * 20)
    with refused("checkpoint-0000002", "another data"):
        Trainer(parse_recipe(tree, "recipe"), tmp_path / "run", QUIET).run()


# 35: decoding defaults


def test_decoding_defaults_follow_from_objective_and_recipe(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = Trainer(make_recipe(training__steps=1), tmp_path / "a", QUIET).run()
    assert DiffusionLM.from_pretrained(folder).defaults.temperature == 0.8
    changed = make_recipe(training__steps=1, decoding={"temperature": 0.5, "max_denoising_steps": 4})
    defaults = DiffusionLM.from_pretrained(Trainer(changed, tmp_path / "b", QUIET).run()).defaults
    assert (defaults.temperature, defaults.max_denoising_steps) == (0.5, 4)
    answers = rows_file(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b"}])
    data = {"files": [str(answers)], "tokenizer": "byte", "length": 16, "packed": False}
    folder = Trainer(make_recipe(training__steps=1, data=data), tmp_path / "c", QUIET).run()
    assert DiffusionLM.from_pretrained(folder).defaults.temperature == 0.0


# 36: large corpora


def test_a_large_corpus_is_tokenised_once_into_files(
    framing: Framing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_file, "SMALL", 0)
    path = rows_file(tmp_path / "a.jsonl", [{"text": f"row {i} é"} for i in range(3000)])
    documents = Documents((str(path),), DataConfig(files=("x",)))
    first = token_file.tokenise(documents, framing)
    assert isinstance(first.ids, np.memmap)
    plain = token_file.Tokens.of(framing.pieces(documents))
    for name in ("ids", "learned", "starts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(plain, name))
    monkeypatch.setattr(Framing, "pieces", lambda self, documents: pytest.fail("tokenised twice"))
    again = token_file.tokenise(documents, framing)
    np.testing.assert_array_equal(again.ids, first.ids)
    assert len([p for p in (tmp_path / "cache/tokens").iterdir() if p.is_dir()]) == 1
    monkeypatch.undo()
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_file, "SMALL", 0)
    rows_file(path, [{"text": "other"}])
    assert token_file.tokenise(documents, framing).documents == 1


@pytest.mark.slow
def test_two_hundred_megabytes_take_less_than_one_gigabyte(tmp_path: Path) -> None:
    line = json.dumps({"text": "the quick brown fox jumps over the lazy dog and goes on " * 18}) + "\n"
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for _ in range(200_000_000 // len(line)):
            file.write(line)
    script = f"""
import resource as r
from unmask.training.data import DataConfig
from unmask.training.documents import Documents
from unmask.training.framing import Framing
from unmask.training.token_file import tokenise
from unmask.training.tokenizer import train_tokenizer
tokenizer = train_tokenizer("bpe", ["the quick brown fox jumps over the lazy dog and goes on"], 400)
tokens = tokenise(Documents(({str(path)!r},), DataConfig(files=("x",))), Framing(tokenizer, 0, 1))
print(len(tokens.ids), r.getrusage(r.RUSAGE_SELF).ru_maxrss // 1024)
"""
    environment = {**os.environ, "UNMASK_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    count, megabytes = map(int, done.stdout.split())
    assert count > 2_000_000
    assert megabytes < 1000


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "one", "text": "two"}', "'text' stands twice"),
        ('{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}', "'role' stands twice"),
        (json.dumps({"text": "a", "messages": TURNS}), "'text' and 'messages', of which one is learned"),
        (json.dumps({"text": "a", "prompt": "b", "response": "c"}), "'text' and 'response', of which one"),
        (json.dumps({"messages": [TURNS[0], {**TURNS[1], "weight": 0}]}), "turn 2 has weight 0"),
        (json.dumps({"messages": [TURNS[0], {"role": "assistant", "content": None}]}), "neither content nor"),
    ],
)
def test_a_row_that_may_be_read_in_two_ways_is_refused(tmp_path: Path, refused: Refused, line: str, says: str) -> None:
    """Which of two is learned is not guessed, and what a row asks for is not dropped."""
    (tmp_path / "a.jsonl").write_text(line)
    with refused("row 1", says):
        read(tmp_path / "a.jsonl")


def test_a_recipe_says_which_of_two_is_learned(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "messages": TURNS}))
    (document,) = read(tmp_path / "a.jsonl", columns={"messages": "messages"})
    assert [turn["content"] for turn in document.messages] == ["a", "b"]
