"""Decoding by samplers: what is written follows the enumerated distribution, and the laws of the loop hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from unmask.backends.torch import TorchBackend
from unmask.canvas import Array, Frame
from unmask.decoding.feed import Feed, Sampling
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import DecodingDefaults, denoise, sample
from unmask.decoding.methods.ancestral import SamplerName, plan
from unmask.decoding.methods.renoise import noise
from unmask.decoding.request import Asked, Request
from unmask.decoding.rules import RuleOptions
from unmask.decoding.sampling import Scores
from unmask.layout import Layout
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer
from unmask.noise import NoiseSchedule

FULL = Layout("bidirectional")

# a language of two tokens of three kinds, known whole

KINDS, PAIR = 3, 2
TEXTS = list(product(range(KINDS), repeat=PAIR))
DATA = np.random.default_rng(5).dirichlet(np.full(len(TEXTS), 0.6)).reshape(KINDS, KINDS)


def config_of(corruption: str, output: str, size: int = KINDS) -> ModelConfig:
    absorbs = corruption == "absorbing"
    return ModelConfig(
        vocab_size=size + absorbs,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        intermediate_size=8,
        corruption=corruption,  # type: ignore[arg-type]
        output=output,  # type: ignore[arg-type]
        time_conditioned=not absorbs or output == "log_score",
        noise_schedule="geometric" if output == "log_score" and not absorbs else "log_linear",
        noise_range=(1e-3, 4.0),
        mask_token_id=size if absorbs else None,
    )


def kernel(kept: float, absorbs: bool) -> Array:
    """Chances from a token (row) to a token (column)."""
    size = KINDS + absorbs
    out = kept * np.eye(size)
    out[:, size - 1 if absorbs else slice(None)] += 1 - kept if absorbs else (1 - kept) / size
    return out


def noised(alphas: tuple[float, float], absorbs: bool) -> Array:
    """The chance of each pair where the first token is kept with chance alphas[0], the second with alphas[1]."""
    data = np.pad(DATA, (0, 1)) if absorbs else DATA
    return np.einsum("ab,ax,by->xy", data, kernel(alphas[0], absorbs), kernel(alphas[1], absorbs))


class Oracle:
    """A network that knows the language: the exact distribution of each clean token, or the exact score."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.absorbs = config, config.corruption == "absorbing"
        self.forwards = 0

    def open(self, layout: Layout, rows: int, slots: int, use_cache: bool) -> None: ...

    def admit(self, rows: int, slots: int) -> None: ...

    def keep(self, rows: Array) -> None: ...

    def forward(self, feed: Feed) -> Oracle.Logits:
        self.forwards += 1
        rows = [self.say(feed.ids[r], t, float(feed.time[r])) for r, t in zip(feed.row, feed.target, strict=True)]
        return Oracle.Logits(np.array(rows).reshape(len(rows), self.config.vocab_size))

    def say(self, ids: Array, place: int, sigma: float) -> Array:
        """Distribution [V] of the clean token at a place, or score up to a factor, given the pair that is there."""
        kept, other = float(np.exp(-sigma)), int(ids[1 - place])
        if self.config.output == "log_score":
            marginal = noised((kept, kept), self.absorbs)
            return marginal[:, other] if place == 0 else marginal[other]
        data = np.pad(DATA, (0, 1)) if self.absorbs else DATA
        data = data if place == 0 else data.T
        if not self.absorbs:  # what stands at the place itself is left to the sampler's own Bayes
            return data @ kernel(kept, False)[:, other]
        return data.sum(1) if other == self.config.mask_token_id else data[:, other]

    @dataclass(frozen=True)
    class Logits:
        p: Array

        def propose(self, sampling: Sampling) -> Scores:
            raise AssertionError("samplers read distributions")

        def probabilities(self, index: Array, sampling: Sampling) -> Array:
            return self.p[index] / self.p[index].sum(-1, keepdims=True)


def enumerated(oracle: Oracle, options: sample.Options) -> Array:
    """Chances [V, V] of what a sampler ends with, state by state and move by move."""
    absorbs, size = oracle.absorbs, oracle.config.vocab_size
    level = NoiseSchedule.of_network(oracle.config.noise_schedule, *oracle.config.noise_range)
    chances = NoiseSchedule.of_network("linear") if options.name == "ddpm_cache" else level
    state = np.zeros((size, size))
    state[size - 1 if absorbs else slice(None), size - 1 if absorbs else slice(None)] = 1 if absorbs else 1 / size**2
    for move in plan(options, blocks=False):
        after = np.zeros_like(state)
        for pair in product(range(size), repeat=2):
            sides = []
            for place in (0, 1):
                said = oracle.say(np.array(pair), place, float(level.sigma(move.t)))
                removed, x = move.removal != "none", pair[place]
                if oracle.config.output == "log_score":
                    # exact: the place at the earlier noise, the other where it is
                    a_t, a_s = float(level.alpha(move.t)), 1.0 if removed else float(level.alpha(move.s))
                    alphas = (a_s, a_t) if place == 0 else (a_t, a_s)
                    joint = noised(alphas, absorbs)
                    early = joint[:, pair[1]] if place == 0 else joint[pair[0]]
                    row = early * kernel(a_t / a_s, absorbs)[:, x]
                elif absorbs and x != size - 1:
                    row = np.eye(size)[x]
                else:
                    a_t, a_s = float(chances.alpha(move.t)), 1.0 if removed else float(chances.alpha(move.s))
                    clean = said / said.sum()
                    if move.removal == "greedy":
                        row = np.eye(size)[clean.argmax()]
                    else:
                        row = (clean @ kernel(a_s, absorbs)) * kernel(a_t / a_s, absorbs)[:, x]
                        if options.name == "psi" and not removed:
                            fresh = clean * kernel(a_t, absorbs)[:, x]
                            fresh = fresh / fresh.sum() @ kernel(a_s, absorbs)
                            row = options.psi_kappa * row / row.sum() + (1 - options.psi_kappa) * fresh
                sides.append(row / row.sum())
            after += state[pair] * np.outer(*sides)
        state = after
    return state


def sampled(oracle: Oracle, options: sample.Options, count: int) -> Array:
    """Shares [V, V] of what requests of different seeds end with."""
    size, mask = oracle.config.vocab_size, oracle.config.mask_token_id
    requests = []
    for seed in range(count):
        ids = [mask] * PAIR if mask is not None else noise(seed, 0, np.arange(PAIR), size).tolist()
        requests.append(Request(ids, [False] * PAIR, seed, temperature=1.0, method=options))
    decoder = Decoder(oracle, FULL, requests)
    for _ in decoder.run():
        pass
    ends = np.zeros((size, size))
    np.add.at(ends, tuple(decoder.canvas.ids.T), 1 / count)
    return ends


def agree(shares: Array, chances: Array, count: int) -> None:
    """Every share is within four standard deviations of its chance."""
    assert chances.sum() == pytest.approx(1)
    deviation = np.sqrt(np.maximum(chances * (1 - chances), 1e-12) / count)
    assert (np.abs(shares - chances) <= 4 * deviation + 1e-9).all()


@pytest.mark.parametrize(
    ("corruption", "output", "options"),
    [
        ("absorbing", "logits", sample.Options("ddpm", 3)),
        ("absorbing", "logits", sample.Options("ddpm_cache", 4, noise_removal="greedy")),
        ("absorbing", "logits", sample.Options("ancestral", 2, noise_removal="ancestral")),
        ("absorbing", "logits", sample.Options("analytic", 3, noise_removal="ancestral")),
        ("uniform", "logits", sample.Options("ancestral", 3, noise_removal="ancestral")),
        ("uniform", "logits", sample.Options("ancestral", 3, noise_removal="none")),
        ("uniform", "logits", sample.Options("psi", 3, noise_removal="greedy", psi_kappa=0.4)),
        ("absorbing", "log_score", sample.Options("analytic", 3, noise_removal="ancestral")),
        ("uniform", "log_score", sample.Options("analytic", 3, noise_removal="ancestral")),
    ],
)
def test_what_is_written_follows_the_enumerated_distribution(
    corruption: str, output: str, options: sample.Options
) -> None:
    oracle, count = Oracle(config_of(corruption, output)), 1200
    agree(sampled(oracle, options, count), enumerated(oracle, options), count)


def test_one_token_a_step_is_exact() -> None:
    """First hitting writes the language itself, whatever the network's order."""
    oracle, count = Oracle(config_of("absorbing", "logits")), 2000
    agree(sampled(oracle, sample.Options("first_hitting"), count), np.pad(DATA, (0, 1)), count)
    assert oracle.forwards == PAIR


@pytest.mark.parametrize("corruption", ["absorbing", "uniform"])
def test_many_steps_come_near_the_language(corruption: str) -> None:
    oracle = Oracle(config_of(corruption, "logits"))
    errors = []
    for steps in (2, 20, 200):
        ends = enumerated(oracle, sample.Options("ancestral", steps, noise_removal="ancestral"))
        errors.append(np.abs(ends[:KINDS, :KINDS] - DATA).sum())
    assert errors[0] > 5 * errors[1] > 5 * errors[2]
    assert errors[2] < 0.01


# networks


def network(corruption: str = "absorbing", output: str = "logits", blocks: int = 0, **fields: object) -> Transformer:
    config = replace(
        config_of(corruption, output, 16),
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        intermediate_size=48,
        max_length=64,
        layout="block_causal" if blocks else "bidirectional",
        block_length=blocks,
        time_condition_size=8 if corruption == "uniform" else 0,
        **fields,  # type: ignore[arg-type]
    )
    model = Transformer(config).initialise(3, std=0.4).eval()
    if model.time_embedding is not None:  # adaLN-Zero starts as nothing
        for name, parameter in model.named_parameters():
            if "modulation" in name or "time" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


def ask(model: Transformer, prompt: list[int], new: int, name: SamplerName, **options: object) -> Request:
    how = {k: options.pop(k) for k in ("steps", "noise_removal", "nucleus_p", "whole") if k in options}
    seed, config = int(options.get("seed", 0)), model.config  # type: ignore[call-overload]
    mask, place = config.mask_token_id, np.arange(len(prompt) + new)
    start = noise(seed, 0, place, config.vocab_size) if mask is None else np.full(len(place), mask)
    ids = [*prompt, *start[len(prompt) :].tolist()]
    given = [True] * len(prompt) + [False] * new
    sampler = sample.Options(name, **how)  # type: ignore[arg-type]
    return Request(ids, given, temperature=1.0, method=sampler, **options)  # type: ignore[arg-type]


def decode(
    model: Transformer, requests: list[Request], layout: Layout = FULL, **options: object
) -> tuple[Decoder, list[Frame]]:
    decoder = Decoder(TorchBackend(model), layout, requests, **options)  # type: ignore[arg-type]
    return decoder, [frame for step in decoder.run() for frame in step]


def written(decoder: Decoder, row: int = 0) -> list[int]:
    return decoder.canvas.ids[row, : len(decoder.requests[row].ids)].tolist()


CASES: list[tuple[SamplerName, str, str, int]] = [
    ("ddpm", "absorbing", "logits", 0),
    ("ddpm_cache", "absorbing", "logits", 0),
    ("analytic", "absorbing", "logits", 0),
    ("first_hitting", "absorbing", "logits", 0),
    ("ancestral", "uniform", "logits", 0),
    ("psi", "uniform", "logits", 0),
    ("analytic", "absorbing", "log_score", 0),
    ("euler", "uniform", "log_score", 0),
    ("first_hitting", "absorbing", "logits", 4),
    ("ddpm_cache", "absorbing", "logits", 4),
]


@pytest.mark.parametrize(("name", "corruption", "output", "blocks"), CASES)
def test_company_changes_nothing(name: SamplerName, corruption: str, output: str, blocks: int) -> None:
    """Law 7: requests of other lengths, seeds and ways of decoding in the batch leave a request's ids alone."""
    model = network(corruption, output, blocks)
    layout, common = Layout("block_causal", blocks) if blocks else FULL, {"block_length": blocks or None}
    mine = ask(model, [3, 1, 4], 10, name, seed=7, steps=6, **common)
    others = [ask(model, [5], 21, name, seed=1, steps=3, **common), ask(model, [3, 1, 4], 10, name, seed=8, **common)]
    if corruption == "absorbing" and output == "logits":
        others.append(
            replace(mine, method=denoise.Options(), temperature=0.0, rule=RuleOptions("quota"), max_denoising_steps=3)
        )
    alone, alone_frames = decode(model, [mine], layout)
    together, frames = decode(model, [others[0], mine, *others[1:]], layout)
    assert written(together, 1) == written(alone)
    assert together.steps[1] == alone.steps[0]
    assert [(f.step, f.positions, f.tokens) for f in frames if f.row == 1] == [
        (f.step, f.positions, f.tokens) for f in alone_frames
    ]
    assert written(together, 2) != written(alone)  # another seed


@pytest.mark.parametrize(("name", "corruption", "output", "blocks"), CASES)
def test_frames_replay_and_nothing_given_moves(name: SamplerName, corruption: str, output: str, blocks: int) -> None:
    model = network(corruption, output, blocks)
    layout = Layout("block_causal", blocks) if blocks else FULL
    asked = ask(model, [3, 1, 4], 9, name, seed=2, steps=5, block_length=blocks or None)
    asked = replace(asked, ids=[*asked.ids[:6], 11, *asked.ids[7:]], given=[*asked.given[:6], True, *asked.given[7:]])
    decoder = Decoder(TorchBackend(model), layout, [asked])
    first, frames = decoder.canvas, [frame for step in decoder.run() for frame in step]
    assert (first.replay(frames).ids == decoder.canvas.ids).all()
    assert written(decoder)[:3] == [3, 1, 4]
    assert written(decoder)[6] == 11
    assert 16 not in written(decoder)
    kinds = {kind for frame in frames for kind in frame.kinds}
    assert kinds == ({"unmask"} if corruption == "absorbing" else {"renoise", "unmask"})
    if corruption == "uniform":  # the last frame settles every open token
        assert set(frames[-1].kinds) == {"unmask"}
        assert list(frames[-1].positions) == [i for i, given in enumerate(asked.given) if not given]
        assert decoder.steps == [6]
    again, _ = decode(model, [asked], layout)
    assert written(again) == written(decoder)


@pytest.mark.parametrize("name", ["first_hitting", "ddpm_cache"])
def test_exact_cache_changes_nothing(name: SamplerName) -> None:
    model = network(blocks=4)
    requests = [
        ask(model, [3, 1, 4, 1, 5], 13, name, seed=1, block_length=4, steps=6),
        ask(model, [2], 17, name, seed=2, block_length=4, steps=3),
    ]
    cached, _ = decode(model, requests, Layout("block_causal", 4))
    plain, _ = decode(model, requests, Layout("block_causal", 4), use_cache=False)
    assert cached.steps == plain.steps
    assert [written(cached, row) for row in (0, 1)] == [written(plain, row) for row in (0, 1)]


def test_an_unchanged_canvas_is_not_read_again() -> None:
    model = network()
    asked = ask(model, [3], 12, "ddpm_cache", steps=200)
    decoder, frames = decode(model, [asked])
    assert decoder.steps[0] == len(frames) <= 12  # every forward writes something
    whole, _ = decode(model, [ask(model, [3], 12, "ddpm_cache", steps=200, whole=True)])
    assert whole.steps[0] - decoder.steps[0] in (1, 2)  # the full canvas is read again, and at the end
    assert written(whole) == written(decoder)
    every, _ = decode(model, [ask(model, [3], 12, "ddpm", steps=200, whole=True)])
    assert every.steps == [201]


def test_first_hitting_takes_a_forward_a_token() -> None:
    decoder, frames = decode(network(), [ask(network(), [3], 12, "first_hitting")])
    assert decoder.steps == [12]
    assert all(len(frame.positions) == 1 for frame in frames)
    assert [frame.positions[0] for frame in frames] != sorted(frame.positions[0] for frame in frames)


def test_the_network_is_told_the_time() -> None:
    told: list[float] = []

    class Listening(TorchBackend):
        def forward(self, feed: Feed) -> object:  # type: ignore[override]
            told.extend(feed.time.tolist())
            return super().forward(feed)

    model = network("uniform")
    decoder = Decoder(Listening(model), FULL, [ask(model, [3], 5, "ancestral", steps=4)])  # type: ignore[arg-type]
    for _ in decoder.run():
        pass
    expected = [NoiseSchedule.of_network().sigma(t) for t in np.linspace(1, 1e-5, 5)]
    assert told == pytest.approx(expected)
    model = network(blocks=4, time_conditioned=True, noise_schedule="linear")
    told.clear()
    layout = Layout("block_causal", 4)
    decoder = Decoder(Listening(model), layout, [ask(model, [3], 7, "first_hitting", block_length=4)])  # type: ignore[arg-type]
    for _ in decoder.run():
        pass
    assert all(a > b for a, b in pairwise(told[:3]))
    assert all(a > b for a, b in pairwise(told[3:]))  # every block begins at time 1
    told.clear()
    decoder = Decoder(Listening(network()), FULL, [ask(network(), [3], 5, "ddpm", steps=4)])  # type: ignore[arg-type]
    for _ in decoder.run():
        pass
    assert set(told) == {0.0}


def test_what_is_left_may_stay_noise() -> None:
    model = network()
    decoder, _ = decode(model, [ask(model, [3], 40, "ddpm", steps=3, noise_removal="none")])
    assert decoder.steps == [3]
    eps = replace(ask(model, [3], 40, "ddpm"), method=sample.Options("ddpm", 3, noise_removal="none", eps=0.5))
    decoder, _ = decode(model, [eps])
    assert 0 < written(decoder).count(16) < 40


def test_temperature_zero_takes_the_best_token_at_random_places() -> None:
    model = network()
    asked = replace(ask(model, [3], 8, "first_hitting"), temperature=0.0)
    decoder, frames = decode(model, [asked])
    canvas = torch.tensor([asked.ids])
    for frame in frames:
        with torch.inference_mode():
            logits = model(canvas)[0, frame.positions[0], :16]  # a mask is never proposed
        assert int(logits.argmax()) == frame.tokens[0]
        assert frame.confidences == (1.0,)
        canvas[0, frame.positions[0]] = frame.tokens[0]
    assert canvas[0].tolist() == written(decoder)


def test_few_distributions_at_a_time_are_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("uniform")
    asked = ask(model, [3], 20, "ancestral", steps=3)
    before, _ = decode(model, [asked])
    monkeypatch.setattr("unmask.decoding.methods.sample.MOST_VALUES", 40)
    after, _ = decode(model, [asked])
    assert written(before) == written(after)


@pytest.mark.parametrize(
    ("name", "corruption", "output", "blocks", "options", "says"),
    [
        ("psi", "absorbing", "logits", 0, {}, "use ancestral, ddpm, ddpm_cache, analytic, first_hitting"),
        ("ddpm", "uniform", "logits", 0, {}, "use ancestral, psi"),
        ("ancestral", "uniform", "log_score", 0, {}, "use analytic, euler"),
        ("analytic", "absorbing", "logits", 4, {}, "in blocks"),
        ("ancestral", "uniform", "logits", 0, {"block_length": 4}, "leave out block_length"),
        ("ddpm", "absorbing", "logits", 0, {"block_length": 4, "noise_removal": "none"}, "greedy or ancestral"),
        ("analytic", "absorbing", "log_score", 0, {"top_k": 3}, "leave out temperature"),
        ("ddpm", "absorbing", "logits", 0, {"remask_budget": 3}, "goes with a rule"),
    ],
)
def test_samplers_that_do_not_fit_are_refused(
    name: SamplerName, corruption: str, output: str, blocks: int, options: dict[str, object], says: str
) -> None:
    config = network(corruption, output, blocks).config
    chosen = DecodingDefaults(sampler=name, **{"temperature": 1.0, **options})  # type: ignore[arg-type]
    asked = Asked("it", config, config.layout, "diffusion", chosen)
    reason = sample.Options.suits(asked)
    assert reason is not None
    assert says in reason
    drafting = replace(network("absorbing").config, layout="drafts")
    refused = sample.Options.suits(replace(asked, config=drafting))
    assert refused is not None
    assert "diffusion models" in refused
