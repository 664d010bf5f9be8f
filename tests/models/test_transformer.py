from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.backends.torch import SlotCache
from unmask.layout import EMPTY, PADDING, Coordinates, Layout
from unmask.models.transformer import Transformer

Tiny = Callable[..., Transformer]
CAUSAL = Layout("causal")


def some_ids(rows: int, length: int) -> Tensor:
    return torch.randint(12, (rows, length), generator=torch.Generator().manual_seed(0))


def causal(length: int) -> Tensor:
    row = Coordinates.of(torch.arange(length))
    return CAUSAL.dense(row, row)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer norm": {"norm": "layer"},
    "layer norm with bias": {"norm": "layer", "norm_bias": True},
    "qk norm": {"qk_norm": True},
    "qk layer norm": {"qk_norm": True, "norm": "layer"},
    "partial rope": {"rope_fraction": 0.5},
    "no rope": {"rope_fraction": 0.0},
    "yarn": {"rope_factors": (1.0, 2.0, 3.0, 4.0), "rope_scale": 1.1},
    "learned positions": {"learned_positions": True, "rope_fraction": 0.0},
    "grouped heads": {"num_kv_heads": 2},
    "wide heads": {"head_dim": 16},
    "biases": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "gelu": {"activation": "gelu"},
    "gelu tanh": {"activation": "gelu_tanh", "mlp_bias": True},
    "untied": {"tie_embeddings": False},
    "adaLN": {"time_condition_size": 16},
    "shift": {"shift": True},
    "all of it": {
        "norm": "layer", "qk_norm": True, "rope_fraction": 0.5, "num_kv_heads": 1, "qkv_bias": True,
        "out_bias": True, "activation": "gelu", "tie_embeddings": False, "time_condition_size": 8, "shift": True,
    },
}  # fmt: skip
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@every_option
def test_options_build_run_and_learn(options: dict[str, Any], tiny: Tiny) -> None:
    model = tiny(**options)
    logits = model(some_ids(2, 7), time_B=torch.tensor([0.1, 0.9]))
    assert logits.shape == (2, 7, 13)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert model.num_parameters() == sum(p.numel() for p in dict(model.named_parameters()).values())


@every_option
def test_a_seed_gives_one_network(options: dict[str, Any], tiny: Tiny) -> None:
    torch.manual_seed(1)
    first = tiny(seed=5, **options)
    torch.manual_seed(2)
    again, other = tiny(seed=5, **options), tiny(seed=6, **options)
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@torch.no_grad()
@pytest.mark.parametrize("options", [o for o in OPTIONS.values() if o], ids=[name for name, o in OPTIONS.items() if o])
def test_every_option_changes_the_logits(options: dict[str, Any], tiny: Tiny) -> None:
    plain, model = tiny(), tiny(**options)
    torch.manual_seed(0)
    for parameter in model.parameters():  # biases and modulations start at zero
        parameter.add_(0.1 * torch.randn_like(parameter))
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():  # what both have is equal, what differs is the option
        if name in theirs and theirs[name].shape == parameter.shape:
            parameter.copy_(theirs[name])
    assert not torch.allclose(plain(some_ids(1, 7)), model(some_ids(1, 7)), atol=1e-4)


@torch.no_grad()
def test_grouped_heads_are_full_heads_with_repeated_weights(tiny: Tiny) -> None:
    grouped, full = tiny(num_kv_heads=2, qkv_bias=True), tiny(qkv_bias=True)
    weights = grouped.state_dict()
    for name, value in weights.items():
        if "k_proj" in name or "v_proj" in name:  # [2 groups x 8, ...] to [4 heads x 8, ...]
            weights[name] = value.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(weights)
    ids = some_ids(2, 9)
    torch.testing.assert_close(grouped(ids), full(ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grouped(ids, mask=causal(9)), full(ids, mask=causal(9)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rope_sees_relative_positions_only(tiny: Tiny) -> None:
    ids, positions = some_ids(1, 8), torch.arange(8)[None]
    for fraction in (1.0, 0.5):
        model = tiny(rope_fraction=fraction, std=0.15)
        here = model(ids, positions)
        torch.testing.assert_close(here, model(ids))
        torch.testing.assert_close(here, model(ids, positions + 40), atol=2e-5, rtol=2e-5)
        assert not torch.allclose(here, model(ids, positions * 2), atol=1e-3)
    blind = tiny(rope_fraction=0.0)
    torch.testing.assert_close(blind(ids), blind(ids, positions * 2))


@torch.no_grad()
def test_rope_rotates_pairs_by_their_angle(tiny: Tiny) -> None:
    model = tiny(rope_theta=100.0)
    angle = 5 * 100.0 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(model.rope_cos[5], angle.cos())
    torch.testing.assert_close(model.rope_sin[5], angle.sin())


@torch.no_grad()
def test_time_changes_the_logits_of_a_conditioned_network_only(tiny: Tiny) -> None:
    ids, early, late = some_ids(1, 5), torch.tensor([0.01]), torch.tensor([3.0])
    plain, conditioned = tiny(), tiny(time_condition_size=16)
    assert torch.equal(plain(ids, time_B=early), plain(ids, time_B=late))
    # adaLN-Zero: a fresh network ignores the time and every block is the identity
    assert torch.equal(conditioned(ids, time_B=early), conditioned(ids, time_B=late))
    fresh = conditioned.head(conditioned.norm(conditioned.embedding(ids)))
    torch.testing.assert_close(conditioned(ids), fresh)
    for name, parameter in conditioned.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(conditioned(ids, time_B=early), conditioned(ids, time_B=late), atol=1e-3)
    assert torch.equal(conditioned(ids), conditioned(ids, time_B=torch.zeros(1)))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2, "qk_norm": True}, {"rope_fraction": 0.5}])
@pytest.mark.parametrize("widths", [[1] * 9, [4, 1, 3, 1], [9]])
def test_causal_windows_with_a_cache_give_the_logits_of_one_forward(
    options: dict[str, Any], widths: list[int], tiny: Tiny
) -> None:
    model, ids = tiny(std=0.15, **options), some_ids(2, 9)
    expected = model(ids, mask=causal(9))
    cache = SlotCache(model.config, 2, 9, ids.device, torch.float32)
    found, start = [], 0
    for width in widths:
        stop = start + width
        position = torch.arange(start, stop).expand(2, -1)
        # the keys are those of the slots before the window, then the window's own
        mask = CAUSAL.dense(Coordinates.of(position), Coordinates.of(torch.arange(stop).expand(2, -1)))
        cache.begin(position, torch.ones_like(position, dtype=torch.bool), start)
        found.append(model(ids[:, start:stop], position, mask, cache))
        start = stop
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_blocks_may_be_rewritten_and_rows_have_their_own_windows(tiny: Tiny) -> None:
    """Two requests of different length, a window denoised twice, one request let go: as if each were alone."""
    model, layout, ids = tiny(std=0.15), Layout("block_causal", 3), some_ids(2, 6)
    cache = SlotCache(model.config, 2, 6, ids.device, torch.float32)

    def forward(canvas: Tensor, low: list[int], high: list[int]) -> Tensor:
        first, past = torch.tensor(low)[:, None], torch.tensor(high)[:, None]
        position = first + torch.arange(int((past - first).max()))
        valid = position < past
        position = torch.where(valid, position, 0)
        slots = torch.arange(max(low)).expand(len(low), -1)
        earlier = Coordinates.of(slots, torch.where(slots < first, 0, EMPTY))
        own = Coordinates.of(position, torch.where(valid, 0, PADDING))
        cache.begin(position, valid, slots.shape[1])
        keys = Coordinates(*(torch.cat(pair, 1) for pair in zip(earlier, own, strict=True)))
        mask = layout.dense(own, keys)
        return model(canvas.gather(1, position), position, mask, cache)

    def alone(canvas: Tensor) -> Tensor:
        row = Coordinates.of(torch.arange(canvas.shape[1]))
        return model(canvas, mask=layout.dense(row, row))

    noised = ids.clone()
    noised[0, 2], noised[1, 4:] = 12, 12
    found = forward(noised, [0, 0], [3, 6])  # the first request is one block behind
    torch.testing.assert_close(found[:1, :3], alone(noised[:1, :3]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], alone(noised[1:]), atol=1e-5, rtol=1e-5)
    found = forward(ids, [0, 3], [3, 6])  # their blocks again, now written
    torch.testing.assert_close(found[:1], alone(ids[:1, :3]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], alone(ids[1:])[:, 3:], atol=1e-5, rtol=1e-5)
    cache.select(torch.tensor([0]))
    found = forward(ids[:1], [3], [6])
    torch.testing.assert_close(found, alone(ids[:1])[:, 3:], atol=1e-5, rtol=1e-5)


def test_padding_is_written_to_the_spare_slot(tiny: Tiny) -> None:
    """And a forward gets what the slots held before it, then its own window, padding and all."""
    config = tiny().config
    cache = SlotCache(config, 2, 4, torch.device("cpu"), torch.float32)
    position, valid = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[True, True], [True, False]])
    keys = torch.arange(1.0, 5.0).view(2, 1, 2, 1).expand(2, config.num_kv_heads, 2, config.head_dim)
    cache.begin(position, valid, 4)
    k, v = cache.update(1, keys, -keys)
    assert k[:, 0, :, 0].tolist() == [[0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 3, 4]]
    assert torch.equal(v, -k)
    assert cache.keys[1][:, 0, :4, 0].tolist() == [[0, 1, 2, 0], [0, 0, 0, 3]]
    assert torch.equal(cache.values[1][:, :, :4], -cache.keys[1][:, :, :4])
    assert not cache.keys[0].any()  # the other layer
    cache.begin(torch.tensor([[3], [1]]), torch.tensor([[True], [True]]), 3)
    k, v = cache.update(1, keys[:, :, :1] * 10, keys[:, :, :1])
    assert k[:, 0, :, 0].tolist() == [[0, 1, 2, 10], [0, 0, 0, 30]]
    assert v[:, 0, :, 0].tolist() == [[0, -1, -2, 1], [0, 0, 0, 3]]
    assert cache.keys[1][:, 0, :4, 0].tolist() == [[0, 1, 2, 10], [0, 30, 0, 3]]


@torch.no_grad()
def test_a_shifted_head_is_unshifted_once(tiny: Tiny) -> None:
    """logits[:, i] scores position i: the raw head's row i - 1, and its own row at a document's start."""
    shifted, plain = tiny(shift=True), tiny()
    ids = some_ids(1, 6)
    raw = plain(ids)
    expected = torch.cat([raw[:, :1], raw[:, :-1]], 1)
    torch.testing.assert_close(shifted(ids), expected)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])  # two documents
    raw = plain(ids, positions)
    expected = raw[:, [0, 0, 1, 3, 3, 4]]
    torch.testing.assert_close(shifted(ids, positions), expected)
    states = shifted.hidden(ids)
    assert torch.equal(plain.unshift(states), states)


def test_tied_embeddings_are_one_tensor(tiny: Tiny) -> None:
    tied, untied = tiny(), tiny(tie_embeddings=False)
    assert tied.head.weight is tied.embedding.weight
    assert untied.num_parameters() - tied.num_parameters() == 13 * 32
    assert not torch.equal(untied.head.weight, untied.embedding.weight)
