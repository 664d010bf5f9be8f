"""Stories by rule (tools/stories/make.py): topics held out, what is sound, resuming."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from unmask.backends.native import network

SOUND = (
    "Mia was a girl who lived by the sea. She liked to look at ships and wave to the sailors. One day, Mia lost a red "
    'hat. She asked every fisherman, but nobody knew. "It was a gift," she said. Then a bird brought it back. They '
    "shared some bread."
)


@pytest.fixture(scope="module")
def make() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "stories" / "make.py"
    spec = importlib.util.spec_from_file_location("make_stories", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_held_out_troubles_are_in_held_out_stories_alone(make: ModuleType) -> None:
    stories = [make.begun(number) for number in range(4000)]
    held = {story.trouble for story in stories if make.held_out(story.number)}
    seen = {story.trouble for story in stories if not make.held_out(story.number)}
    assert held == set(make.HELD)
    assert len(held) == 16
    assert seen == set(make.TROUBLES) - held
    assert stories[:50] == [make.begun(number) for number in range(50)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (SOUND, ""),
        (SOUND[:120], "length"),
        (SOUND.replace("sea", "sea 2"), "characters"),
        (SOUND.replace("said.", 'said."'), "quotes"),
        (SOUND.replace("hat. She", "hat.She"), "spaces"),
        (SOUND + " They shared some bread.", "a sentence twice"),
        (SOUND + " The bird and the girl and the bird and the girl sang to the girl and the bird.", "repeats itself"),
        (SOUND.replace("red hat", "red, red, red hat"), "a word again and again"),
        (SOUND.replace("bread", "stories"), "about the story"),
    ],
)
def test_what_is_no_sound_story_is_named(make: ModuleType, text: str, why: str) -> None:
    assert make.fault({"ended": True, "text": text}) == why
    assert make.fault({"ended": False, "text": text}) == "no end"


def test_gathering_drops_what_is_like_earlier_stories(make: ModuleType, tmp_path: Path) -> None:
    other = SOUND.replace("Mia", "Tom").replace("hat", "cap")
    rows = [(1, SOUND), (2, SOUND), (3, SOUND[:100]), (make.HELD_EVERY - 1, other), (0, SOUND.replace("bird", "dog"))]
    lines = [json.dumps({"n": number, "tokens": 9, "ended": True, "text": text}) + "\n" for number, text in rows]
    (tmp_path / make.RAW).write_text("".join(lines) + '{"n": 9, "tok')
    make.gather(tmp_path)
    kept = [json.loads(row)["text"] for row in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert kept == [rows[4][1]]  # number 0 comes first, and the others share most runs of words with it
    assert (tmp_path / "held-out.jsonl").read_text() == ""
    assert (tmp_path / make.RAW).read_text() == "".join(lines)


def test_a_story_is_of_its_number_alone(make: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if network.library() is None:
        pytest.skip("installed without a C compiler")
    monkeypatch.setattr(make, "BASE", "austen-ar")
    monkeypatch.setattr(make.DiffusionLM, "render_chat", lambda self, messages: messages[0]["content"] + " ")
    whole = tmp_path / "whole.jsonl"
    parts = tmp_path / "parts.jsonl"
    make.write(900, 4, 1e9, whole)
    make.write(200, 2, 1e9, parts)
    first = len(list(make.records(parts)))
    make.write(900, 3, 1e9, parts)
    one, other = ({row["n"]: row for row in make.records(path)} for path in (whole, parts))
    assert len(other) > first > 0
    assert any(row["ended"] for row in one.values())
    assert len(one.keys() & other.keys()) > first
    assert all(one[number] == other[number] for number in one.keys() & other.keys())
