"""Classifier-free guidance: a twin row that reads the canvas without what was given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from unmask.backends.torch import TorchBackend
from unmask.decoding.feed import Columns, Feed
from unmask.decoding.loop import Decoder
from unmask.decoding.request import Request
from unmask.decoding.rules import RuleOptions
from unmask.layout import Layout
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

VOCAB, MASK = 19, 18


def network(layout: str = "bidirectional", shift: bool = False) -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=48,
        max_length=64,
        layout=layout,  # type: ignore[arg-type]
        block_length=4 if layout == "block_causal" else 0,
        shift=shift,
        mask_token_id=MASK,
    )
    return Transformer(config).initialise(0, std=0.4).eval()


def shape(layout: str) -> Layout:
    return Layout("block_causal", 4) if layout == "block_causal" else Layout("bidirectional")


def request(prompt: list[int], new: int, **options: Any) -> Request:
    return Request(prompt + [MASK] * new, [True] * len(prompt) + [False] * new, **options)


def written(decoder: Decoder) -> list[list[int]]:
    return [row.canvas.ids[0].tolist() for row in decoder.rows.values()]


def finish(decoder: Decoder) -> Decoder:
    for _ in decoder.run():
        pass
    return decoder


MIXED = [
    request([3, 1, 4], 9, guidance=0.7, block_length=4, rule=RuleOptions("threshold", threshold=0.4)),
    request([5], 14, block_length=4, rule=RuleOptions("quota"), max_denoising_steps=2, temperature=0.7, seed=3),
    request([2, 2, 6, 1, 9], 6, guidance=2.0, block_length=4, rule=RuleOptions("quota"), temperature=1.0, top_k=4),
    request([7, 7], 11, block_length=4, rule=RuleOptions("random"), max_denoising_steps=3, seed=5),
]


@pytest.mark.parametrize(
    ("layout", "cache"),
    [("bidirectional", "auto"), ("bidirectional", "prefix"), ("bidirectional", "dual"), ("block_causal", "auto")],
)
def test_guided_and_plain_requests_share_a_batch(layout: str, cache: str) -> None:
    """Law 7, with requests that take two rows of the batch, that leave early and that come late."""
    backend = TorchBackend(network(layout))
    asked = [replace(one, cache=cache) for one in MIXED]  # type: ignore[arg-type]
    alone = [finish(Decoder(backend, shape(layout), [one])) for one in asked]
    together = finish(Decoder(backend, shape(layout), asked))
    assert written(together) == [written(one)[0] for one in alone]
    assert together.steps == [one.steps[0] for one in alone]
    late = Decoder(backend, shape(layout), asked[:2])
    for one in asked[2:]:
        late.step()
        late.admit(one)
    gone = written(late)[0]
    late.release(0)
    assert MASK in gone
    assert written(finish(late)) == [written(one)[0] for one in alone[1:]]


@pytest.mark.parametrize("shift", [False, True])
@torch.inference_mode()
def test_logits_are_drawn_away_from_those_without_the_prompt(shift: bool) -> None:
    """u + (s + 1) (c - u), one token a step, written down plainly."""
    model, prompt, new, s = network(shift=shift), [3, 1, 4, 1], 7, 0.9
    x = torch.tensor([prompt + [MASK] * new])
    for _ in range(new):
        blind = x.clone()
        blind[:, : len(prompt)] = MASK
        c, u = model(x), model(blind)
        logits = u + (s + 1) * (c - u)
        logits[..., MASK] = -torch.inf
        sure, token = logits[0].softmax(-1).max(-1)
        place = int(torch.where(x[0] == MASK, sure, -1).argmax())
        x[0, place] = token[place]
    decoder = Decoder(
        TorchBackend(model), Layout("bidirectional"), [request(prompt, new, guidance=s, rule=RuleOptions("quota"))]
    )
    assert written(finish(decoder)) == x.tolist()
    assert decoder.steps == [new]
    plain = Decoder(TorchBackend(model), Layout("bidirectional"), [request(prompt, new, rule=RuleOptions("quota"))])
    assert written(finish(plain)) != x.tolist()


def test_exact_keys_of_the_twin_are_its_own() -> None:
    model = network("block_causal")
    plain = finish(Decoder(TorchBackend(model), shape("block_causal"), MIXED, use_cache=False))
    assert written(finish(Decoder(TorchBackend(model), shape("block_causal"), MIXED))) == written(plain)


def test_a_feed_puts_the_twin_after_its_request() -> None:
    def columns(width: int, **options: Any) -> Columns:
        place = np.arange(width)
        return Columns(place, place, np.full(width, -1), place[1:], place[1:], **options)

    feed = Feed.of(
        [columns(3), columns(2, unconditional=np.array([9, 9]), guidance=0.5), columns(4)], np.array([0, 1, 2])
    )
    assert feed.ids.tolist() == [[0, 1, 2, 0], [0, 1, 0, 0], [9, 9, 0, 0], [0, 1, 2, 3]]
    assert feed.cached.tolist() == [0, 1, 1, 2]
    assert feed.row.tolist() == [0, 0, 1, 3, 3, 3]
    assert feed.guidance.tolist() == [0, 0, 0.5, 0, 0, 0]
