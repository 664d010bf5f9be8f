"""Penalties, biases and floors in their closed forms, by every backend's logits and in every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unmask.backends.native import network as native
from unmask.backends.native.logits import NativeLogits
from unmask.backends.torch import TorchLogits
from unmask.canvas import Array
from unmask.decoding.feed import Sampling
from unmask.decoding.methods import DecodingDefaults
from unmask.decoding.processors import Adjustment
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM

VOCAB, MASK = 9, 8


def plain(count: int, temperature: float = 1.0) -> Sampling:
    zeros = np.zeros(count)
    return Sampling(zeros + temperature, np.zeros(count, np.int64), np.ones(count), zeros + 0.5, zeros)


pytestmark = pytest.mark.skipif(native.library() is None, reason="installed without a C compiler")


class Network:
    vocabulary = None
    threads = 1

    class config:
        vocab_size = 4


def both(logits: Array) -> list[Any]:
    compiled = NativeLogits(
        Network(),
        logits.copy(),
        logits[:0],
        np.zeros(len(logits), bool),
        logits[:0],
        logits[:0],  # type: ignore[arg-type]
    )
    return [TorchLogits(torch.from_numpy(logits.copy())), compiled]


@pytest.mark.parametrize("which", [0, 1])
def test_an_adjustment_is_its_closed_form(which: int) -> None:
    logits = np.array([[2.0, -1.0, 0.5, 0.0]] * 2, np.float32)
    made = both(logits)[which]
    repeated = np.array([[True, True, False, False]] * 2)
    bias = np.array([[0.0, 0.0, 3.0, -np.inf]] * 2, np.float32)
    made.adjust(np.array([1]), Adjustment(repeated[:1], 2.0, bias[:1], -np.inf))
    p = made.probabilities(np.array([0, 1]), plain(2))
    for row, expected in ((0, [2.0, -1.0, 0.5, 0.0]), (1, [1.0, -2.0, 3.5, -np.inf])):
        weights = np.exp(np.array(expected))
        assert np.allclose(p[row], weights / weights.sum(), atol=1e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_min_p_is_a_share_of_the_best_tokens_chance(which: int) -> None:
    chances = np.array([[0.5, 0.3, 0.15, 0.05]])
    logits = np.log(chances).astype(np.float32)
    for temperature, share in ((1.0, 0.25), (2.0, 0.5), (0.5, 0.1)):
        made = both(logits)[which]
        nothing = np.zeros((1, 4), np.float32)
        made.adjust(np.array([0]), Adjustment(nothing > 0, 1.0, nothing, temperature * float(np.log(share))))
        warm = chances[0] ** (1 / temperature)
        kept = np.where(warm >= share * warm.max(), warm, 0)
        assert np.allclose(made.probabilities(np.array([0]), plain(1, temperature))[0], kept / kept.sum(), atol=1e-6)


@pytest.fixture(scope="module")
def lms(drafting: Any, tiny: Any) -> dict[str, DiffusionLM]:
    _, network = drafting(1)
    defaults = DecodingDefaults(threshold=0.4)
    return {
        "drafts": DiffusionLM(network, None, defaults, "drafts"),
        "canvas": DiffusionLM(tiny(3, pad_token_id=0), None, defaults, "canvas"),
        "blocks": DiffusionLM(tiny(4, pad_token_id=0, layout="block_causal", block_length=4), None, defaults, "blocks"),
    }


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("drafts", {"mode": "ar"}),
    ("drafts", {"mode": "verify", "block_length": 4}),
    ("drafts", {"mode": "diffusion", "block_length": 4}),
    ("canvas", {"max_denoising_steps": 12, "rule": "sequential"}),
    ("canvas", {"rule": "quota"}),
    ("blocks", {"rule": "quota"}),
]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_bias_bans_and_forces(lms: dict[str, DiffusionLM], name: str, way: dict[str, Any]) -> None:
    lm = lms[name]
    free = lm.generate([1, 2, 3], 12, seed=0, **way).token_ids
    banned = free[0]
    without = lm.generate([1, 2, 3], 12, seed=0, logit_bias={str(banned): -100}, **way).token_ids
    assert banned not in without
    assert lm.generate([1, 2, 3], 12, seed=0, logit_bias={5: 100.0}, **way).token_ids == [5] * 12


@pytest.mark.parametrize(("name", "way"), WAYS[:2])
def test_penalties_are_those_of_a_loop_written_plainly(
    lms: dict[str, DiffusionLM], name: str, way: dict[str, Any]
) -> None:
    """One token after another, by logits of the whole text so far; verify writes the same."""
    lm, prompt = lms[name], [1, 2, 3]
    for own in ({"presence_penalty": 1.5}, {"frequency_penalty": 0.7}, {"repetition_penalty": 1.8}):
        ids = list(prompt)
        for _ in range(12):
            scores = lm.logits([[*ids, 0]])[0, len(ids)].double().numpy().copy()
            scores[MASK] = -np.inf
            new = ids[len(prompt) :]
            for token in range(len(scores)):
                scores[token] -= own.get("frequency_penalty", 0) * new.count(token)
                scores[token] -= own.get("presence_penalty", 0) * (token in new)
                if token in ids and "repetition_penalty" in own:
                    by = own["repetition_penalty"]
                    scores[token] = scores[token] / by if scores[token] > 0 else scores[token] * by
            ids.append(int(scores.argmax()))
        assert lm.generate(prompt, 12, **own, **way).token_ids == ids[len(prompt) :]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_no_end_before_min_tokens_and_stop_tokens_end(
    lms: dict[str, DiffusionLM], name: str, way: dict[str, Any]
) -> None:
    lm = lms[name]
    likely = {"logit_bias": {4: 50.0}, "seed": 0, **way}
    assert lm.generate([1, 2, 3], 12, stop_token_ids=[4], **likely).token_ids == []
    late = lm.generate([1, 2, 3], 12, stop_token_ids=[4], min_tokens=5, **likely).token_ids
    assert len(late) == 5
    assert 4 not in late
    ended = {"eos_token_ids": [4], **likely}
    assert lm.generate([1, 2, 3], 12, **ended).token_ids == []
    assert lm.generate([1, 2, 3], 12, ignore_eos=True, **ended).token_ids == [4] * 12


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"presence_penalty": 3.0}, "presence_penalty is out of range: 3.0; it must be at least -2 and at most 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is out of range"),
        ({"repetition_penalty": 1e-320}, "repetition_penalty is out of range"),
        ({"min_p": 1.5}, "min_p is out of range"),
        ({"min_tokens": -1}, "min_tokens is out of range"),
        ({"logit_bias": {"a": 1}}, "logit_bias must give a number"),
        ({"logit_bias": {1: 101}}, "logit_bias is out of range: 101.0 of token 1"),
        ({"logit_bias": {99: 1}}, "names token 99, outside the vocabulary"),
        ({"rule": "token_edit", "presence_penalty": 1.0}, "option 'presence_penalty' changes nothing here"),
        ({"sampler": "ddpm", "min_p": 0.1}, "option 'min_p' changes nothing here"),
    ],
)
def test_what_cannot_be_honoured_is_refused(lms: dict[str, DiffusionLM], options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnmaskError) as error:
        lms["canvas"].generate([1, 2], 4, **options)
    assert says in str(error.value)
