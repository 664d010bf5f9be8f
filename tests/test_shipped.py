"""The models in the package: they load by name, write, fill and score as their card says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from unmask import DiffusionLM
from unmask.checkpoints import hub
from unmask.training.documents import Document
from unmask.training.framing import Framing

HELD_OUT = Path(__file__).parent.parent / "data" / "austen" / "persuasion.txt"


def bits_per_character(lm: DiffusionLM, text: str, samples: int = 1) -> tuple[float, float]:
    score = lm.likelihood([text], samples=samples)[0]
    return score.nats / math.log(2) / len(text), score.std_error / math.log(2) / len(text)


def test_they_are_shipped_and_small() -> None:
    folders = [hub.find(name) for name in ("assist", "assist-ar", "austen", "austen-ar", "default", "sudoku")]
    sizes = [file.stat().st_size for folder in folders for file in folder.iterdir()]
    assert max(sizes) < 20e6
    assert sum(sizes) < 90e6
    assert all((folder / "README.md").is_file() for folder in folders)


def test_austen_writes_50_and_400_tokens_in_the_same_number_of_steps() -> None:
    lm = DiffusionLM.from_pretrained("austen")
    outs = [lm.generate("Emma was", n, rule="quota", max_denoising_steps=4, seed=1) for n in (50, 400)]
    assert [out.steps for out in outs] == [4, 4]
    assert "\ufffd" not in outs[0].text
    assert lm.fill("Mr. Darcy was [[mask:3]].", seed=1).text.startswith("Mr. Darcy was")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_assist_decides_by_its_own_form(backend: str) -> None:
    lm = DiffusionLM.from_pretrained("assist", backend=backend)
    home = "areas: Den, Bedroom\nlight: Desk Lamp, Ceiling Light\nclimate: Thermostat"
    state = [{"role": "system", "content": home}, {"role": "user", "content": "turn off the desk lamp"}]
    questions = [
        {"type": "choice", "name": "intent", "choices": ["HassTurnOn", "HassTurnOff", "HassGetState"]},
        {"type": "choice", "name": "device", "choices": ["Ceiling Light", "Desk Lamp", "Thermostat"]},
    ]
    decisions = lm.decide(state, questions, form='[{"name":"[[intent]]","arguments":{"name":"[[device]]"}}]')
    assert [decision.answer for decision in decisions] == ["HassTurnOff", "Desk Lamp"]
    assert all(decision.confidence > 0.9 for decision in decisions)


@pytest.mark.parametrize("name", ["assist", "assist-ar"])
def test_assist_can_be_taught_conversations(name: str) -> None:
    lm = DiffusionLM.from_pretrained(name)
    assert lm.tokenizer is not None
    assert lm.config.eos_token_id is not None
    answer = '[{"name":"HassNevermind","arguments":{}}]'
    asked = [{"role": "system", "content": "light: Desk Lamp"}, {"role": "user", "content": "never mind"}]
    turns = (*asked, {"role": "assistant", "content": answer})
    framing = Framing(lm.tokenizer, lm.config.eos_token_id, template=lm.templates, special_tokens=lm.special_tokens)
    ((ids, learned),) = framing.pieces([Document(messages=turns)])
    assert ids[~learned].tolist() == lm.encode(asked)[0]
    assert lm.tokenizer.decode(ids[learned].tolist()) == answer


def test_the_twins_are_one_network_and_one_tokenizer() -> None:
    one, other = DiffusionLM.from_pretrained("austen"), DiffusionLM.from_pretrained("austen-ar")
    assert one.model.num_parameters() == other.model.num_parameters()
    assert one.tokenizer is not None
    assert other.tokenizer is not None
    assert one.tokenizer.to_str() == other.tokenizer.to_str()


def test_they_have_learned_the_held_out_novel() -> None:
    """Far below the unigram entropy of these tokens (about 2.4 bits a character)."""
    text = HELD_OUT.read_text(encoding="utf-8")[20000:26000]
    ar, _ = bits_per_character(DiffusionLM.from_pretrained("austen-ar"), text)
    bound, error = bits_per_character(DiffusionLM.from_pretrained("austen"), text, samples=4)
    assert ar < 1.7
    assert bound < 1.95 + 2 * error


@pytest.mark.slow
def test_the_bound_over_the_twins_exact_bits() -> None:
    """On the whole held-out novel, at most 1.15."""
    text = HELD_OUT.read_text(encoding="utf-8")
    ar, _ = bits_per_character(DiffusionLM.from_pretrained("austen-ar"), text)
    bound, _ = bits_per_character(DiffusionLM.from_pretrained("austen"), text, samples=4)
    assert bound / ar <= 1.15


def test_sudoku_solves_a_well_known_grid_in_a_few_steps() -> None:
    from unmask.evaluation.sudoku import solutions

    puzzle = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
    out = DiffusionLM.from_pretrained("sudoku").fill(puzzle.replace(".", "[[mask:1]]"))
    assert [out.text] == solutions(puzzle)
    assert out.steps <= 8
