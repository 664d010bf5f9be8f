"""DiffusionLM: the public surface on a small model with a real tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask import DiffusionLM, UnmaskError
from unmask.decoding.convention import Convention
from unmask.decoding.methods import DecodingDefaults
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer

FIXTURES = Path(__file__).parent / "conformance"
Tiny = Callable[..., Transformer]
TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog sat. " * 4


def make(tiny: Tiny, **options: Any) -> DiffusionLM:
    tokenizer = train_tokenizer("bpe", [TEXT], 300)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
    return DiffusionLM(tiny(pad_token_id=0, **{**sizes, **options}), tokenizer, DecodingDefaults(rule="quota"), "toy")


@pytest.fixture
def lm(tiny: Tiny) -> DiffusionLM:
    return make(tiny)


@pytest.fixture
def ar(tiny: Tiny) -> DiffusionLM:
    return make(tiny, layout="causal", shift=True)


@pytest.mark.parametrize("options", [{}, {"layout": "causal", "shift": True}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_are_one_line(tiny: Tiny, options: dict[str, Any], temperature: float) -> None:
    lm = make(tiny, **options)
    assert lm.generate([5, 7], 3, temperature=temperature, seed=1).token_ids
    lm.model.embedding.weight.data[5] = torch.nan  # as what overflows in float16
    with pytest.raises(UnmaskError, match="no numbers"):
        lm.generate([5, 7], 3, temperature=temperature, seed=1)


def test_generate_gives_all_it_promises(lm: DiffusionLM) -> None:
    out = lm.generate("the cat", max_new_tokens=12, max_denoising_steps=4, seed=3)
    prompt = lm.tokenizer.encode("the cat").ids  # type: ignore[union-attr]
    assert out.canvas.dtype == torch.long
    assert out.canvas[: len(prompt)].tolist() == prompt
    assert len(out.canvas) == len(prompt) + 12
    assert out.steps <= 4
    assert out.tokens_per_step == len(out.token_ids) / out.steps
    assert out.text == lm.tokenizer.decode(out.token_ids)  # type: ignore[union-attr]
    assert out.seed == 3
    streamed = list(lm.stream("the cat", max_new_tokens=12, max_denoising_steps=4, seed=3))
    assert streamed == out.frames


def test_a_seed_is_a_text(lm: DiffusionLM) -> None:
    options: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.0}
    assert lm.generate("the", seed=5, **options).token_ids == lm.generate("the", seed=5, **options).token_ids
    different = {tuple(lm.generate("the", seed=s, **options).token_ids) for s in range(5)}
    assert len(different) == 5


def test_a_list_of_prompts_is_a_batch(lm: DiffusionLM) -> None:
    outs = lm.generate(["the cat", "a dog and a cat sat on"], max_new_tokens=8, seed=10, temperature=0.8)
    alone = lm.generate("a dog and a cat sat on", max_new_tokens=8, seed=11, temperature=0.8)
    assert outs[1].token_ids == alone.token_ids
    ids = lm.tokenizer.encode("the cat").ids  # type: ignore[union-attr]
    assert lm.generate(ids, max_new_tokens=8, seed=10, temperature=0.8).token_ids == outs[0].token_ids
    assert (
        lm.generate(torch.tensor([ids]), max_new_tokens=8, seed=10, temperature=0.8)[0].token_ids == outs[0].token_ids
    )


def test_streamer_sees_every_frame(lm: DiffusionLM) -> None:
    seen: list[Any] = []
    out = lm.generate("the", max_new_tokens=6, streamer=seen.append)
    assert seen == out.frames


def test_stop_cuts_the_text(ar: DiffusionLM) -> None:
    whole = ar.generate("the cat", max_new_tokens=24, temperature=1.0, seed=1)
    stop = whole.text[5:8]
    cut = ar.generate("the cat", max_new_tokens=24, temperature=1.0, seed=1, stop=stop)
    assert cut.text == whole.text.split(stop, 1)[0]
    assert cut.steps <= whole.steps


def test_empty_prompt_is_the_start_of_a_text(lm: DiffusionLM) -> None:
    assert lm.generate("", max_new_tokens=4).canvas[0] == 0


def test_logits_score_their_own_position(lm: DiffusionLM, ar: DiffusionLM) -> None:
    ids = torch.tensor([[5, 9, 12, 7, 40]])
    assert lm.logits(ids).shape == (1, 5, lm.config.vocab_size)
    # a shifted model is un-shifted: what scores position 3 must not change with the token there
    changed = ids.clone()
    changed[0, 3] = 50
    torch.testing.assert_close(ar.logits(ids)[:, :4], ar.logits(changed)[:, :4])


@pytest.mark.parametrize("layout", ["bidirectional", "causal", "block_causal"])
def test_padding_on_either_side_changes_nothing(lm: DiffusionLM, layout: str) -> None:
    row = torch.tensor([[5, 9, 12, 7, 40]])
    alone = lm.logits(row, layout, 2)
    left = torch.cat([torch.zeros(1, 3, dtype=torch.long), row], 1)
    right = torch.cat([row, torch.zeros(1, 3, dtype=torch.long)], 1)
    mask_left = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(lm.logits(left, layout, 2, mask_left)[:, 3:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(lm.logits(right, layout, 2, mask_left.flip(1))[:, :5], alone, atol=1e-5, rtol=0)


def test_fill_fills_gaps_and_nothing_else(lm: DiffusionLM) -> None:
    out = lm.fill("the [[mask:2]] sat on[[mask:1-3]] log.", seed=1)
    assert len(out.gaps) == 2
    assert out.text == f"the{out.gaps[0]} sat on{out.gaps[1]} log."
    assert 3 <= len(out.token_ids) <= 5
    fixed = lm.fill("the [[mask:2]] sat[[mask:3]]", seed=1)
    assert len(fixed.token_ids) == 5


def test_save_and_load(lm: DiffusionLM, tmp_path: Path) -> None:
    lm.save_pretrained(tmp_path / "toy")
    again = DiffusionLM.from_pretrained(tmp_path / "toy")
    ids = torch.tensor([[5, 9, 12]])
    assert torch.equal(again.logits(ids), lm.logits(ids))
    assert again.defaults == lm.defaults
    assert again.generate("the cat", 8, seed=1).text == lm.generate("the cat", 8, seed=1).text


def test_likelihood_by_the_models_own_method(lm: DiffusionLM, ar: DiffusionLM) -> None:
    bound = lm.likelihood(["the cat sat", "a dog"], samples=32)
    assert [b.method for b in bound] == ["nelbo", "nelbo"]
    assert bound[0].std_error > 0
    assert bound[0].bits_per_byte > 0
    exact = ar.likelihood(["the cat sat"])[0]
    assert (exact.method, exact.std_error) == ("exact", 0.0)
    # a text in windows is longer than one window, and every token is scored
    long = ar.likelihood([TEXT])[0]
    assert long.tokens > ar.config.max_length


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": 1000}, "do not fit"),
    ({"rule": "best"}, "rule"),
    ({"threshold": 1.5}, "threshold"),
    ({"threshold": float("nan")}, "threshold"),
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"block_length": 0}, "block_length"),
    ({"max_denoising_steps": 0}, "max_denoising_steps"),
    ({"remask_budget": -1}, "remask_budget"),
    ({"mode": "ar"}, "mode"),
    ({"mode": "verify"}, "mode"),
    ({"cache": "paged"}, "cache"),
    ({"cache": "exact"}, "cache"),
    ({"cache_refresh": -1}, "cache_refresh"),
    ({"guidance": -0.5}, "guidance"),
    ({"schedule": "late"}, "schedule"),
    ({"convention": {"schedule_eps": 0.0}}, "schedule_eps"),
    ({"choice_temperature": -1.0}, "choice_temperature"),
    ({"convention": {"first_step": "two"}}, "first_step"),
    ({"convention": "theirs"}, "convention 'theirs' is unknown; use one of unmask, llada"),
    ({"strictly": True}, "strictly"),
]


@pytest.mark.parametrize(("options", "named"), BAD_OPTIONS)
def test_bad_options_are_named(lm: DiffusionLM, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UnmaskError, match=named) as caught:
        lm.generate("the cat", **{"max_new_tokens": 8, **options})
    assert "\n" not in str(caught.value)


def test_caches_and_guidance_are_refused_where_they_do_not_suit(ar: DiffusionLM) -> None:
    for options, named in (({"cache": "prefix"}, "bidirectional"), ({"guidance": 1.0}, "guidance")):
        with pytest.raises(UnmaskError, match=named) as caught:
            ar.generate("the cat", 4, **options)
        assert "\n" not in str(caught.value)


def test_every_option_of_decoding_reaches_the_request(lm: DiffusionLM) -> None:
    options = {
        "rule": "entropy",
        "schedule": "cosine",
        "guidance": 0.5,
        "cache": "dual",
        "cache_refresh": 3,
        "choice_temperature": 0.25,
        "convention": Convention(first_step="one", strict=True, empty_steps=True, due_is="most", schedule_eps=0.01),
    }
    request = lm.start("the cat", 8, seed=1, **options).decoder.requests[0]
    for name, value in options.items():
        held = (
            request.rule.name if name == "rule" else getattr(request if hasattr(request, name) else request.rule, name)
        )
        assert held == value


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_guidance_and_caches_from_the_outside(lm: DiffusionLM, cache: str) -> None:
    options: dict[str, Any] = {"seed": 1, "cache": cache, "block_length": 4, "max_denoising_steps": 2}
    plain, zero, guided = (lm.generate("the cat", 12, guidance=s, **options) for s in (None, 0.0, 3.0))
    assert plain.token_ids == zero.token_ids
    assert guided.token_ids != plain.token_ids
    assert plain.steps <= 6 >= guided.steps
    assert (
        lm.generate(["a dog", "the cat"], 12, guidance=3.0, **{**options, "seed": 0})[1].token_ids == guided.token_ids
    )


@pytest.mark.parametrize("prompt", [[5, 10**6], [5, -1], [1.5], 7, [{"role": "user", "content": "hi"}], ["a", 1]])
def test_bad_prompts_are_named(lm: DiffusionLM, prompt: Any) -> None:
    with pytest.raises(UnmaskError):
        lm.generate(prompt)


@pytest.mark.parametrize(
    "template", ["no gap", "a [[mask:0]] b", "a [[mask:3-1]] b", "a [[mask:900]] b", "[[mask:1-900]]", "[[mask:-1]]"]
)
def test_bad_templates_are_named(lm: DiffusionLM, template: str) -> None:
    with pytest.raises(UnmaskError):
        lm.fill(template)


def test_bad_logits_input_is_named(lm: DiffusionLM, ar: DiffusionLM) -> None:
    for ids in (
        torch.tensor([1, 2]),
        torch.tensor([[1.0]]),
        torch.tensor([[99999]]),
        torch.zeros(1, 65, dtype=torch.long),
    ):
        with pytest.raises(UnmaskError):
            lm.logits(ids)
    with pytest.raises(UnmaskError, match="layout"):
        lm.logits(torch.tensor([[1]]), layout="diagonal")
    with pytest.raises(UnmaskError, match="attention_mask"):
        lm.logits(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 3))
    with pytest.raises(UnmaskError, match="fill gaps"):
        ar.fill("the [[mask:2]]")
    with pytest.raises(UnmaskError, match="does not fit"):
        ar.likelihood(["a"], method="nelbo")


def test_bad_names_devices_and_dtypes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnmaskError, match="neither a folder"):
        DiffusionLM.from_pretrained("no-such-model")
    with pytest.raises(UnmaskError, match=r"config\.json"):
        DiffusionLM.from_pretrained(tmp_path)
    with pytest.raises(UnmaskError, match="dtype"):
        DiffusionLM.from_pretrained(tmp_path, dtype="int3")


@pytest.mark.parametrize("family", ["mdlm", "duo", "bd3lm", "bd3lm_adaln", "sedd_absorb", "sedd_uniform"])
def test_sampled_families_write_by_themselves(family: str) -> None:
    lm = DiffusionLM.from_pretrained(FIXTURES / family)
    prompts, room = [[1, 2, 3], [4] * 6], 8
    outs = lm.generate(prompts, max_new_tokens=room, seed=7)
    for number, (prompt, out) in enumerate(zip(prompts, outs, strict=True)):
        assert out.canvas[: len(prompt)].tolist() == prompt
        assert len(out.token_ids) == room
        assert lm.config.mask_token_id not in out.canvas.tolist()
        assert 0 < out.steps <= 129
        alone = lm.generate(prompt, max_new_tokens=room, seed=7 + number)
        assert alone.token_ids == out.token_ids
    assert lm.generate(prompts[0], max_new_tokens=room, seed=8).frames != outs[0].frames
    few = lm.generate(prompts[0], max_new_tokens=room, max_denoising_steps=2, seed=7)
    blocks = -(-(len(prompts[0]) + room) // lm.config.block_length) if lm.config.block_length else 0
    assert few.steps <= (2 * blocks or 3)


def test_a_rule_in_place_of_the_familys_sampler() -> None:
    lm = DiffusionLM.from_pretrained(FIXTURES / "mdlm")
    out = lm.generate([1, 2, 3], max_new_tokens=8, rule="quota", temperature=0.0, max_denoising_steps=4)
    assert out.steps == 4
    assert [len(frame.positions) for frame in out.frames] == [2] * 4
    assert lm.generate([1, 2, 3], max_new_tokens=8, sampler="first_hitting").steps == 8
    for family, options, says in (
        ("duo", {"rule": "quota"}, "by a sampler"),
        ("duo", {"sampler": "none"}, "by a sampler"),
        ("duo", {"sampler": "ddpm"}, "use ancestral, psi"),
        ("duo", {"block_length": 4}, "leave out block_length"),
        ("sedd_absorb", {"temperature": 0.5}, "leave out temperature"),
        ("bd3lm", {"sampler": "first_hitting", "max_denoising_steps": 3}, "or use ddpm_cache"),
        ("mdlm", {"remask_budget": 1}, "goes with a rule"),
        ("mdlm", {"rule": "quota", "sampler": "ddpm"}, "option 'rule' changes nothing here"),
        ("mdlm", {"nucleus_p": 0.0}, "nucleus_p is out of range"),
        ("duo", {"psi_kappa": 1.5}, "psi_kappa is out of range"),
        ("mdlm", {"sampler": "guess"}, "sampler is 'guess'"),
        ("mdlm", {"noise_removal": "often"}, "noise_removal is 'often'"),
    ):
        with pytest.raises(UnmaskError, match=says):
            DiffusionLM.from_pretrained(FIXTURES / family).generate([1], max_new_tokens=4, **options)


def test_gaps_in_a_canvas_of_random_tokens(tiny: Tiny) -> None:
    lm = make(tiny, corruption="uniform", mask_token_id=None)
    lm.defaults = DecodingDefaults(sampler="ancestral", temperature=1.0, max_denoising_steps=5)
    out = lm.fill("the [[mask:2-3]] sat on the [[mask:1]].", seed=1)
    assert out.text.startswith("the")
    assert len(out.gaps) == 2
    assert out.steps == 6
    first = out.first_canvas.tolist()
    written = {position for frame in out.frames for position in frame.positions}
    assert [a == b for i, (a, b) in enumerate(zip(first, out.canvas.tolist(), strict=True)) if i not in written] == [
        True
    ] * (len(first) - len(written))
    assert len(written) == len(out.token_ids)
    assert lm.fill("the [[mask:2-3]] sat on the [[mask:1]].", seed=1).text == out.text


def test_room_is_what_fits_in_whole_canvases() -> None:
    lm = DiffusionLM.from_pretrained(FIXTURES / "diffusion_gemma")
    most, canvas = lm.config.max_length, lm.prepare([1], 1).requests[0].block_length or 0
    assert canvas > 1
    for prompt in (most - canvas - 1, most - canvas, most - 2 * canvas + 1):
        room = lm.room(prompt)
        assert room % canvas == 0
        assert len(lm.prepare([1] * prompt, room).requests[0].ids) == prompt + room
        with pytest.raises(UnmaskError, match="do not fit"):
            lm.prepare([1] * prompt, room + 1)


@pytest.mark.parametrize("backend", ["torch", "native-f32"])
def test_runs_that_overlap_are_as_if_alone(backend: str) -> None:
    """In turns, a step of each at a time; and a third beside one that was left in the middle."""
    lm = DiffusionLM.from_pretrained("austen-ar", backend=backend)
    prompts = ("It was a", "Emma said that she")
    alone = [lm.generate(prompt, 12, seed=1) for prompt in prompts]
    runs = [lm.start(prompt, 12, seed=1) for prompt in prompts]
    for _ in zip(*(run.frames() for run in runs), strict=True):
        pass
    assert [run.outputs()[0].token_ids for run in runs] == [out.token_ids for out in alone]
    left = lm.start(prompts[0], 12, seed=1)
    next(left.frames())
    assert lm.generate(prompts[1], 12, seed=1).token_ids == alone[1].token_ids
    assert left.outputs()[0].token_ids == alone[0].token_ids
