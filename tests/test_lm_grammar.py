"""Structured output through `generate`: complete and valid, whatever the model, mode, rule, temperature and room."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.decoding.methods import DecodingDefaults
from unmask.decoding.rules import RULES as ALL_RULES
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer

TEXT = '{"name": "ab", "n": 12, "tags": ["a", "b"], "ok": true, "x": null, "kind": false} ' * 3
SPECIAL: dict[str, Any] = {"mask_token_id": 1, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 3, "maximum": 40}},
    "required": ["name", "n"],
}


@pytest.fixture(scope="module")
def lms(tiny: Callable[..., Transformer], drafting: Callable[..., Any]) -> dict[str, DiffusionLM]:
    tokenizer = train_tokenizer("bpe", [TEXT], 300)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "max_length": 128, **SPECIAL}
    networks = {
        "canvas": tiny(1, mask_in_softmax=True, **sizes),
        "shifted": tiny(2, shift=True, **sizes),
        "blocks": tiny(3, layout="block_causal", block_length=4, shift=True, **sizes),
        "left": tiny(4, layout="causal", shift=True, **sizes),
        "behind": tiny(7, layout="causal_blocks", block_length=4, shift=True, **sizes),
        "drafts": drafting(5, strength=0.3, **sizes)[1],
        "narrow": drafting(6, strength=0.3, **sizes)[1],
    }
    networks["narrow"].draft_vocabulary = torch.arange(2, 60)  # drafts that can say little of what is allowed
    return {name: DiffusionLM(network, tokenizer, DecodingDefaults(), name) for name, network in networks.items()}


LEAVES = st.sampled_from(
    [
        {"type": "boolean"},
        {"const": "ab"},
        {"enum": [1, "a", None]},
        {"type": "integer", "minimum": -3, "maximum": 12},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 2},
        {"type": "string", "maxLength": 4},
        {"type": "string", "pattern": "^a+b?$"},
        {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 2}]},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.integers(0, 2), st.integers(2, 3)).map(
            lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[2]}
        ),
        st.tuples(inner, inner, st.booleans()).map(
            lambda t: {
                "type": "object",
                "properties": {"n": t[0], "x": t[1]},
                "required": ["n", "x"][: 1 + t[2]],
                "additionalProperties": False,
            }
        ),
    ),
    max_leaves=4,
)
RULES = st.sampled_from([{"rule": rule} for rule in ALL_RULES])
PACE = st.fixed_dictionaries({
    "max_denoising_steps": st.sampled_from([None, 1, 3]),
    "threshold": st.sampled_from([0.02, 0.6]),
    "remask_budget": st.sampled_from([0, 0, 6]),
    "convention": st.sampled_from(["unmask", {"whole_blocks": True}]),
})  # fmt: skip
FULL = st.fixed_dictionaries(
    {"block_length": st.sampled_from([None, 5]), "cache": st.sampled_from(["none", "prefix", "dual"])}
)
PARTS = st.fixed_dictionaries({"sub_block_length": st.sampled_from([None, 2])})
WAYS: dict[str, Any] = {
    "canvas": st.tuples(RULES, PACE, FULL),
    "shifted": st.tuples(RULES, PACE, FULL),
    "blocks": st.tuples(RULES, PACE, PARTS),
    "left": st.just(({"mode": "ar"},)),
}
for name in ("drafts", "narrow"):
    checked = st.just(({"mode": "diffusion", "rule": "checked"},))
    slides = st.tuples(st.sampled_from([{"rule": r} for r in ALL_RULES if r != "token_edit"]), PACE)
    WAYS[name] = st.one_of(st.sampled_from([({"mode": "ar"},), ({"mode": "verify"},)]), checked, slides)
KEPT = st.sampled_from([{"mode": "diffusion", "rule": r} for r in ("prefix", "prefix_entropy", "self_speculative")])
WAYS["behind"] = st.one_of(st.sampled_from([({"mode": "ar"},), ({"mode": "verify"},)]), st.tuples(KEPT, PACE))
MODELS_AND_WAYS = st.sampled_from(list(WAYS)).flatmap(lambda name: st.tuples(st.just(name), WAYS[name]))
WARM = st.fixed_dictionaries({
    "temperature": st.sampled_from([0.0, 0.7, 1.5]), "top_k": st.sampled_from([0, 3]), "seed": st.integers(0, 99)
})  # fmt: skip


def generated(lm: DiffusionLM, count: int, options: dict[str, Any], **rule: Any) -> str:
    """The text, checked: it ends with an end of text, or where the canvas does. Options that are not read are left
    out."""
    modes = lm.capabilities()["modes"]
    ways = modes[options.get("mode") or next(iter(modes))]
    parts = "sub_blocks" if options.get("sub_block_length") else "denoise"
    ways = [way for way in ways if way["rule"] == options.get("rule")]
    way = next((way for way in ways if way["method"] == parts), ways[0])
    options = {name: v for name, v in options.items() if name in ("mode", "seed", *way["parameters"])}
    out = lm.generate("the", count, **options, **rule)
    written = out.written.tolist()[-count:]
    assert len(out.token_ids) == count or written[len(out.token_ids)] == SPECIAL["eos_token_id"]
    assert len(out.token_ids) <= count
    text: str = out.text
    return text


@settings(max_examples=60)
@given(SCHEMAS, MODELS_AND_WAYS, WARM, st.integers(0, 25))
def test_any_schema_in_any_way_is_valid(
    lms: dict[str, DiffusionLM], schema: Any, chosen: Any, warm: dict[str, Any], room: int
) -> None:
    name, ways = chosen
    options = {key: value for way in ways for key, value in way.items()} | warm
    shortest = lms[name].grammar(schema).shortest
    text = generated(lms[name], min(shortest + room, 100), options, json_schema=schema)
    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@settings(max_examples=15)
@given(SCHEMAS, WARM)
def test_any_schema_by_self_speculation_is_valid(
    lms: dict[str, DiffusionLM], schema: Any, warm: dict[str, Any]
) -> None:
    lm = lms["behind"]
    count = min(lm.grammar(schema).shortest + 15, 100)
    text = generated(lm, count, {"mode": "diffusion", "rule": "self_speculative", **warm}, json_schema=schema)
    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@settings(max_examples=20)
@given(MODELS_AND_WAYS, WARM, st.integers(0, 12))
def test_a_regular_expression_matches_the_whole(
    lms: dict[str, DiffusionLM], chosen: Any, warm: dict[str, Any], room: int
) -> None:
    name, ways = chosen
    options = {key: value for way in ways for key, value in way.items()} | warm
    pattern = r"(\d{2}-)+[a-é]{1,3}|no+"
    text = generated(lms[name], 4 + room, options, regex=pattern)
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("model", ["drafts", "narrow"])
def test_verify_is_ar(lms: dict[str, DiffusionLM], model: str) -> None:
    for block in (2, 4):
        for count in (24, 60):
            ar = lms[model].generate("the", count, mode="ar", json_schema=PERSON)
            verify = lms[model].generate("the", count, mode="verify", json_schema=PERSON, block_length=block)
            assert verify.token_ids == ar.token_ids
            assert verify.steps < len(ar.token_ids)  # what only one token may be is drafted


def test_verify_has_the_distribution_of_ar(lms: dict[str, DiffusionLM]) -> None:
    counts = {}
    for mode in ("ar", "verify"):
        asked = {"regex": "[ab]{2}(c|n)?", "temperature": 1.0, "top_k": 3, "mode": mode}
        outs = lms["drafts"].generate(["the"] * 300, 6, seed=0, **asked)
        counts[mode] = Counter(out.text for out in outs)
    off = sum(abs(counts["ar"][text] - counts["verify"][text]) for text in counts["ar"] | counts["verify"])
    assert len(counts["ar"]) > 4
    assert off / 600 < 0.1


def test_the_steps_asked_for_are_enough(lms: dict[str, DiffusionLM]) -> None:
    for rule in ("quota", "threshold", "random"):
        out = lms["canvas"].generate("a", 60, json_schema=PERSON, rule=rule, max_denoising_steps=4, temperature=1.0)
        assert out.steps <= 4
        jsonschema.validate(json.loads(out.text), PERSON)


def test_company_does_not_matter(lms: dict[str, DiffusionLM]) -> None:
    lm, prompts = lms["canvas"], ["the", "a name", "n"]
    asked: dict[str, Any] = {"json_schema": PERSON, "temperature": 1.0, "max_denoising_steps": 9}
    together = lm.generate(prompts, 40, seed=4, **asked)
    alone = [lm.generate(prompt, 40, seed=4 + i, **asked) for i, prompt in enumerate(prompts)]
    assert [out.token_ids for out in together] == [out.token_ids for out in alone]


def test_a_compiled_grammar_is_kept_and_can_be_handed_in(lms: dict[str, DiffusionLM]) -> None:
    lm = lms["canvas"]
    grammar = lm.grammar(PERSON)
    assert lm.grammar(json.dumps(PERSON, separators=(",", ":"))) is grammar
    asked: dict[str, Any] = {"seed": 3, "temperature": 0.8}
    assert lm.generate("a", 40, grammar=grammar, **asked).text == lm.generate("a", 40, json_schema=PERSON, **asked).text


@pytest.mark.parametrize(
    ("count", "options", "says"),
    [
        (5, {"json_schema": PERSON}, "5 new tokens are too few: the shortest text that fits the JSON schema takes"),
        (40, {"json_schema": PERSON, "regex": "a"}, "give one of them"),
        (40, {"json_schema": PERSON, "stop": "a"}, "a stop would cut"),
        (40, {"json_schema": PERSON, "eos_token_ids": [3]}, "leave out eos_token_ids"),
        (40, {"json_schema": PERSON, "sampler": "ancestral"}, "cannot be held to a grammar"),
        (40, {"json_schema": "{"}, "is not JSON"),
        (40, {"json_schema": {"not": {}}}, "'not'"),
        (40, {"regex": "(a"}, "never closed"),
        (40, {"regex": "(a|b)*a(a|b){40}"}, "the grammar is too large"),
    ],
)
def test_what_cannot_be_done_is_said(lms: dict[str, DiffusionLM], count: int, options: Any, says: str) -> None:
    with pytest.raises(UnmaskError) as error:
        lms["canvas"].generate("a", count, **options)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def letters(tiny: Any) -> DiffusionLM:
    """A model of single bytes, in whose grammars most tokens are forced."""
    tokenizer = train_tokenizer("byte", [], 0)
    size = tokenizer.get_vocab_size()
    network = tiny(4, vocab_size=size, layout="causal", shift=True, max_length=256, **SPECIAL)
    return DiffusionLM(network, tokenizer, DecodingDefaults(), "letters")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_what_is_forced_takes_no_step_and_changes_nothing(
    letters: DiffusionLM, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"json_schema": PERSON, "temperature": temperature, "seed": 3}
    fast = letters.generate("the", 90, **asked)
    grammar = letters.grammar(PERSON)
    with monkeypatch.context() as patch:
        patch.setattr(grammar, "forced", lambda state, left: [])
        patch.setattr(grammar, "run", lambda state: ())
        slow = letters.generate("the", 90, **asked)
    assert fast.token_ids == slow.token_ids
    assert fast.steps < slow.steps / 1.5
    assert sorted(p for frame in fast.frames for p in frame.positions) == sorted(
        p for frame in slow.frames for p in frame.positions
    )


def test_forced_tokens_are_those_that_alone_may_come(letters: DiffusionLM) -> None:
    grammar = letters.grammar(None, "(ab|ac)def?")
    assert grammar.forced(grammar.start, 9) == [letters.tokenizer.encode("a").ids[0]]  # type: ignore[union-attr]
    state = grammar.read(letters.tokenizer.encode("ab").ids)  # type: ignore[union-attr]
    assert letters.tokenizer.decode(grammar.forced(state, 9)) == "de"  # type: ignore[union-attr]
    for left in (2, 3, 9):
        state = grammar.start
        for token in letters.tokenizer.encode("abde").ids[:left]:  # type: ignore[union-attr]
            only = grammar.allowed(state, 4).nonzero()[0].tolist() if state else []
            run = grammar.forced(state, 4)
            assert run[:1] == (only if len(only) == 1 and not grammar.automaton.final[state] else [])
            state = grammar.step(state, token)


def test_a_canvas_writes_what_is_forced_at_once(tiny: Any) -> None:
    tokenizer = train_tokenizer("byte", [], 0)
    network = tiny(5, vocab_size=tokenizer.get_vocab_size(), max_length=256, pad_token_id=0, mask_token_id=1)
    lm = DiffusionLM(network, tokenizer, DecodingDefaults(), "canvas")
    out = lm.generate("the", 12, regex="[a-c]hello w[a-c]rld", rule="sequential")
    assert re.fullmatch("[a-c]hello w[a-c]r", out.text[:10])
    assert out.steps <= 3  # two letters are free
