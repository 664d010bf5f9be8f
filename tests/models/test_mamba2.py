"""The Mamba-2 mixer against its recurrence, and the state that takes the place of keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask import DiffusionLM, UnmaskError
from unmask.attention import plain_mask
from unmask.backends.torch import TorchBackend
from unmask.decoding.feed import Columns, Feed, Sampling
from unmask.layout import Layout
from unmask.models import mamba2
from unmask.models.config import ModelConfig, StateSpace
from unmask.models.mixers import Context
from unmask.models.transformer import Transformer

VOCAB = 29
CONTEXT = Context((torch.empty(0), torch.empty(0)))


def network(layout: str = "causal", mixers: tuple[str, ...] = ("mamba2",), **options: Any) -> Transformer:
    values: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 3, "num_heads": 2, "intermediate_size": 40,
        "max_length": 256, "layout": layout, "shift": layout == "causal", "mixers": mixers,
        "state_space": StateSpace(head_dim=16, state_size=8, num_groups=2), "mask_token_id": VOCAB - 1, **options,
    }  # fmt: skip
    return Transformer(ModelConfig(**values)).initialise(0, std=0.3).eval()


def mixer(layout: str, **options: Any) -> mamba2.Mamba2:
    made = network(layout, **options).blocks[0].mixer
    assert isinstance(made, mamba2.Mamba2)
    return made


def recurrence(made: mamba2.Mamba2, inputs_TE: Tensor, direction: int) -> Tensor:
    """What one direction reads [T, inner], token by token, as the paper writes it."""
    space = made.space
    heads = slice(direction * made.heads, (direction + 1) * made.heads)
    channels = slice(direction * made.channels, (direction + 1) * made.channels)
    raw, step = inputs_TE.double().split([made.channels, made.heads], -1)
    weight = made.conv_weight[channels, 0].double()
    bias = 0.0 if made.conv_bias is None else made.conv_bias[channels].double()
    step = F.softplus(step + made.dt_bias[heads].double())
    state = torch.zeros(made.heads, space.head_dim, space.state_size, dtype=torch.float64)
    group = torch.arange(made.heads) // (made.heads // space.num_groups)
    read = []
    for t in range(len(raw)):
        seen = raw[max(0, t - space.conv_width + 1) : t + 1]
        mixed = F.silu((seen * weight[:, space.conv_width - len(seen) :].T).sum(0) + bias)
        x, b, c = mixed.split([made.inner, *[space.num_groups * space.state_size] * 2])
        x = x.view(made.heads, -1)
        b, c = (each.view(space.num_groups, -1)[group] for each in (b, c))
        decay = torch.exp(-step[t] * made.A_log[heads].double().exp())
        state = state * decay[:, None, None] + (step[t][:, None] * x)[..., None] * b[:, None]
        read.append(((state @ c[..., None])[..., 0] + made.D[heads].double()[:, None] * x).flatten())
    return torch.stack(read)


@pytest.mark.parametrize("conv_bias", [True, False])
@pytest.mark.parametrize("layout", ["causal", "bidirectional"])
@torch.no_grad()
def test_chunks_give_the_recurrence_in_every_direction(layout: str, conv_bias: bool) -> None:
    made = mixer(layout, state_space=StateSpace(head_dim=16, state_size=8, num_groups=2, conv_bias=conv_bias))
    if made.conv_bias is not None:
        made.conv_bias.normal_(generator=torch.Generator().manual_seed(2))
    x_BTD = torch.randn(1, 2 * mamba2.CHUNK + 9, 32, generator=torch.Generator().manual_seed(1))
    gate, inputs = made.in_proj(x_BTD)[0].split([made.inner, made.channels + made.heads], -1)
    read = recurrence(made, inputs, 0)
    if layout == "bidirectional":
        read = read + recurrence(made, inputs.flip(0), 1).flip(0)
    gated = (read * F.silu(gate.double())).unflatten(-1, (2, -1))
    normed = gated / (gated.square().mean(-1, keepdim=True) + made.eps).sqrt()
    expected = made.o_proj((normed.flatten(-2) * made.norm_weight.double()).float())
    torch.testing.assert_close(made(x_BTD, CONTEXT)[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_mixer_is_that_of_transformers(groups: int) -> None:
    pytest.importorskip("transformers")
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    made = mixer("causal", state_space=StateSpace(head_dim=16, state_size=8, num_groups=groups))
    sizes = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": groups, "chunk_size": 16}
    theirs = Mamba2Mixer(Mamba2Config(num_hidden_layers=1, **sizes), layer_idx=0).eval()
    names = {"conv1d.": "conv_", "norm.": "norm_", "out_proj": "o_proj"}
    weights = dict(made.named_parameters())
    for name, parameter in theirs.named_parameters():
        ours = name
        for before, after in names.items():
            ours = ours.replace(before, after)
        parameter.data.copy_(weights.pop(ours))
    assert not weights
    x_BTD = torch.randn(2, 100, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(made(x_BTD, CONTEXT), theirs(x_BTD), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["causal", "bidirectional"])
@torch.no_grad()
def test_packed_documents_and_padding_are_as_alone(layout: str) -> None:
    model = network(layout)
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(VOCAB, (1, length), generator=generator) for length in (70, 3, 1, 90)]
    position = torch.cat([torch.arange(text.shape[1]) for text in texts])[None]
    packed = model(torch.cat(texts, 1), position)
    apart = torch.cat([model(text) for text in texts], 1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-4)
    lm = DiffusionLM(model, None)
    short = texts[0]
    for padded in (F.pad(short, (5, 0)), F.pad(short, (0, 5))):
        valid = torch.zeros_like(padded)
        start = 5 if padded[0, 0] == 0 and (padded[0, 5:] == short[0]).all() else 0
        valid[:, start : start + 70] = 1
        logits = lm.logits(padded, attention_mask=valid)[:, start : start + 70]
        torch.testing.assert_close(logits, model(short), atol=1e-5, rtol=1e-4)


def feed(windows: list[tuple[Tensor, int, int, int]]) -> Feed:
    """Of each row its ids, where the window begins and ends, and from where on it is scored."""
    requests = []
    for ids, low, high, first in windows:
        place = np.arange(low, high)
        scored = np.arange(first, high) - low
        requests.append(Columns(ids[low:high].numpy(), place, np.full(high - low, -1), scored, scored + low + 1))
    return Feed.of(requests, np.array([low for _, low, _, _ in windows]))


@pytest.mark.parametrize("mixers", [("mamba2",), ("mamba2", "attention")])
@torch.no_grad()
def test_a_state_is_taken_back_to_what_held(mixers: tuple[str, ...]) -> None:
    """Windows whose last columns were wrong, rows that join, leave and are of different length: the logits are those of
    one reading of the whole row."""
    model = network(mixers=mixers)
    a, b, c = torch.randint(VOCAB - 1, (3, 200), generator=torch.Generator().manual_seed(4))
    wrong = a.clone()
    wrong[83:90] = (a[83:90] + 1) % (VOCAB - 1)
    backend = TorchBackend(model)
    backend.open(Layout("causal"), 2, 200, True)

    def check(windows: list[tuple[Tensor, int, int, int]]) -> None:
        logits = backend.forward(feed(windows))
        n = sum(high - first for _, _, high, first in windows)
        sampling = Sampling(np.ones(n), np.zeros(n, int), np.ones(n), np.full(n, 0.5), np.full(n, 0.5))
        found = torch.from_numpy(logits.probabilities(np.arange(n), sampling))
        expected = []
        for ids, _, high, first in windows:
            mask = plain_mask(Layout("causal"), high, torch.device("cpu"))
            own = model.head(model.hidden(ids[None, :high], None, mask))[0, first:]
            own[:, VOCAB - 1] = -torch.inf
            expected.append(own.softmax(-1))
        torch.testing.assert_close(found.float(), torch.cat(expected), atol=1e-5, rtol=1e-3)

    check([(a, 0, 80, 79), (b, 0, 5, 4)])  # prompts
    check([(wrong, 80, 90, 80), (b, 5, 6, 5)])  # drafts, of which three hold
    backend.admit(1, 200)
    check([(a, 83, 86, 84), (b, 6, 8, 6), (c, 0, 130, 130)])  # a row joins and is only read
    check([(a, 84, 88, 84), (b, 8, 9, 8), (c, 130, 140, 133)])
    backend.keep(np.array([2, 0]))
    check([(c, 133, 141, 140), (a, 88, 89, 88)])
    check([(c, 141, 142, 141), (a, 0, 30, 29)])  # a row that starts anew
    with pytest.raises(RuntimeError, match="cannot go back"):
        backend.forward(feed([(c, 100, 101, 100), (a, 30, 31, 30)]))


@pytest.mark.parametrize("mixers", [("mamba2",), ("mamba2", "mamba2", "attention")])
def test_company_modes_and_caches_write_the_same_ids(mixers: tuple[str, ...]) -> None:
    lm = DiffusionLM(network(mixers=mixers), None)
    prompts = [[1, 2, 3], [5, 6, 7, 8] * 5, [4] * 70]
    options = {"max_new_tokens": 14, "seed": 3}
    together = [out.token_ids for out in lm.generate(prompts, mode="ar", temperature=0.8, **options)]
    for number, prompt in enumerate(prompts):
        one = {**options, "seed": 3 + number, "temperature": 0.8}
        assert lm.generate(prompt, mode="ar", **one).token_ids == together[number]
        assert lm.generate(prompt, mode="ar", cache="none", **one).token_ids == together[number]
    greedy = [out.token_ids for out in lm.generate(prompts, mode="ar", **options)]
    checked = lm.generate(prompts, mode="verify", **options)
    assert [out.token_ids for out in checked] == greedy


def test_a_denoiser_without_attention_writes_the_same_in_company() -> None:
    lm = DiffusionLM(network("bidirectional", ("mamba2", "attention")), None)
    prompts = [[1, 2, 3], [5] * 30]
    together = [out.token_ids for out in lm.generate(prompts, max_new_tokens=12)]
    assert [lm.generate(prompt, max_new_tokens=12).token_ids for prompt in prompts] == together
    for cache in ("prefix", "dual", "exact"):
        with pytest.raises(UnmaskError, match="cache"):
            lm.generate(prompts, max_new_tokens=4, cache=cache)
    with pytest.raises(UnmaskError, match="leave out layout"):
        lm.logits(torch.ones(1, 4, dtype=torch.long), layout="causal")


def test_hybrid_stacks_are_trained_saved_loaded_and_left_to_torch(tmp_path: Path) -> None:
    model = network(mixers=("mamba2", "attention")).train()
    assert [type(block.mixer).__name__ for block in model.blocks] == ["Mamba2", "Attention", "Mamba2"]
    ids = torch.arange(20)[None]
    F.cross_entropy(model(ids, None, plain_mask(Layout("causal"), 20, ids.device))[0, 1:], ids[0, 1:]).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    lm = DiffusionLM(model.eval(), None)
    lm.save_pretrained(tmp_path)
    again = DiffusionLM.from_pretrained(tmp_path)
    assert isinstance(again.backend, TorchBackend)
    assert torch.equal(again.logits(ids), lm.logits(ids))
    for backend in ("native", "native-f32"):
        with pytest.raises(UnmaskError, match=r"does not implement mixers|not installed|cannot run"):
            DiffusionLM.from_pretrained(tmp_path, backend=backend)


def test_a_state_takes_the_room_that_the_config_says() -> None:
    model = network()
    backend = TorchBackend(model)
    backend.open(Layout("causal"), 1, 100, True)
    backend.forward(feed([(torch.arange(100) % VOCAB, 0, 100, 99)]))
    assert backend.cache is not None
    assert backend.cache.states is not None
    kept = [x.numel() for layer in backend.cache.states.layers.values() for x in layer]
    assert sum(kept) == model.config.state_values
    assert sum(x.numel() for x in backend.cache.keys) == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mixers": ()}, "mixers is empty"),
        ({"layout": "block_causal", "block_length": 4}, "bidirectional or causal"),
        ({"layout": "drafts"}, "bidirectional or causal"),
        ({"loops": 2}, "loops must be 1"),
        ({"state_space": StateSpace(head_dim=48)}, "state_space"),
        ({"state_space": StateSpace(head_dim=16, num_groups=3)}, "state_space"),
        ({"state_space": StateSpace(head_dim=0)}, "state_space"),
        ({"mixers": ("mamba2", "attention"), "intermediate_size": 0}, "no MLP"),
        ({"intermediate_size": 0, "num_experts": 2, "expert_size": 8}, "no MLP"),
    ],
)
def test_impossible_stacks_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UnmaskError, match=named):
        network(**options)
