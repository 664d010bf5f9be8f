"""Schemas as people have them: what is written under them holds for jsonschema and for pydantic."""

import json
import warnings
from typing import Any

import numpy as np
import pydantic
import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from structured.pydantic_models import TYPES
from structured.written_schemas import WRITTEN
from unmask.structured.dfa import compile_language
from unmask.structured.effort import Effort, TooLarge
from unmask.structured.json_schema import SIZES, read_schema
from unmask.structured.language import Dfa

# pydantic asks for more than the schema that it makes says: text that is a number, a time without a zone or past, a
# file that is there, a user or a scheme in an address
STRICTER = {
    "Times", "Numbers", "Network", "decimal", "fraction of union", "byte size", "root dict", "Event",
}  # fmt: skip
SAMPLES = 40


def automaton(schema: Any) -> Dfa:
    for sizes in SIZES:
        effort = Effort()
        try:
            return compile_language(read_schema(schema, effort, sizes), effort)
        except TooLarge:
            if sizes is SIZES[-1]:
                raise
    raise AssertionError


def distances(dfa: Dfa) -> Any:
    """Fewest bytes from each state to an end."""
    out = np.where(dfa.final, 0, 10**9)
    out[0] = 10**9
    while True:
        nearer = np.minimum(out, out[dfa.table].min(1) + 1)
        nearer[0] = 10**9
        if (nearer == out).all():
            return out
        out = nearer


def samples(dfa: Dfa, count: int, seed: int) -> list[bytes]:
    """Texts by chance: any byte for some time, then the shortest way to an end."""
    rng = np.random.default_rng(seed)
    far = distances(dfa)
    some = [np.unique(dfa.group, return_index=True)[1], np.arange(256)]
    texts = []
    for _ in range(count):
        state = 1
        text = bytearray()
        patience = int(rng.integers(0, 300))
        while not (dfa.final[state] and (len(text) >= patience or rng.random() < 0.1)):
            choices = some[int(rng.integers(2))]
            targets = dfa.table[state, dfa.group[choices]]
            alive = (targets > 0).nonzero()[0]
            if not len(alive):
                break
            if len(text) >= patience:
                alive = alive[far[targets[alive]] == far[targets[alive]].min()]
            text.append(int(choices[pick := rng.choice(alive)]))
            state = int(targets[pick])
        texts.append(bytes(text))
    return texts


def check(schema: Any, texts: list[bytes]) -> list[Any]:
    kind = validator_for(schema, Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    values = [json.loads(text) for text in texts]
    for value in values:
        errors = [error.message for error in validator.iter_errors(value)]
        assert not errors, (value, errors)
    return values


@pytest.mark.parametrize("name", TYPES)
def test_pydantic_types(name: str) -> None:
    adapter = pydantic.TypeAdapter(TYPES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = adapter.json_schema()
    texts = samples(automaton(schema), SAMPLES, seed=len(name))
    check(schema, texts)
    for text in texts if name not in STRICTER else []:
        adapter.validate_json(text)


@pytest.mark.parametrize("name", WRITTEN)
def test_written_schemas(name: str) -> None:
    schema, value = WRITTEN[name]
    dfa = automaton(schema)
    check(schema, samples(dfa, SAMPLES, seed=len(name)))
    (shown,) = check(schema, [json.dumps(value).encode()])
    assert dfa.holds(json.dumps(shown, ensure_ascii=False).encode()), value
