"""What a model says it can be asked for is what `generate` takes, for every family of the fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from unmask.decoding.convention import CONVENTIONS
from unmask.decoding.methods import DecodingDefaults
from unmask.decoding.request import CacheKind
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer

FIXTURES = Path(__file__).parent / "conformance"
FAMILIES = sorted(config.parent.name for config in FIXTURES.glob("*/config.json"))
OWN = ["austen", "austen-ar", "default"]
CHOOSE = (
    "rule",
    "sampler",
    "sub_block_length",
    "buffer_size",
)  # they choose the way, so another of them is another way


def values(name: str, said: dict[str, Any]) -> Iterator[Any]:
    """Values in the range that a parameter is said to have, none of which changes nothing."""
    if name == "convention":
        yield from said["choices"]
    elif "choices" in said:
        yield from (choice for choice in said["choices"] if choice != said.get("off"))
    elif said["type"] in ("array", "object", "boolean"):
        yield {"array": [1], "object": {"5": 1.5}, "boolean": True}[said["type"]]
    else:
        kind = int if said["type"] == "integer" else float
        low = said.get("minimum", said.get("exclusiveMinimum", 0))
        high = said.get("maximum", said.get("exclusiveMaximum", 8))
        tried = {kind(value) for value in (low + (high - low) / 2, 2, 1, 0.25) if low < value <= high}
        yield from tried - {0, said.get("off")}


def taken(lm: DiffusionLM, mode: str, options: dict[str, Any]) -> bool:
    try:
        lm.prepare([5, 6], 4, mode=mode, seed=0, **options)
    except UnmaskError:
        return False
    return True


def agree(lm: DiffusionLM) -> int:
    said = lm.capabilities()
    assert json.loads(json.dumps(said)) == said
    checked = 0
    for mode, ways in said["modes"].items():
        assert not ways or ways[0]["options"] == {}
        for way in ways:
            assert taken(lm, mode, way["options"])
            for name, parameter in said["parameters"].items():
                if name in CHOOSE or name in ("layout", "cache"):
                    continue
                tries = [taken(lm, mode, {**way["options"], name: value}) for value in values(name, parameter)]
                assert any(tries) == (name in way["parameters"]), (mode, way["method"], way["rule"], name)
                checked += 1
            for kind in get_args(CacheKind):
                assert taken(lm, mode, {**way["options"], "cache": kind}) == (kind in way["cache"])
        listed = {(way["rule"], way["sampler"]) for way in ways}
        for name in ("rule", "sampler"):
            for choice in said["parameters"][name]["choices"]:
                if choice != "none":
                    pair = (choice, None) if name == "rule" else (None, choice)
                    assert taken(lm, mode, {name: choice}) == (
                        pair in listed or (name, choice) in RENOISED[lm.config.layout]
                    )
    return checked


# a canvas of noise has no rule to choose, but takes the name of its own
RENOISED = {"canvas": [("rule", "entropy_bound")]}
for layout in ("bidirectional", "block_causal", "causal", "drafts"):
    RENOISED[layout] = []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_what_it_says_and_refuses_the_rest(family: str) -> None:
    lm = DiffusionLM.from_pretrained(FIXTURES / family)
    writes = lm.config.mask_token_id is not None or lm.config.corruption == "uniform" or lm.config.layout == "canvas"
    assert (agree(lm) > 10) == writes


@pytest.mark.parametrize("name", OWN)
def test_the_shipped_models_do_as_well(name: str) -> None:
    lm = DiffusionLM.from_pretrained(name)
    assert agree(lm) > 10
    said = lm.capabilities()
    assert said["chats"] == (name == "default")
    assert said["fills"] == (name == "austen")
    assert said["grammars"]


def test_a_refusal_lists_what_is_taken() -> None:
    lm = DiffusionLM.from_pretrained("austen-ar")
    with pytest.raises(UnmaskError) as unknown:
        lm.generate("Emma", 4, thresold=0.5)
    with pytest.raises(UnmaskError) as unread:
        lm.generate("Emma", 4, threshold=0.5)
    for error, says in ((unknown, "'thresold' is unknown"), (unread, "'threshold' changes nothing")):
        assert f"option {says} here; model 'austen-ar' in mode 'ar' takes cache, " in str(error.value)


def test_what_changes_nothing_is_taken_everywhere() -> None:
    """Values of clients that send every field they know."""
    lm = DiffusionLM.from_pretrained("austen-ar")
    plain = lm.generate("Emma", 4, seed=0)
    off = {"guidance": 0.0, "remask_budget": 0, "cache": "auto", "cache_refresh": 0, "sampler": "none", "top_k": 0}
    assert lm.generate("Emma", 4, seed=0, **off).token_ids == plain.token_ids


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions_are_reached_by_name_and_by_the_old_names_of_their_fields(
    name: str, tiny: Callable[..., Transformer], tmp_path: Path
) -> None:
    from dataclasses import asdict

    from unmask.decoding.methods import DecodingDefaults

    old = {"rule": "quota", **asdict(CONVENTIONS[name])}  # as a folder of before has it
    read = DecodingDefaults.read(old, "generation_config.json")
    lm = DiffusionLM(tiny(), None, read)
    assert lm.prepare([5], 4).requests[0].convention == CONVENTIONS[name]
    assert lm.prepare([5], 4, convention=name).requests[0].convention == CONVENTIONS[name]
    own = {"like": name, "schedule_eps": 0.25}
    assert lm.prepare([5], 4, convention=own).requests[0].convention.schedule_eps == 0.25
    lm.save_pretrained(tmp_path)
    again = DiffusionLM.from_pretrained(tmp_path)
    assert again.prepare([5], 4).requests[0].convention == CONVENTIONS[name]


def test_a_model_says_its_default_mode(tiny: Any) -> None:
    network = tiny(shift=True, in_place=True, layout="causal_blocks", block_length=4)
    lm = DiffusionLM(network, None, DecodingDefaults(mode="verify"))
    assert list(lm.capabilities()["modes"]) == ["verify", "diffusion", "ar"]
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.0, "ignore_eos": True}
    assert lm.generate([5, 6], **options).accepted == lm.generate([5, 6], mode="verify", **options).accepted != ()
    with pytest.raises(UnmaskError, match="mode is 'verify'; this model has diffusion"):
        DiffusionLM(tiny(), None, DecodingDefaults(mode="verify")).generate([5, 6], 4)
