"""Text that a base writes itself: its shape, its shards, resuming to the byte, and bases that cannot write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask import DiffusionLM
from unmask.errors import UnmaskError
from unmask.training.dialogues import Dialogues, read_shard, write_shard
from unmask.training.self_text import Surroundings, TextConfig, _Writer, make_text

Refused = Callable[..., Any]
SYSTEM = "<|im_start|>system\nbe good<|im_end|>\n"
BEFORE, BETWEEN = SYSTEM + "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
CONTROL, END = {0, 1, 2, 3}, 2
SMALL = TextConfig(tokens=1200, held_tokens=300, batch=16, length=64, turn=12)


@pytest.fixture(scope="module")
def lm(chat_base: Path) -> DiffusionLM:
    return DiffusionLM.from_pretrained(chat_base, backend="torch")


@pytest.fixture(scope="module")
def written(lm: DiffusionLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("text")
    make_text(lm, SMALL, folder, 7)
    return folder


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def tokens(folder: Path, kind: str) -> list[int]:
    return [len(read_shard(path)["ids"]) for path in sorted(folder.glob(f"{kind}-*.safetensors"))]


def dialogues(folder: Path) -> list[tuple[list[int], int]]:
    """Every dialogue's ids and where its answer starts."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        shard = read_shard(path)
        rest = shard["ids"].tolist()
        for length, answer in zip(shard["length"].tolist(), shard["answer"].tolist(), strict=True):
            found.append((rest[:length], answer))
            rest = rest[length:]
    return found


def of_base(lm: DiffusionLM, template: str | None, tokenizer: bool = True) -> DiffusionLM:
    """The same network with another template, with or without its tokenizer."""
    assert lm.loaded is not None
    loaded = replace(lm.loaded)
    vars(loaded)["templates"] = {} if template is None else {"default": template}
    return DiffusionLM(lm.model, lm.tokenizer if tokenizer else None, name="chat", loaded=loaded)


def writer(lm: DiffusionLM) -> _Writer:
    return _Writer(lm, SMALL, Surroundings.of(lm), np.random.default_rng(0), lambda _: None, 0)


# what is written


def test_the_template_is_cut_at_the_words_of_the_turns(lm: DiffusionLM) -> None:
    around = Surroundings.of(lm)
    assert lm.tokenizer is not None
    assert lm.tokenizer.decode(around.before, skip_special_tokens=False) == BEFORE
    assert lm.tokenizer.decode(around.between, skip_special_tokens=False) == BETWEEN
    assert (around.turn_end, around.answer_end, around.control) == (END, END, CONTROL)


def test_dialogues_are_what_a_chat_prompt_and_its_answer_would_be(lm: DiffusionLM, written: Path) -> None:
    assert lm.tokenizer is not None
    around, found = Surroundings.of(lm), dialogues(written)
    for ids, start in found:
        turn = ids[len(around.before) : start - len(around.between)]
        assert ids[:start] == around.before + turn + around.between
        prompt = [{"role": "user", "content": lm.tokenizer.decode(turn)}]
        assert lm.start(prompt, 1).first_canvas[:-1] == ids[:start]
        assert 1 <= len(turn) <= SMALL.turn
        assert not CONTROL & set(turn)
        answer = ids[start:]
        assert answer
        assert not CONTROL & set(answer[:-1])
        assert answer[-1] == END or answer[-1] not in CONTROL
        assert len(ids) <= SMALL.length
    assert any(ids[-1] == END for ids, _ in found)
    assert any(len(ids) == SMALL.length for ids, _ in found)
    assert len({tuple(ids) for ids, _ in found}) > 0.9 * len(found)


def test_an_answer_is_the_bases_own(lm: DiffusionLM, tmp_path: Path) -> None:
    """At temperature 0 it is what the base says to the turn when it is asked alone."""
    make_text(lm, replace(SMALL, tokens=1, held_tokens=0, answer_temperature=0.0), tmp_path, 0)
    found = dialogues(tmp_path)
    assert len(found) > 1
    for ids, start in found:
        alone = lm.generate(ids[:start], SMALL.length - start, mode="ar", temperature=0.0)
        assert alone.token_ids == ids[start : len(ids) - (ids[-1] == END)]


def test_turns_begin_with_the_openings(lm: DiffusionLM, tmp_path: Path) -> None:
    assert lm.tokenizer is not None
    openings = ("Anna", "he said", "")
    config = replace(SMALL, tokens=1, held_tokens=0, batch=200, turn=30, openings=openings)
    make_text(lm, config, tmp_path, 3)
    start = len(Surroundings.of(lm).before)
    turns = [ids[start:] for ids, _ in dialogues(tmp_path)]
    ids = [lm.tokenizer.encode(text, add_special_tokens=False).ids for text in openings[:2]]
    begun = [sum(turn[: len(opening)] == opening for turn in turns) for opening in ids]
    assert all(begun)
    assert sum(begun) < len(turns)
    make_text(lm, config, tmp_path, 3)  # what is there is known to be of these openings
    with pytest.raises(UnmaskError, match="sampling"):
        make_text(lm, replace(config, openings=("",)), tmp_path, 3)


def test_as_much_is_written_as_was_asked_for(written: Path) -> None:
    for kind, wanted in (("held", SMALL.held_tokens), ("train", SMALL.tokens)):
        sizes = tokens(written, kind)
        assert sum(sizes) >= wanted > sum(sizes[:-1])
    assert not list(written.glob(".*"))


def test_a_trainer_reads_it(written: Path) -> None:
    data = Dialogues((f"{written}/train-*.safetensors",), 64, 0)
    assert len(data.tokens.ids) == sum(tokens(written, "train"))
    assert data.rows(0, 4).supervised.any(1).all()


def test_nothing_held_out_where_none_is_asked_for(lm: DiffusionLM, tmp_path: Path) -> None:
    make_text(lm, replace(SMALL, tokens=1, held_tokens=0), tmp_path, 0)
    assert list(shards(tmp_path)) == ["train-0000.safetensors"]


def test_progress_grows_from_nothing_to_all_of_it(lm: DiffusionLM, tmp_path: Path) -> None:
    told: list[int] = []
    make_text(lm, SMALL, tmp_path, 7, told.append)
    assert told[0] == 0
    assert told[-1] == sum(tokens(tmp_path, "held") + tokens(tmp_path, "train"))
    assert len(told) > 100
    told.clear()
    make_text(lm, SMALL, tmp_path, 7, told.append)  # all of it is there
    assert told == [sum(tokens(tmp_path, "held") + tokens(tmp_path, "train"))]


# resuming


def test_a_shard_that_was_deleted_comes_back_to_the_byte(lm: DiffusionLM, written: Path, tmp_path: Path) -> None:
    whole = shards(written)
    assert len(whole) >= 4
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lost = ["held-0000.safetensors", "train-0001.safetensors"]
    for name in lost:
        (tmp_path / name).unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    make_text(lm, SMALL, tmp_path, 7)
    assert shards(tmp_path) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_run_that_was_killed_goes_on(lm: DiffusionLM, written: Path, tmp_path: Path) -> None:
    def kill(made: int) -> None:
        if made > 700:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_text(lm, SMALL, tmp_path, 7, kill)
    whole, some = shards(written), shards(tmp_path)
    assert 0 < len(some) < len(whole)
    assert not list(tmp_path.glob(".*"))
    make_text(lm, SMALL, tmp_path, 7)
    assert shards(tmp_path) == whole


def test_more_tokens_add_shards(lm: DiffusionLM, written: Path, tmp_path: Path) -> None:
    make_text(lm, replace(SMALL, tokens=1, held_tokens=1), tmp_path, 7)
    few = shards(tmp_path)
    make_text(lm, SMALL, tmp_path, 7)
    assert few.items() <= shards(tmp_path).items()
    assert shards(tmp_path) == shards(written)


def test_every_seed_and_shard_has_text_of_its_own(lm: DiffusionLM, written: Path, tmp_path: Path) -> None:
    make_text(lm, replace(SMALL, tokens=1, held_tokens=1), tmp_path, 8)
    every = [*shards(written).values(), *shards(tmp_path).values()]
    assert len(set(every)) == len(every)


def test_text_of_other_settings_is_not_added_to(lm: DiffusionLM, written: Path, refused: Refused) -> None:
    before = shards(written)
    for config, seed in ((replace(SMALL, answer_top_k=3), 7), (SMALL, 8), (replace(SMALL, batch=8), 7)):
        with refused(written, "--output"):
            make_text(lm, config, written, seed)
    assert shards(written) == before


def test_text_made_elsewhere_is_not_added_to(lm: DiffusionLM, tmp_path: Path, refused: Refused) -> None:
    write_shard(tmp_path / "train-s1-0000.safetensors", [([4, 5, 6], 1)])
    with refused(tmp_path, "train-s1-0000", "--stage train"):
        make_text(lm, SMALL, tmp_path, 0)


def test_a_damaged_shard_is_named(lm: DiffusionLM, tmp_path: Path, refused: Refused) -> None:
    make_text(lm, replace(SMALL, tokens=1, held_tokens=0), tmp_path, 0)
    path = tmp_path / "train-0000.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with refused(path):
        make_text(lm, SMALL, tmp_path, 0)


# bases that cannot write


def test_a_base_needs_a_chat_template_and_a_tokenizer(lm: DiffusionLM, tmp_path: Path, refused: Refused) -> None:
    with refused("chat", "has no chat template"):
        make_text(of_base(lm, None), SMALL, tmp_path, 0)
    with refused("chat", "has no tokenizer"):
        make_text(of_base(lm, lm.chat_template, tokenizer=False), SMALL, tmp_path, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}user: {{ m['content'] }}\n{% endfor %}",  # turns end in plain text
        "<|im_start|>user<|im_end|>",  # what was said is not in it
        "{{ messages[0]['content'] }}",
    ],
)
def test_a_template_must_show_where_turns_end(lm: DiffusionLM, tmp_path: Path, refused: Refused, template: str) -> None:
    with refused("chat", "control token"):
        make_text(of_base(lm, template), SMALL, tmp_path, 0)


def test_a_template_may_begin_with_the_turn(lm: DiffusionLM, tmp_path: Path) -> None:
    """Nothing before it is an empty prompt, which starts at a control token."""
    template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    make_text(of_base(lm, template), replace(SMALL, tokens=1, held_tokens=0), tmp_path, 0)
    assert all(ids[0] == END for ids, _ in dialogues(tmp_path))


def test_a_row_must_have_room_for_a_dialogue(lm: DiffusionLM, tmp_path: Path, refused: Refused) -> None:
    with refused("36 tokens", "data.length"):
        make_text(lm, replace(SMALL, length=37), tmp_path, 0)
    make_text(lm, replace(SMALL, length=38, batch=64, tokens=1, held_tokens=0), tmp_path, 0)
    assert {(len(ids), start) for ids, start in dialogues(tmp_path)} == {(38, 37)}


@pytest.mark.parametrize("says", [[5] * 70, [1], [2]], ids=["no end", "another turn", "nothing"])
def test_a_base_that_writes_no_dialogue_is_given_up(
    lm: DiffusionLM, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, says: list[int]
) -> None:
    def sample(self: Any, prompts: list[Any], room: int, *_: object) -> list[list[int]]:
        return [says[:room] for _ in prompts]

    monkeypatch.setattr(_Writer, "sample", sample)
    with refused("chat", "no dialogue in 128 tries"):
        make_text(lm, SMALL, tmp_path, 0)


@pytest.mark.parametrize("turn", [[2], [5, 0], [5, 1, 5, 2], [5] * 13 + [2], [5] * 13])
def test_turns_are_dropped_that_are_empty_too_long_or_not_text(
    lm: DiffusionLM, monkeypatch: pytest.MonkeyPatch, turn: list[int]
) -> None:
    good = [6] * 12
    monkeypatch.setattr(_Writer, "sample", lambda *_: [[*good, 2, 9], turn[: SMALL.turn + 1]])
    own = writer(lm)
    assert replace(own, config=replace(own.config, batch=2)).turns() == [good]


@pytest.mark.parametrize(
    ("answer", "kept"),
    [([5, 6, 2, 7], [5, 6, 2]), ([5, 6, 0, 7], [5, 6]), ([5] * 40, [5] * 22), ([2, 5], [2]), ([1, 5], None)],
)
def test_answers_end_at_their_first_control_token_or_with_the_row(
    lm: DiffusionLM, monkeypatch: pytest.MonkeyPatch, answer: list[int], kept: list[int] | None
) -> None:
    own = writer(lm)
    monkeypatch.setattr(_Writer, "sample", lambda *_: [answer])
    found = own.answered([[*own.around.before, *[7] * 6, *own.around.between]])
    assert [ids[start:] for ids, start in found] == ([] if kept is None else [kept])


def test_a_model_without_ar_is_refused(
    tiny: Callable[..., Any], lm: DiffusionLM, tmp_path: Path, refused: Refused
) -> None:
    other = DiffusionLM(tiny(vocab_size=32, max_length=128), lm.tokenizer, name="chat", loaded=lm.loaded)
    with refused("chat", "diffusion", "ar"):
        make_text(other, SMALL, tmp_path, 0)
