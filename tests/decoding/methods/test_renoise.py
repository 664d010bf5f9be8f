"""Denoising canvases of random tokens; against transformers and diffusers in tests/test_conformance.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from unmask import DiffusionLM, UnmaskError
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import renoise
from unmask.decoding.methods.renoise import RenoiseOptions, noise, settled, temperature
from unmask.decoding.request import Request
from unmask.layout import Layout
from unmask.output import Output

Array = NDArray[Any]
FOLDER = Path(__file__).parents[2] / "conformance" / "diffusion_gemma"


def test_a_canvas_that_changed_is_not_settled() -> None:
    options, sure = RenoiseOptions(stability_threshold=2), np.zeros(3)
    a, b = np.array([1, 2, 3]), np.array([1, 2, 4])
    assert settled(a, [b, a, a], sure, options)
    assert not settled(a, [a, b, a], sure, options)
    assert not settled(a, [a, a], sure + options.confidence_threshold, options)


@given(st.integers(1, 100), st.floats(0, 5), st.floats(0, 5))
def test_temperature_falls_from_one_end_to_near_the_other(steps: int, low: float, more: float) -> None:
    options = RenoiseOptions(max_steps=steps, t_min=low, t_max=low + more)
    warmth = [temperature(left, options) for left in range(steps, 0, -1)]
    assert warmth[0] == pytest.approx(low + more)
    assert warmth[-1] == pytest.approx(low + more / steps)
    np.testing.assert_allclose(np.diff(warmth), -more / steps, atol=1e-12)


@given(st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 300_000), st.integers(1, 40))
def test_noise_is_uniform_over_the_vocabulary_and_addressed(seed: int, step: int, vocabulary: int, count: int) -> None:
    tokens = noise(seed, step, np.arange(count), vocabulary)
    assert ((tokens >= 0) & (tokens < vocabulary)).all()
    last = noise(seed, step, np.array([count - 1]), vocabulary)
    assert tokens[-1] == last[0]


def test_noise_takes_every_token_alike() -> None:
    counts = np.bincount(noise(3, 1, np.arange(70_000), 7), minlength=7)
    assert abs(counts - 10_000).max() < 400  # four standard deviations


@pytest.fixture(scope="module")
def lm() -> DiffusionLM:
    return DiffusionLM.from_pretrained(FOLDER)


def test_generate_writes_what_was_asked_for(lm: DiffusionLM) -> None:
    out = lm.generate([5, 6, 7], max_new_tokens=11, max_denoising_steps=3, seed=1, entropy_bound=3.0)
    assert len(out.token_ids) <= 11
    assert out.canvas.tolist()[:3] == [5, 6, 7]
    assert len(out.canvas) == 3 + 16  # whole canvases
    assert out.steps == 6
    assert {kind for frame in out.frames for kind in frame.kinds} <= {"unmask", "renoise", "edit"}


def replayed(out: Output) -> list[int]:
    canvas = out.first.copy()
    for frame in out.frames:
        canvas[list(frame.positions)] = frame.tokens
    return canvas.tolist()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"temperature": 1.5, "top_k": 9, "top_p": 0.8}])
def test_a_requests_text_is_its_own(lm: DiffusionLM, options: dict[str, Any]) -> None:
    """Alone, in a batch, with or without a cache; and its frames tell all of it."""
    common: dict[str, Any] = {"max_new_tokens": 20, "max_denoising_steps": 4, "entropy_bound": 3.0, **options}
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 30, 31, 32, 33], [11] * 5]
    together = lm.generate(prompts, seed=4, **common)
    for number, (prompt, out) in enumerate(zip(prompts, together, strict=True)):
        alone = lm.generate(prompt, seed=4 + number, **common)
        assert out.written.tolist() == alone.written.tolist() == replayed(out)
        assert out.steps == alone.steps
        again = lm.generate(prompt, seed=4 + number, cache="none", **common)
        assert again.written.tolist() == alone.written.tolist()
    assert lm.generate(prompts[0], seed=5, **common).written.tolist() != together[0].written.tolist()


def test_requests_join_and_leave_between_steps(lm: DiffusionLM) -> None:
    options = renoise.Options(max_steps=3, entropy_bound=3.0)

    def request(seed: int, text: int) -> Request:
        start = noise(seed, 0, np.arange(text, text + 16), lm.config.vocab_size).tolist()
        ids, given = [*range(10, 10 + text), *start], [i < text for i in range(text + 16)]
        return Request(ids, given, seed, block_length=8, method=options)

    decoder = Decoder(lm.backend, Layout("canvas"), [request(1, 4)])
    decoder.step()
    late = decoder.admit(request(2, 13))
    decoder.step()
    gone = decoder.admit(request(3, 2))
    decoder.step()
    decoder.release(gone)
    for _ in decoder.run():
        pass
    for number, (seed, text) in ((0, (1, 4)), (late, (2, 13))):
        alone = Decoder(lm.backend, Layout("canvas"), [request(seed, text)])
        for _ in alone.run():
            pass
        assert decoder.rows[number].canvas.ids.tolist() == alone.rows[0].canvas.ids.tolist()


def test_an_end_of_text_ends_it_and_padding_follows(lm: DiffusionLM) -> None:
    """The end is taken from what the same run writes without it."""
    common: dict[str, Any] = {"max_new_tokens": 24, "max_denoising_steps": 3, "seed": 2, "entropy_bound": 3.0}
    written = lm.generate([5, 6, 7], **common).written.tolist()[3:]
    end = next(token for token in written[8:16] if token not in written[:8])
    out = DiffusionLM(lm.model, None, lm.defaults.override({"eos_token_ids": (end,)})).generate([5, 6, 7], **common)
    place = written.index(end)
    assert out.token_ids == written[:place]
    assert out.steps == 6
    assert out.written.tolist() == [5, 6, 7, *written[: place + 1]] + [lm.config.pad_token_id] * (24 - place - 1)
    assert replayed(out) == out.written.tolist()
    run = lm.start([5, 6, 7], **common, eos_token_ids=[end])
    assert run.outputs()[0].token_ids == out.token_ids


def test_a_stop_string_ends_it(lm: DiffusionLM) -> None:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(lm.config.vocab_size)}, unk_token="w0"))
    speaking = DiffusionLM(lm.model, words, lm.defaults)
    common: dict[str, Any] = {"max_new_tokens": 24, "max_denoising_steps": 3, "seed": 2, "entropy_bound": 3.0}
    whole = speaking.generate([5, 6, 7], **common)
    stop = words.decode(whole.token_ids[8:10])
    out = speaking.generate([5, 6, 7], **common, stop=stop)
    assert out.text == whole.text.split(stop, 1)[0]
    assert out.steps == 6
    assert out.token_ids == whole.token_ids[:16]  # noise is not given away


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_min": 0.9}, "t_min"),
        ({"t_max": 0.0}, "t_max"),
        ({"stability_threshold": -1}, "stability_threshold"),
        ({"confidence_threshold": -0.1}, "confidence_threshold"),
        ({"remask_budget": 1}, "without remasking"),
    ],
)
def test_options_out_of_range_are_refused(lm: DiffusionLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnmaskError, match=message):
        lm.generate([5, 6], **options)


def test_an_empty_prompt_is_the_start_of_a_text(lm: DiffusionLM) -> None:
    common: dict[str, Any] = {"max_new_tokens": 8, "max_denoising_steps": 2, "seed": 2}
    assert (
        lm.generate([], **common).written.tolist() == lm.generate([lm.config.bos_token_id], **common).written.tolist()
    )


def test_options_of_the_checkpoints_own_file(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    own = {"t_min": 0.1, "eos_token_id": [3, 4], "sampler_config": {"entropy_bound": 0.7, "_cls_name": "x"}}
    (tmp_path / "generation_config.json").write_text(json.dumps({**own, "max_denoising_steps": 5, "max_length": 9}))
    lm = DiffusionLM.from_pretrained(tmp_path)
    assert (lm.defaults.t_min, lm.defaults.t_max, lm.defaults.entropy_bound) == (0.1, 0.8, 0.7)
    assert (lm.defaults.max_denoising_steps, lm.defaults.eos_token_ids) == (5, (3, 4))
    lm.save_pretrained(tmp_path / "copy")
    assert DiffusionLM.from_pretrained(tmp_path / "copy").defaults == lm.defaults
