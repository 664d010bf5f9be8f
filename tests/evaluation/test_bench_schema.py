"""`unmask bench schema`: its set, its figures, and that it tells a wrong text from a right one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
from benchmarks.schema import TIGHT, _fault, bench_schema
from benchmarks.schema_set import SCHEMAS

from unmask.decoding.methods import DecodingDefaults
from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer


def test_the_set_is_thirty_schemas() -> None:
    assert len(SCHEMAS) == 30
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_request_is_counted_and_checked(tiny: Callable[..., Transformer]) -> None:
    tokenizer = train_tokenizer("bpe", ['{"name": "a", "address": {"street": ""}}' * 4], 290)
    sizes: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0}
    network = tiny(1, layout="causal", shift=True, max_length=256, **sizes)
    result = bench_schema(DiffusionLM(network, tokenizer, DecodingDefaults(), "left"), 7, 60, lambda text: None)
    assert [one.fault for one in result.asked] == [""] * 7
    assert result.asked[TIGHT - 1].tokens == result.asked[TIGHT - 1].room  # the shortest text, and no token more
    told = result.to_dict()
    assert told["all"]["requests"] == told["all"]["valid"] == sum(m["valid"] for m in told["modes"].values()) == 7
    assert list(told["compile_seconds"]) == list(SCHEMAS)[:7]


def test_a_text_that_is_not_valid_is_a_fault() -> None:
    validator = jsonschema.Draft202012Validator({"type": "integer"})
    assert _fault("3", validator) == ""
    assert _fault("3.5", validator) == "3.5 is not of type 'integer'"
    assert _fault("{", validator).startswith("not JSON: ")
