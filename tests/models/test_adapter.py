"""Adapters: what a folder of one holds, which base it fits, and that it acts where it is asked to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask import DiffusionLM
from unmask.attention import CausalMask
from unmask.checkpoints import adapter_files
from unmask.checkpoints.folder import Folder
from unmask.checkpoints.save import checkpoint_at, write_checkpoint
from unmask.errors import UnmaskError
from unmask.models import adapter
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

Drafting = Callable[..., tuple[Transformer, Transformer]]
Tiny = Callable[..., Transformer]
SHAPES = [{"rank": 4}, {"rank": 0, "width": 6}, {"rank": 2, "width": 3}, {"rank": 0, "width": 6, "chain": 5}]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
IDS = torch.tensor([[1, 2, 8, 5, 8, 8]])  # 8 is the mask
GATE = torch.tensor([[False, False, False, False, True, True]])


def pair(tiny: Tiny, shape: dict[str, int], seed: int = 0) -> tuple[Transformer, Transformer]:
    """A base and the same with a random adapter, rounded to bfloat16 as a file holds it."""
    base = tiny(seed, vocab_size=9, mask_token_id=8, layout="causal", shift=True, bos_token_id=0)
    network = adapter.attach(base, adapter.adapted_config(base.config, block_length=3, **shape))
    generator = torch.Generator().manual_seed(seed)
    own = {n: p.shape for n, p in adapter.own_parameters(network).items()}
    adapter.put(network, {n: torch.randn(s, generator=generator).bfloat16().float() for n, s in own.items()})
    network.draft_vocabulary = torch.tensor([0, 1, 3, 4, 7])
    return base, network.eval()


def save(folder: Path, network: Transformer) -> None:
    with checkpoint_at(folder) as made:
        adapter_files.save(made, network, dict(adapter.own_parameters(network)), "toy-base")


def refused(folder: Path, base: Transformer, config: ModelConfig) -> str:
    with pytest.raises(UnmaskError) as caught:
        adapter_files.load(Folder(folder), base, config)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@torch.no_grad()
def hidden(network: Transformer, gate: torch.Tensor | None = GATE) -> torch.Tensor:
    return network.hidden(IDS, None, CausalMask(), gate_BT=gate)


@shapes
def test_a_folder_read_and_written_is_the_same_to_the_byte(shape: dict[str, int], tiny: Tiny, tmp_path: Path) -> None:
    base, network = pair(tiny, shape)
    save(tmp_path / "first", network)
    again = adapter_files.load(Folder(tmp_path / "first"), base, network.config)
    assert not again.training
    save(tmp_path / "second", again)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    chained = [*adapter_files.SHARDS, "model.safetensors.index.json"]
    assert names == ["adapter.json", "config.json", *(chained if "chain" in shape else ["model.safetensors"])]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert torch.equal(again.draft_vocabulary, network.draft_vocabulary)
    for name, parameter in adapter.own_parameters(network).items():
        assert torch.equal(again.get_parameter(name), parameter)
        assert not again.get_parameter(name).requires_grad
    assert torch.equal(hidden(again), hidden(network))
    stored = json.loads((tmp_path / "first" / "adapter.json").read_text())
    assert stored == {"base": "toy-base", "embedding": adapter.fingerprint(base)}
    assert all(t.dtype in (torch.bfloat16, torch.int32) for t in adapter_files.read(tmp_path / "first").values())


@shapes
def test_an_adapter_holds_no_tensor_of_its_base(shape: dict[str, int], tiny: Tiny, tmp_path: Path) -> None:
    base, network = pair(tiny, shape)
    own, theirs = adapter.own_parameters(network), dict(base.named_parameters())
    assert own
    assert not own.keys() & theirs.keys()
    assert own.keys() | theirs.keys() == dict(network.named_parameters()).keys()
    for name, parameter in theirs.items():  # shared, not copied
        assert network.get_parameter(name).data_ptr() == parameter.data_ptr()
    assert network.head.weight is network.embedding.weight
    save(tmp_path, network)
    assert adapter_files.read(tmp_path).keys() == own.keys() | {"draft_vocabulary"}


def test_a_folder_holds_the_last_adapter_that_was_saved_there(tiny: Tiny, tmp_path: Path) -> None:
    for shape in ({"rank": 0, "width": 6, "chain": 5}, {"rank": 4}, {"rank": 0, "width": 6, "chain": 5}):
        base, network = pair(tiny, shape)
        save(tmp_path, network)
        again = adapter_files.load(Folder(tmp_path), base, network.config)
        own = adapter.own_parameters(network)
        assert all(torch.equal(again.get_parameter(name), parameter) for name, parameter in own.items())
    (tmp_path / adapter_files.SHARDS[1]).unlink()
    assert adapter_files.SHARDS[1] in refused(tmp_path, base, network.config)


@shapes
def test_an_adapter_acts_at_gated_positions_only(shape: dict[str, int], tiny: Tiny) -> None:
    base, network = pair(tiny, shape)
    plain = hidden(base, None)
    assert torch.equal(hidden(network, None), plain)  # no gate: the base to the bit
    found = hidden(network)
    assert torch.equal(found[:, :4], plain[:, :4])
    assert not torch.allclose(found[:, 4:], plain[:, 4:], atol=1e-2)
    nowhere = torch.zeros_like(GATE)
    assert torch.equal(hidden(network, nowhere), plain)
    # the embedding of a drafted mask is the adapter's own, that of a literal one in the text the base's
    network.mask_embedding.data.add_(1.0)
    assert torch.equal(hidden(network)[:, :4], plain[:, :4])
    assert not torch.allclose(hidden(network)[:, 4:], found[:, 4:], atol=1e-2)


@shapes
def test_a_fresh_adapter_changes_nothing_but_the_masks_look(shape: dict[str, int], tiny: Tiny) -> None:
    base, network = pair(tiny, shape)
    fresh = adapter.initial(network, 3)
    assert fresh.keys() == adapter.own_parameters(network).keys()
    assert all(torch.equal(fresh[n], t) for n, t in adapter.initial(network, 3).items())
    adapter.put(network, fresh)
    found = hidden(network)
    with torch.no_grad():
        looked = base.embedding.weight.clone()
        base.embedding.weight[8] = looked.mean(0)
        torch.testing.assert_close(found[:, 4:], _with_text(base, looked)[:, 4:], atol=1e-5, rtol=1e-5)


def _with_text(base: Transformer, before: torch.Tensor) -> torch.Tensor:
    """States of a base whose mask now looks otherwise, the literal mask in the text as it was."""
    inner = base.embedding.forward

    def embed(ids: torch.Tensor) -> torch.Tensor:
        return torch.where(GATE[..., None], inner(ids), before[ids])

    base.embedding.forward = embed  # type: ignore[method-assign]
    return hidden(base, None)


def test_a_base_that_cannot_draft_is_refused(tiny: Tiny) -> None:
    def config(**options: Any) -> ModelConfig:
        return replace(tiny(layout="causal", shift=True).config, **options)

    for options, word in (
        ({"mask_token_id": None}, "mask"),
        ({"layout": "bidirectional"}, "autoregressive"),
        ({"shift": False}, "autoregressive"),
        ({"num_experts": 4, "experts_per_token": 2, "expert_size": 8}, "num_experts 4 does not go with an adapter"),
    ):
        with pytest.raises(UnmaskError, match=word):
            adapter.adapted_config(config(**options), block_length=4, rank=4)
    with pytest.raises(UnmaskError, match="adapter_rank"):
        adapter.adapted_config(config(), block_length=4)


def test_another_base_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base, network = pair(tiny, {"rank": 4})
    save(tmp_path, network)
    other, _ = pair(tiny, {"rank": 4}, seed=1)
    assert "another base" in refused(tmp_path, other, network.config)
    wider = tiny(vocab_size=9, mask_token_id=8, layout="causal", shift=True, bos_token_id=0, intermediate_size=64)
    assert "another base" in refused(tmp_path, wider, network.config)
    assert "no mask" in refused(tmp_path, Transformer(replace(base.config, mask_token_id=None)), network.config)
    (tmp_path / "adapter.json").write_text('{"base": "toy-base"}')
    assert "another base" in refused(tmp_path, base, network.config)
    (tmp_path / "adapter.json").unlink()
    assert "adapter.json" in refused(tmp_path, base, network.config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("mask_embedding"), "mask_embedding"),
        (lambda t: t.pop("blocks.1.mlp.up_proj.down"), "blocks.1.mlp.up_proj.down"),
        (lambda t: t.update({"blocks.2.mixer.q_proj.up": torch.zeros(2)}), "blocks.2.mixer.q_proj.up"),
        (lambda t: t.update({"embedding.weight": torch.zeros(2)}), "embedding.weight"),
        (lambda t: t.update({"mask_embedding": torch.zeros(31)}), "mask_embedding"),
        (lambda t: t.update({"blocks.0.mixer.q_proj.up": torch.zeros(32, 5)}), "blocks.0.mixer.q_proj.up"),
        (lambda t: t.pop("draft_vocabulary"), "draft_vocabulary"),
        (lambda t: t.update({"draft_vocabulary": torch.tensor([1, 9], dtype=torch.int32)}), "draft_vocabulary"),
        (lambda t: t.update({"draft_vocabulary": torch.tensor([-1], dtype=torch.int32)}), "draft_vocabulary"),
        (lambda t: t.update({"draft_vocabulary": torch.zeros(0, dtype=torch.int32)}), "draft_vocabulary"),
        (lambda t: t.update({"draft_vocabulary": torch.zeros(2, 2, dtype=torch.int32)}), "draft_vocabulary"),
        (lambda t: t.update({"draft_vocabulary": torch.zeros(2)}), "draft_vocabulary"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(
    change: Callable[[dict[str, torch.Tensor]], Any], named: str, tiny: Tiny, tmp_path: Path
) -> None:
    base, network = pair(tiny, {"rank": 4})
    save(tmp_path, network)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    assert named in refused(tmp_path, base, network.config)


def test_an_adapter_of_another_rank_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base, network = pair(tiny, {"rank": 4})
    save(tmp_path, network)
    assert "another base or rank" in refused(tmp_path, base, replace(network.config, adapter_rank=5))


def test_a_model_by_its_folder_saves_what_it_read(tiny: Tiny, tmp_path: Path) -> None:
    """The base lies in a folder of its own, named by a path; the adapter's folder stays small."""
    base, network = pair(tiny, {"rank": 4})
    weights = {name: p.detach() for name, p in base.named_parameters()}
    write_checkpoint(tmp_path / "base", base.config.to_dict(), weights, None)
    adapter_files.save(tmp_path / "one", network, dict(adapter.own_parameters(network)), str(tmp_path / "base"))
    lm = DiffusionLM.from_pretrained(tmp_path / "one", backend="torch")
    assert lm.config == network.config
    lm.save_pretrained(tmp_path / "two")
    for name in ("adapter.json", "config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    again = DiffusionLM.from_pretrained(tmp_path / "two", backend="torch")
    outs = [
        m.generate([1, 2], 9, mode=mode, temperature=0.0).token_ids for m in (lm, again) for mode in ("ar", "verify")
    ]
    assert outs.count(outs[0]) == 4
    assert torch.equal(lm.logits(IDS), DiffusionLM.from_pretrained(tmp_path / "base").logits(IDS))
    (tmp_path / "one" / "adapter.json").write_text("{}")
    with pytest.raises(UnmaskError, match="names no base"):
        DiffusionLM.from_pretrained(tmp_path / "one")
