"""lm-evaluation-harness with `unmask` as a model, on tasks made of local files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask import DiffusionLM, UnmaskError
from unmask.decoding.methods import DecodingDefaults
from unmask.evaluation.exact import Row, answers, likelihood
from unmask.models.transformer import Transformer
from unmask.training.tokenizer import train_tokenizer

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'unmask[harness]'")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from unmask.evaluation.harness import UnmaskLM  # noqa: E402

TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog sat.\n"
ROWS = [{"question": "the cat", "choices": [" sat", " log"]}, {"question": "a dog and", "choices": [" a cat", " mat"]}]
TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}a: {% endif %}"
TASKS: dict[str, dict[str, Any]] = {
    "toy_choice": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": 0,
                   "target_delimiter": "", "metric_list": [{"metric": "acc"}]},
    "toy_rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
                    "metric_list": [{"metric": "bits_per_byte"}]},
    "toy_until": {"output_type": "generate_until", "doc_to_target": "{{choices[0]}}",
                  "metric_list": [{"metric": "exact_match"}],
                  "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}},
}  # fmt: skip


@pytest.fixture(params=["bidirectional", "causal"])
def lm(request: pytest.FixtureRequest, tiny: Callable[..., Transformer], tmp_path: Path) -> DiffusionLM:
    tokenizer = train_tokenizer("char", [TEXT + "q:"], 300)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
    network = tiny(layout=request.param, shift=request.param == "causal", **sizes)
    folder = tmp_path / "toy"
    DiffusionLM(network, tokenizer, DecodingDefaults(rule="quota"), "toy").save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return DiffusionLM.from_pretrained(folder)


def ask(kind: str, *requests: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, arguments, place) for place, arguments in enumerate(requests)]  # type: ignore[arg-type]


def test_the_harness_gives_the_numbers_of_unmask_eval(lm: DiffusionLM, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    for name, task in TASKS.items():
        data = {"data_files": {"test": str(rows)}, "cache_dir": str(tmp_path / "cache")}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test",
                 "doc_to_text": "{{question}}", **task}  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(json.dumps(whole))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = UnmaskLM(lm, samples=16)
    found = lm_eval.simple_evaluate(model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)
    samples = found["samples"]

    def nats(*asked: Row) -> float:
        return float(likelihood(lm, list(asked), "auto", 16, 0, lambda share: None)["nats"])

    for row, sample in zip(ROWS, samples["toy_choice"], strict=True):
        ours = [nats(Row(choice, prompt=row["question"])) for choice in row["choices"]]
        assert [-value for value, _ in sample["filtered_resps"]] == pytest.approx(ours, rel=1e-5)
    bits = likelihood(lm, [Row(str(row["question"])) for row in ROWS], "auto", 16, 0, lambda share: None)
    assert found["results"]["toy_rolling"]["bits_per_byte,none"] == pytest.approx(bits["bits_per_byte"], rel=1e-5)
    outs = answers(
        lm, [Row("", prompt=row["question"]) for row in ROWS], 8, {"temperature": 0.0, "stop": ["\n"]}, print
    )
    assert [sample["filtered_resps"] for sample in samples["toy_until"]] == [[out.text] for out in outs]


def test_requests_do_not_depend_on_their_company(lm: DiffusionLM) -> None:
    """Of any batch and order; repeats of one request are drawn anew, and a seed repeats them all."""
    pairs = ask("loglikelihood", ("the cat", " sat"), ("", "a dog"), ("the cat  ", "sat on"))
    draws = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 9, "until": []}
    texts = ask("generate_until", *[(context, draws) for context in ("the", "a cat", "the", "on the mat. a")])
    one, many = UnmaskLM(lm, batch_size=1, samples=8), UnmaskLM(lm, batch_size=4, samples=8)
    together, alone = many.loglikelihood(pairs), [one.loglikelihood([pair])[0] for pair in pairs[::-1]][::-1]
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], rel=1e-5)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]
    written = many.generate_until(texts)
    assert written == one.generate_until(texts)
    assert written[0] != written[2]
    assert written != UnmaskLM(lm, seed=1).generate_until(texts)


def test_whether_a_text_is_the_greedy_one(lm: DiffusionLM) -> None:
    steps = {} if lm.config.layout == "causal" else {"max_denoising_steps": 2}
    outs = {context: lm.generate(context, 2, temperature=0.0, **steps).text for context in TEXT.split()}
    outs = {context: text for context, text in outs.items() if len(text) == 2}  # no end of text
    assert outs
    right = ask("loglikelihood", *outs.items())
    wrong = ask("loglikelihood", *((context, text[::-1] + "q") for context, text in outs.items()))
    model = UnmaskLM(lm, samples=2)
    assert all(greedy for _, greedy in model.loglikelihood(right))
    assert not all(greedy for _, greedy in model.loglikelihood(wrong))


def test_chats_are_written_by_the_models_template(lm: DiffusionLM) -> None:
    model = UnmaskLM(lm)
    assert model.chat_template(True) == TEMPLATE
    chat = [{"role": "q", "content": "the cat"}]
    assert model.apply_chat_template(chat) == "q: the cat\na: "
    begun = [*chat, {"role": "a", "content": "sat "}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == "q: the cat\na: sat"
    with pytest.raises(UnmaskError, match="no chat template 'rag'"):
        model.chat_template("rag")


def test_long_prompts_are_cut_on_the_left(lm: DiffusionLM, caplog: pytest.LogCaptureFixture) -> None:
    model = UnmaskLM(lm, samples=4)
    (value, _), (short, _) = model.loglikelihood(ask("loglikelihood", ("x" * 9 + TEXT, " sat"), (TEXT[-60:], " sat")))
    assert "cut on the left" in caplog.text
    assert value == pytest.approx(short, rel=1e-5)
    (text,) = model.generate_until(ask("generate_until", (TEXT * 2, {"until": []})))
    assert len(text) <= 1  # what is left of the canvas


def test_what_is_refused_is_named(lm: DiffusionLM) -> None:
    model = UnmaskLM(lm)
    with pytest.raises(UnmaskError, match="more than text"):
        model.generate_until(ask("generate_until", ("a", {"until": []}, {"visual": []})))
    with pytest.raises(UnmaskError, match="beams"):
        model.generate_until(ask("generate_until", ("a", {"until": [], "num_beams": 4})))
    with pytest.raises(UnmaskError, match="'sampels' is unknown; use pretrained"):
        UnmaskLM(lm, sampels=3)
    with pytest.raises(UnmaskError, match="'samples' must be a whole number, got 'many'"):
        UnmaskLM(lm, samples="many")  # type: ignore[arg-type]
