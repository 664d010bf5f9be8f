"""Families that write behind causal text, against a plain network and plain loops that are written here.

Shapes: T tokens, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask import DiffusionLM, UnmaskError
from unmask.backends.native import network as native
from unmask.canvas import Commit
from unmask.decoding.methods.behind_text import SelfChecking
from unmask.decoding.planner import Planner
from unmask.decoding.request import StepResult

VOCABULARY, SIZE, HEADS, KEY_HEADS, WIDTH, INNER, MASK, BLOCK = 40, 32, 4, 2, 16, 64, 39, 8
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": SIZE, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS, "head_dim": WIDTH, "intermediate_size": INNER, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False, "hidden_act": "silu", "eos_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 16,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.5,
        "llama_4_scaling_beta": 0.1}  # fmt: skip
NEMOTRON = {"architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion",
            "mask_token_id": MASK, "block_size": BLOCK, "rope_parameters": YARN, "rope_theta": None}  # fmt: skip
SDLM = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "text_mask_token_id": MASK, "block_size": 4,
        "causal_attn": False, "use_sliding_window": False, "sliding_window": 32}  # fmt: skip
WEDLM = {"architectures": ["WeDLMForCausalLM"], "model_type": "wedlm", "mask_token_id": MASK, "attention_bias": False,
         "qk_norm": True, "use_sliding_window": False}  # fmt: skip
I_DLM = {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "use_regular_causal": True, "block_size": 3,
         "mask_token_id": MASK}  # fmt: skip
PROMPT = [5, 17, 3, 28, 9, 11]
Net = Callable[[list[int], list[int], Tensor], Tensor]


def saved(folder: Path, root: str = "model.", bias: bool = False, norms: bool = False, **config: Any) -> Path:
    """A folder of random weights, wide enough that the network is sure of some tokens and not of others."""
    draw = torch.Generator().manual_seed(3)
    rows = {"q_proj": HEADS * WIDTH, "k_proj": KEY_HEADS * WIDTH, "v_proj": KEY_HEADS * WIDTH}
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}embed_tokens.weight": (VOCABULARY, SIZE),
        f"{root}norm.weight": (SIZE,),
    }
    for layer in range(SIZES["num_hidden_layers"]):
        own = f"{root}layers.{layer}."
        for name, count in rows.items():
            shapes[f"{own}self_attn.{name}.weight"] = (count, SIZE)
            if bias:
                shapes[f"{own}self_attn.{name}.bias"] = (count,)
        shapes[own + "self_attn.o_proj.weight"] = (SIZE, HEADS * WIDTH)
        for name in ("q_norm", "k_norm") if norms else ():
            shapes[f"{own}self_attn.{name}.weight"] = (WIDTH,)
        shapes |= {f"{own}mlp.{part}_proj.weight": (INNER, SIZE) for part in ("gate", "up")}
        shapes[own + "mlp.down_proj.weight"] = (SIZE, INNER)
        shapes |= {f"{own}{name}.weight": (SIZE,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes["lm_head.weight" if root == "model." else "diffusion_head.weight"] = (VOCABULARY, SIZE)
    tensors = {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    tensors |= {name: 1 + tensor for name, tensor in tensors.items() if "norm" in name}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**SIZES, **config}))
    return folder


def frequencies(config: dict[str, Any]) -> tuple[Tensor, float]:
    """Radians a position and the scale of cos and sin; YaRN (arXiv 2309.00071) written out."""
    base = 1e4 ** (-torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)
    said = config.get("rope_parameters")
    if said is None:
        return base, 1.0

    def pair(turns: float) -> float:
        return WIDTH * math.log(said["original_max_position_embeddings"] / (turns * 2 * math.pi)) / (2 * math.log(1e4))

    low, high = max(math.floor(pair(said["beta_fast"])), 0), min(math.ceil(pair(said["beta_slow"])), WIDTH - 1)
    stretched = ((torch.arange(WIDTH // 2) - low) / (high - low)).clamp(0, 1).double()
    scale = [0.1 * said[name] * math.log(said["factor"]) + 1 for name in ("mscale", "mscale_all_dim")]
    return base * (1 - stretched) + base / said["factor"] * stretched, scale[0] / scale[1]


def network(folder: Path) -> Net:
    """The plain network of a folder: ids [T], positions [T] and who sees whom [T, T] to logits [T, V], float64."""
    config = json.loads((folder / "config.json").read_text())
    w = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    root = "encoder." if "encoder.norm.weight" in w else "model."
    frequency, stretch = frequencies(config)
    said = config.get("rope_parameters") or {}

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name]

    def forward(ids: list[int], positions: list[int], sees: Tensor) -> Tensor:
        place = torch.tensor(positions)
        angle = torch.cat([place[:, None] * frequency] * 2, -1)
        cos, sin = angle.cos()[:, None] * stretch, angle.sin()[:, None] * stretch

        def turned(x: Tensor) -> Tensor:
            return x * cos + torch.cat([-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1) * sin

        x = w[f"{root}embed_tokens.weight"][ids]
        for layer in range(config["num_hidden_layers"]):
            own = f"{root}layers.{layer}."
            h = norm(x, own + "input_layernorm.weight")
            q, k, v = (
                (h @ w[f"{own}self_attn.{n}_proj.weight"].T + w.get(f"{own}self_attn.{n}_proj.bias", 0)).view(
                    len(ids), -1, WIDTH
                )
                for n in "qkv"
            )
            if f"{own}self_attn.q_norm.weight" in w:
                q, k = norm(q, own + "self_attn.q_norm.weight"), norm(k, own + "self_attn.k_norm.weight")
            q, k = turned(q), turned(k)
            if "llama_4_scaling_beta" in said:
                far = (place / said["original_max_position_embeddings"]).floor()
                q = q * (1 + said["llama_4_scaling_beta"] * (1 + far).log())[:, None, None]
            k, v = k.repeat_interleave(HEADS // KEY_HEADS, 1), v.repeat_interleave(HEADS // KEY_HEADS, 1)
            score = torch.einsum("qhd,khd->hqk", q, k) / WIDTH**0.5
            p = score.masked_fill(~sees, -torch.inf).softmax(-1)
            x = x + torch.einsum("hqk,khd->qhd", p, v).flatten(1) @ w[own + "self_attn.o_proj.weight"].T
            h = norm(x, own + "post_attention_layernorm.weight")
            gate, up = (h @ w[f"{own}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
            x = x + (gate * gate.sigmoid() * up) @ w[own + "mlp.down_proj.weight"].T
        head = w["lm_head.weight"] if root == "model." else w["diffusion_head.weight"]
        return norm(x, f"{root}norm.weight") @ head.T

    return forward


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def behind(net: Net, text: list[int], block: list[int], at: int) -> Tensor:
    """Logits of a block at a position, which sees itself and the text before it; the text is read causally."""
    text = text[:at]
    sees = causal(len(text) + len(block))
    sees[len(text) :] = True
    return net(text + block, [*range(at), *range(at, at + len(block))], sees)[len(text) :]


def chances(logits: Tensor, without_mask: bool) -> Tensor:
    logits = logits.clone()
    if without_mask:
        logits[..., MASK] = -torch.inf
    return logits.softmax(-1)


def best(logits: Tensor) -> Tensor:
    """The best tokens; the mask is never written."""
    return chances(logits, True).argmax(-1)


@pytest.fixture(params=["torch", "native-f32"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "torch" and native.library() is None:
        pytest.skip("installed without a C compiler")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    return str(request.param)


@pytest.mark.parametrize("name", ["nemotron", "ministral", "sdlm", "wedlm", "i-dlm"])
def test_logits_are_the_plain_networks(name: str, tmp_path: Path) -> None:
    """At positions far behind the length of the first training as well; and the folder is written again as it was."""
    made: dict[str, dict[str, Any]] = {
        "nemotron": {"root": "encoder.", **NEMOTRON},
        "ministral": {"root": "encoder.", **NEMOTRON, "architectures": ["MinistralDiffEncoderModel"],
                      "model_type": "ministral_dlm"},
        "sdlm": {"bias": True, **SDLM},
        "wedlm": {"norms": True, **WEDLM},
        "i-dlm": {"norms": True, **I_DLM},
    }  # fmt: skip
    folder = saved(tmp_path / name, **made[name])
    lm = DiffusionLM.from_pretrained(folder)
    assert lm.config.mask_token_id == MASK
    assert lm.config.max_length == 256
    ids = torch.randint(0, VOCABULARY, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    plain = network(folder)(ids, list(range(100)), causal(100))
    with torch.inference_mode():
        ours = lm.model.head(lm.model.hidden(torch.tensor([ids]), None, causal(100)[None, None]))[0]
    torch.testing.assert_close(ours.double(), plain, rtol=0, atol=2e-4)
    torch.testing.assert_close(lm.logits([ids])[0, 1:].double(), plain[:-1], rtol=0, atol=2e-4)
    lm.save_pretrained(tmp_path / "again")
    assert torch.equal(DiffusionLM.from_pretrained(tmp_path / "again").logits([ids]), lm.logits([ids]))


def denoised(
    net: Net, prompt: list[int], blocks: int, policy: str, seeded: bool = False, steps: int = BLOCK
) -> list[int]:
    """Nemotron's block diffusion, as vLLM (and with `seeded` its own code) writes it, at temperature 0."""
    text = list(prompt)
    for _ in range(blocks):
        block = [MASK] * BLOCK
        if seeded:
            block[0] = int(best(net(text, list(range(len(text))), causal(len(text)))[-1]))
        for step in range(steps):
            masked = [i for i, token in enumerate(block) if token == MASK]
            if not masked:
                break
            p = chances(behind(net, text, block, len(text)), True)
            sure, token = p.max(-1)
            due = -(-len(masked) // (steps - step))
            ranked = sorted(masked, key=lambda i: -float(sure[i]))
            if policy == "leftmost":
                kept = masked[:due]
            elif policy == "low_confidence":
                kept = ranked[:due]
            else:
                kept = masked if step == steps - 1 else [i for i in masked if sure[i] >= 0.3 or i == ranked[0]]
            for i in kept:
                block[i] = int(token[i])
        text += block
    return text[len(prompt) :]


POLICIES: dict[str, dict[str, Any]] = {
    "confidence_threshold": {"threshold": 0.3},
    "low_confidence": {"rule": "quota", "schedule": "even"},
    "leftmost": {"rule": "sequential", "schedule": "even"},
}


@pytest.mark.parametrize("steps", [BLOCK, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_nemotrons_policies(policy: str, steps: int, tmp_path: Path, backend: str) -> None:
    folder = saved(tmp_path / "model", "encoder.", **NEMOTRON)
    lm = DiffusionLM.from_pretrained(folder, backend=backend)
    prompts = [PROMPT, [21, 2]]
    options = {**POLICIES[policy], "max_denoising_steps": steps, "ignore_eos": True}
    outs = lm.generate(prompts, max_new_tokens=3 * BLOCK, seed=0, **options)
    net = network(folder)
    for prompt, out in zip(prompts, outs, strict=True):
        assert out.token_ids == denoised(net, prompt, 3, policy, steps=steps)
    slow = lm.generate(PROMPT, max_new_tokens=3 * BLOCK, seed=0, cache="none", **options)
    assert slow.token_ids == outs[0].token_ids
    seeded = lm.generate(PROMPT, max_new_tokens=3 * BLOCK, seed=0, convention="nemotron-hf", **options)
    assert seeded.token_ids == denoised(net, PROMPT, 3, policy, True, steps)
    assert seeded.steps > outs[0].steps - 3  # a forward more for each block


def test_nemotrons_generation_config_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "encoder.", **NEMOTRON)
    (folder / "generation_config.json").write_text(
        json.dumps({"diffusion_selection_policy": "leftmost", "max_denoising_steps": 4, "eos_token_id": 0})
    )
    defaults = DiffusionLM.from_pretrained(folder).defaults
    assert (defaults.rule, defaults.schedule, defaults.max_denoising_steps) == ("sequential", "even", 4)


def written(net: Net, prompt: list[int], count: int) -> list[int]:
    """Mode ar at temperature 0."""
    text = list(prompt)
    while len(text) < len(prompt) + count:
        text.append(int(best(net(text, list(range(len(text))), causal(len(text)))[-1])))
    return text[len(prompt) :]


def speculated(net: Net, prompt: list[int], count: int, repeats: bool) -> tuple[list[int], int]:
    """Self-speculation at temperature 0 and its forwards, each of which checks drafts and has a block behind them."""
    text = list(prompt)
    drafts: list[int] = []
    forwards = 0
    while len(text) < len(prompt) + count:
        read = text + drafts
        checked = best(net(read, list(range(len(read))), causal(len(read))))[len(text) - 1 :].tolist()
        block = [read[-1]] + [MASK] * (BLOCK - 1) if repeats else [MASK] * BLOCK
        guesses = best(behind(net, read, block, len(read) - repeats)).tolist() if len(read) > repeats else []
        kept = next((i for i, draft in enumerate(drafts) if draft != checked[i]), len(drafts))
        text += [*drafts[:kept], checked[kept]]
        drafts = guesses[1:] if kept == len(drafts) else []
        drafts = drafts[: max(len(prompt) + count - len(text) - 1, 0)]
        forwards += 1
    return text[len(prompt) : len(prompt) + count], forwards


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", ["nemotron", "sdlm"])
def test_self_speculation_writes_what_mode_ar_writes(
    name: str, temperature: float, tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planner, "plan_blocks", lambda *asked: None)  # every block is as long as can be
    made = {"root": "encoder.", **NEMOTRON} if name == "nemotron" else {"bias": True, **SDLM, "block_size": BLOCK}
    folder = saved(tmp_path / "model", **made)
    lm = DiffusionLM.from_pretrained(folder, backend=backend)
    prompts = [PROMPT, [7], [30, 31, 2, 4]]
    options: dict[str, Any] = {"max_new_tokens": 25, "temperature": temperature, "seed": 5, "ignore_eos": True}
    ar = lm.generate(prompts, mode="ar", **options)
    together = lm.generate(prompts, mode="verify", **options)
    assert [out.token_ids for out in together] == [out.token_ids for out in ar]
    assert all(sum(out.accepted) + len(out.accepted) >= 25 for out in together)
    alone = lm.generate(prompts[2], mode="verify", **{**options, "seed": 7})
    assert alone.token_ids == together[2].token_ids
    assert lm.generate(PROMPT, mode="verify", cache="none", **options).token_ids == ar[0].token_ids
    if temperature == 0:
        net = network(folder)
        assert ar[0].token_ids == written(net, PROMPT, 25)
        plain, forwards = speculated(net, PROMPT, 25, name == "sdlm")
        assert together[0].token_ids == plain
        assert together[0].steps == forwards


@pytest.mark.parametrize("rule", ["prefix", "prefix_entropy"])
@pytest.mark.parametrize("block", [4, 8])
def test_sdlm_keeps_the_longest_confident_prefix(block: int, rule: str, tmp_path: Path, backend: str) -> None:
    """By chances (prob_conf), or by one minus the entropy over its greatest (entropy_conf)."""
    folder = saved(tmp_path / "model", bias=True, **{**SDLM, "block_size": block})
    lm = DiffusionLM.from_pretrained(folder, backend=backend)
    assert (lm.loaded.family.name, lm.defaults.rule, lm.defaults.threshold) == ("SDLM", "prefix", 0.5)
    prompts = [PROMPT, [12, 13, 14]]
    options: dict[str, Any] = {"rule": rule, "threshold": 0.25, "seed": 0, "ignore_eos": True}
    outs = lm.generate(prompts, max_new_tokens=20, **options)
    net = network(folder)
    for prompt, out in zip(prompts, outs, strict=True):
        text = list(prompt)
        steps = 0
        while len(text) < len(prompt) + 20:
            logits = behind(net, text, [text[-1]] + [MASK] * (block - 1), len(text) - 1)
            token = best(logits)
            p = chances(logits, False)
            sure = p.gather(1, token[:, None])[:, 0].tolist()
            if rule == "prefix_entropy":
                sure = (1 + (p * p.log()).sum(-1) / math.log(VOCABULARY)).tolist()
            kept = next((i for i, p in enumerate(sure) if p <= 0.25), block)
            text += token[: max(kept, 1)].tolist()
            steps += 1
        assert out.token_ids == text[len(prompt) : len(prompt) + 20]
        assert out.steps == steps
        assert 20 / block < steps < 20
    short = lm.generate([12], max_new_tokens=6, **options)  # its first token as in mode ar
    assert short.token_ids[0] == written(net, [12], 1)[0]


@pytest.mark.parametrize("block", [2, 4, 8])
def test_sdlm_speculates_by_itself(block: int, tmp_path: Path, backend: str) -> None:
    """Its self_speculative: every draft has a block behind it, whose first column checks the next."""
    folder = saved(tmp_path / "model", bias=True, **{**SDLM, "block_size": block})
    lm = DiffusionLM.from_pretrained(folder, backend=backend)
    prompts = [PROMPT, [7], [30, 31, 2, 4]]
    options: dict[str, Any] = {"max_new_tokens": 25, "seed": 5, "ignore_eos": True}
    outs = lm.generate(prompts, rule="self_speculative", **options)
    net = network(folder)

    def ahead(text: list[int]) -> list[int]:
        made: list[int] = best(behind(net, text, [text[-1]] + [MASK] * (block - 1), len(text) - 1)).tolist()
        return made

    for prompt, out in zip(prompts, outs, strict=True):
        text = list(prompt)
        steps = 0
        if len(text) == 1:  # no text before the block: as in mode ar, and nothing is drafted
            text += written(net, text, 1)
            steps += 1
        sure, *drafts = ahead(text)
        text.append(sure)
        steps += 1
        if len(prompt) == 1:
            assert out.accepted[:2] == (0, 0)
        while len(text) < len(prompt) + 25:
            blocks = [ahead(text + drafts[:n]) for n in range(len(drafts) + 1)]
            kept = next((n for n, draft in enumerate(drafts) if draft != blocks[n][0]), len(drafts))
            text += [*drafts[:kept], blocks[kept][0]]
            drafts = blocks[kept][1:]
            steps += 1
        assert out.token_ids == text[len(prompt) : len(prompt) + 25]
        assert out.steps == steps
        assert sum(out.accepted) + len(out.accepted) == 25
        one_by_one = lm.generate(prompt, rule="prefix", threshold=1.0, **options)
        assert one_by_one.token_ids == out.token_ids
        assert one_by_one.steps == 25 >= out.steps
    assert min(out.steps for out in outs) < 25
    assert lm.generate(PROMPT, rule="self_speculative", cache="none", **options).token_ids == outs[0].token_ids
    drawn = lm.generate(prompts, rule="self_speculative", temperature=0.8, **options)
    alone = lm.generate(prompts[2], rule="self_speculative", temperature=0.8, **{**options, "seed": 7})
    assert alone.token_ids == drawn[2].token_ids


def test_wedlm_reads_what_is_written_before_the_masks(tmp_path: Path, backend: str) -> None:
    folder = saved(tmp_path / "model", norms=True, **WEDLM)
    lm = DiffusionLM.from_pretrained(folder, backend=backend)
    net = network(folder)
    prompts = [PROMPT, [12, 13, 14]]
    options: dict[str, Any] = {"block_length": 6, "entropy_bound": 1.5, "distance_penalty": 0.01, "temperature": 0.0}
    outs = lm.generate(prompts, max_new_tokens=20, seed=0, ignore_eos=True, **options)
    for prompt, out in zip(prompts, outs, strict=True):
        text = [*prompt, *[MASK] * 20]
        steps = 0
        while MASK in text:
            first = text.index(MASK)
            window = range(first, min(first + 6, len(text)))
            masks = [i for i in window if text[i] == MASK]
            order = [*range(first), *(i for i in window if text[i] != MASK), *masks]
            logits = net([text[i] for i in order], order, causal(len(order)))[-len(masks) :]
            p = chances(logits, False)
            cost = -(p * p.log()).sum(-1) + 0.01 * (torch.tensor(masks) - first)
            kept = (cost < 1.5).nonzero()[:, 0].tolist() or [int(cost.argmin())]
            for i in kept:
                text[masks[i]] = int(best(logits[i]))
            steps += 1
        assert out.token_ids == text[len(prompt) :]
        assert out.steps == steps
        order = [place for frame in out.frames for place in frame.positions]
        assert order != sorted(order)  # tokens behind a mask are read before it
    slow = lm.generate(PROMPT, max_new_tokens=20, seed=0, ignore_eos=True, cache="none", **options)
    assert slow.token_ids == outs[0].token_ids
    ar = lm.generate(PROMPT, max_new_tokens=9, mode="ar", temperature=0.0, ignore_eos=True)
    assert ar.token_ids == written(net, PROMPT, 9)
    checked = lm.generate(PROMPT, max_new_tokens=9, mode="verify", temperature=0.0, ignore_eos=True)
    assert checked.token_ids == ar.token_ids


def strides(net: Net, prompt: list[int], count: int, first: int, masks: int) -> tuple[list[int], list[list[int]]]:
    """The text of strided decoding at temperature 0, and what each forward drafts by masks that see those before them.
    first: 1 where the first mask scores the token that the text gives already, else 0."""
    text = list(prompt)
    drafts: list[int] = []
    drafted = list[list[int]]()
    while len(text) < len(prompt) + count:
        read = [*text, *drafts, *[MASK] * masks]
        guesses = best(net(read, list(range(len(read))), causal(len(read))))[len(text) - 1 :].tolist()
        kept = next((i for i, draft in enumerate(drafts) if draft != guesses[i]), len(drafts))
        text += [*drafts[:kept], guesses[kept]]
        drafts = guesses[kept + 1 + first :] if kept == len(drafts) else []
        drafts = drafts[: max(len(prompt) + count - len(text) - 1, 0)]
        drafted.append(drafts)
    return text[len(prompt) : len(prompt) + count], drafted


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("name", "block", "first", "masks"), [("i-dlm", 4, 0, 3), ("wedlm", 6, 1, 6)])
def test_strides_write_what_mode_ar_writes(
    name: str,
    block: int,
    first: int,
    masks: int,
    temperature: float,
    tmp_path: Path,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Planner, "plan_blocks", lambda *asked: None)  # every block is as long as can be
    drafted: dict[int, list[list[int]]] = {}
    take = SelfChecking.take

    def noting(scheme: SelfChecking, result: StepResult) -> list[Commit]:
        made = take(scheme, result)
        drafted.setdefault(scheme.row.number, []).append(list(scheme.drafts))
        return made

    monkeypatch.setattr(SelfChecking, "take", noting)
    folder = saved(tmp_path / "model", norms=True, **(I_DLM if name == "i-dlm" else WEDLM))
    lm = DiffusionLM.from_pretrained(folder, backend=backend)
    prompts = [PROMPT, [7], [30, 31, 2, 4]]
    options: dict[str, Any] = {"max_new_tokens": 25, "temperature": temperature, "seed": 5, "ignore_eos": True}
    options |= {"top_k": 0, "top_p": 1.0}
    ar = lm.generate(prompts, mode="ar", **options)
    together = lm.generate(prompts, mode="verify", block_length=block, **options)
    assert [out.token_ids for out in together] == [out.token_ids for out in ar]
    if temperature == 0:
        net = network(folder)
        for prompt, out, drafts in zip(prompts, together, drafted.values(), strict=True):
            assert (out.token_ids, drafts) == strides(net, prompt, 25, first, masks)
            assert max(map(len, drafts)) == block - 1
    assert lm.generate(PROMPT, mode="verify", cache="none", **options).token_ids == ar[0].token_ids


def test_i_dlm_is_told_from_sdar_and_writes_in_strides(tmp_path: Path) -> None:
    lm = DiffusionLM.from_pretrained(saved(tmp_path / "model", norms=True, **I_DLM))
    assert (lm.config.layout, lm.config.block_length, lm.defaults.mode) == ("causal_window", 4, "verify")
    with pytest.raises(UnmaskError, match="use mode 'verify' or 'ar'"):
        lm.generate([PROMPT], mode="diffusion")
    odd = {"block_size": "abc"}, {"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"], "num_experts": 8}
    for number, change in enumerate(odd):
        with pytest.raises(UnmaskError, match=r"block_length must be int|num_experts 8 is not supported"):
            DiffusionLM.from_pretrained(saved(tmp_path / f"odd{number}", norms=True, **{**I_DLM, **change}))
    sdar = saved(tmp_path / "sdar", norms=True, **{**I_DLM, "use_regular_causal": False})
    assert DiffusionLM.from_pretrained(sdar).config.layout == "block_causal"


def test_scores_of_drawn_tokens_are_those_at_temperature_one(tmp_path: Path, backend: str) -> None:
    folder = saved(tmp_path / "model", "encoder.", **NEMOTRON)
    lm = DiffusionLM.from_pretrained(folder, backend=backend)
    net = network(folder)
    for filters in ({}, {"top_k": 3}):
        out = lm.generate(PROMPT, max_new_tokens=BLOCK, seed=3, temperature=2.0, ignore_eos=True, **filters)
        frame = out.frames[0]
        p = chances(behind(net, PROMPT, [MASK] * BLOCK, len(PROMPT)), True)[np.array(frame.positions) - len(PROMPT)]
        if filters:
            p = p * (p >= p.topk(3).values[:, -1:])
            p = p / p.sum(-1, keepdim=True)
        told = p[range(len(frame.tokens)), list(frame.tokens)]
        np.testing.assert_allclose(frame.confidences, told, atol=1e-4)


def test_what_these_networks_are_not_is_refused(tmp_path: Path) -> None:
    for name, config in (
        ("shifted", {**NEMOTRON, "dlm_type": "dream"}),
        ("plain", {**NEMOTRON, "dlm_paradigm": "autoregressive"}),
    ):
        with pytest.raises(UnmaskError, match=r"dlm_type|dlm_paradigm"):
            DiffusionLM.from_pretrained(saved(tmp_path / name, "encoder.", **config))
    with pytest.raises(UnmaskError, match="causal_attn"):
        DiffusionLM.from_pretrained(saved(tmp_path / "causal", bias=True, **{**SDLM, "causal_attn": True}))
    lm = DiffusionLM.from_pretrained(saved(tmp_path / "model", "encoder.", **NEMOTRON))
    with pytest.raises(UnmaskError, match=r"'self_speculative' is for models .* \(SDLM\)"):
        lm.generate(PROMPT, rule="self_speculative")
    with pytest.raises(UnmaskError, match="cannot fill gaps"):
        lm.fill("a [[mask:3]]")
