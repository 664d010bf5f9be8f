"""`unmask finetune`: bases of every kind, conversations, LoRA as PEFT has it, and what comes out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from trees import change

from unmask import DiffusionLM
from unmask.checkpoints import lora
from unmask.checkpoints.inspect import inspect
from unmask.checkpoints.open import Checkpoint
from unmask.training.data import DataConfig
from unmask.training.documents import Document, Documents
from unmask.training.finetune import Finetuner, finetune, make_framing, open_base, shown_example
from unmask.training.push import open_repository
from unmask.training.recipe import FinetuneRecipe, parse_recipe
from unmask.training.reference import packaged, reference

Refused = Callable[..., Any]
Make = Callable[..., FinetuneRecipe]
QUIET = Console(quiet=True)
ANIMALS = ("cat", "fox", "owl", "hen", "rat", "dog")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['tool_calls'] is defined %}"
    "{% for c in m['tool_calls'] %}{{ 'call ' + c['function']['name'] }}{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chats() -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"the {a}"}, {"role": "assistant", "content": f"a {a}"}]}
        for a in ANIMALS
    ]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def make(chat_base: Path, tmp_path: Path) -> Make:
    """A fine-tuning of the toy base in four steps; keywords change single fields."""
    write(tmp_path / "train.jsonl", chats())

    def recipe(**changes: Any) -> FinetuneRecipe:
        tree: dict[str, Any] = {
            "name": "tuned",
            "base": str(chat_base),
            "objective": {"kind": "ar"},
            "data": {"files": [str(tmp_path / "train.jsonl")], "length": 96},
            "training": {
                "steps": 4,
                "batch_size": 2,
                "learning_rate": 1e-2,
                "warmup_steps": 1,
                "threads": 1,
                "ema": 0.0,
                "save_every": 2,
                "validate_every": 2,
            },
        }
        made = parse_recipe(change(tree, changes), "recipe")
        assert isinstance(made, FinetuneRecipe)
        return made

    return recipe


@pytest.fixture
def llama(tmp_path: Path, chat_base: Path) -> Path:
    """A tiny Llama as transformers saves it, with the toy base's tokenizer and template."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        attention_bias=False,
    )  # fmt: skip
    folder = tmp_path / "llama"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).write_bytes((chat_base / name).read_bytes())
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "model" / "curve.jsonl").open()]


# what is learned of a conversation


def pieces(recipe: FinetuneRecipe, documents: list[Document], template: str | None = None) -> list[tuple[str, str]]:
    """Whole text and learned text of every piece."""
    framing = make_framing(recipe, open_base(recipe))
    if template:
        framing = type(framing)(**{**framing.__dict__, "template": template})
    decode = framing.tokenizer.decode
    return [
        (decode(ids.tolist(), skip_special_tokens=False), decode(ids[learned].tolist(), skip_special_tokens=False))
        for ids, learned in framing.pieces(documents)
    ]


TURNS = (
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
)


def test_answers_alone_are_learned_with_their_ends(make: Make) -> None:
    ((text, learned),) = pieces(make(), [Document(messages=TURNS)])
    assert learned == "two<|im_end|>\nfour<|im_end|>"
    assert text.endswith("four<|im_end|>")
    assert text.startswith("<|im_start|>system\nbe good<|im_end|>\n<|im_start|>user\none")


def test_answers_that_begin_blocks_are_documents_of_their_own(make: Make) -> None:
    recipe = make(objective={"kind": "bd3lm", "block_length": 4, "shift": True})
    assert recipe.data.answer_block == 4
    found = pieces(recipe, [Document(messages=TURNS)])
    assert [learned for _, learned in found] == ["two<|im_end|>", "four<|im_end|>"]
    assert "two" in found[1][0]


def test_a_prompt_of_training_is_that_of_generation(make: Make, chat_base: Path) -> None:
    recipe = make()
    framing = make_framing(recipe, open_base(recipe))
    ((ids, learned),) = framing.pieces([Document(messages=TURNS[:2])])
    given = ids[~learned].tolist()
    assert DiffusionLM.from_pretrained(chat_base, backend="torch").encode(list(TURNS[:1])) == [given]


def test_tool_calls_are_learned_and_results_are_given(make: Make) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = (
        TURNS[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        TURNS[3],
    )
    ((text, learned),) = pieces(make(), [Document(messages=messages)], CHATML)
    assert learned == "call look<|im_end|>\nfour<|im_end|>"
    assert "rain" in text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, ["row 2", "no assistant turn"]),
        ({"messages": "hello"}, ["row 2", "list"]),
        ({"messages": [{"role": "assistant", "content": 3}]}, ["row 2", "turn 1"]),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [
                {"function": {"name": "f", "arguments": "{nope"}}]}]},
            ["row 2", "tool call 'f'", "not JSON"],
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [
                {"function": {"name": "f", "arguments": "[1]"}}]}]},
            ["row 2", "tool call 'f'", "object", "list"],
        ),
    ],
)  # fmt: skip
def test_a_conversation_that_teaches_nothing_is_named(
    tmp_path: Path, refused: Refused, row: Any, words: list[str]
) -> None:
    path = write(tmp_path / "a.jsonl", [chats()[0], row])
    with refused(*words):
        list(Documents((str(path),), DataConfig(files=("x",))))


def test_a_template_that_hides_where_answers_begin_is_refused(make: Make, refused: Refused) -> None:
    backwards = "{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}"
    with refused("row 7", "hides where turn 2"):
        pieces(make(), [Document(messages=TURNS, source="corpus x: row 7")], backwards)


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}


@pytest.mark.parametrize("answer", [{"role": "assistant", "content": "yes"}, CALL], ids=["text", "call"])
def test_a_template_that_leaves_answers_out_is_refused(make: Make, refused: Refused, answer: dict[str, Any]) -> None:
    questions = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with refused("row 7", "leaves turn 2 out"):
        pieces(make(), [Document(messages=(TURNS[0], answer), source="corpus x: row 7")], questions)


def test_a_template_of_another_tokenizer_is_refused(make: Make, refused: Refused) -> None:
    document = Document(messages=TURNS, source="corpus x: row 7")
    unused = "{% if false %}<|nothing|>{% endif %}"
    assert pieces(make(), [document], CHATML + unused)
    with refused("row 7", "<|end|>", "tokenizer"):
        pieces(make(), [document], CHATML.replace("<|im_end|>", "<|end|>"))
    with refused("data.tokenizer_file", "its own tokenizer"):
        make(data__tokenizer_file="other/tokenizer.json")


def test_learned_text_is_shown_in_brackets(make: Make) -> None:
    recipe = make()
    framing = make_framing(recipe, open_base(recipe))
    ((ids, learned),) = framing.pieces([Document(messages=TURNS[:2])])
    assert shown_example(framing.tokenizer, ids, learned).endswith("assistant\n⟦two<|im_end|>⟧")


# training and what comes out


@pytest.mark.parametrize("rank", [0, 4])
def test_an_autoregressive_base_learns_and_stays_itself(make: Make, tmp_path: Path, chat_base: Path, rank: int) -> None:
    recipe = make(training__steps=30, lora={"rank": rank, "alpha": 32.0})
    folder = finetune(recipe, tmp_path / "run", console=QUIET)
    curve = losses(tmp_path / "run")
    assert curve[-1] < 0.7 * curve[0]
    lm = DiffusionLM.from_pretrained(folder, backend="torch")
    base = DiffusionLM.from_pretrained(chat_base, backend="torch")
    assert lm.config == base.config
    assert lm.chat_template == base.chat_template
    assert "tuned" in (folder / "README.md").read_text()
    changed = [
        n for n, p in lm.model.named_parameters() if not torch.equal(p, base.model.get_parameter(n).bfloat16().float())
    ]
    assert (any("embedding" in n for n in changed)) == (rank == 0)
    assert any("q_proj" in n for n in changed)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("rank", [0, 4])
def test_an_autoregressive_base_becomes_a_block_diffusion_model(
    make: Make, tmp_path: Path, shift: bool, rank: int
) -> None:
    objective = {"kind": "bd3lm", "block_length": 4, "shift": shift, "weight": "none", "normaliser": "masked"}
    recipe = make(objective=objective, training__steps=30, lora={"rank": rank, "alpha": 32.0})
    lm = DiffusionLM.from_pretrained(finetune(recipe, tmp_path / "run", console=QUIET), backend="torch")
    assert (lm.config.layout, lm.config.block_length, lm.config.shift) == ("block_causal", 4, shift)
    assert lm.chat_template is not None
    curve = losses(tmp_path / "run")
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert lm.generate([{"role": "user", "content": "the cat"}], 8, temperature=0.0).steps > 0


@pytest.mark.parametrize("rank", [0, 4])
def test_an_autoregressive_base_learns_to_draft_blocks_behind_its_text(
    make: Make, tmp_path: Path, rank: int, refused: Refused
) -> None:
    objective = {"kind": "hybrid", "block_length": 4, "blocks": 2}
    recipe = make(objective=objective, training__steps=40, lora={"rank": rank, "alpha": 32.0})
    folder = finetune(recipe, tmp_path / "run", console=QUIET)
    lm = DiffusionLM.from_pretrained(folder, backend="torch")
    assert (lm.config.layout, lm.config.block_length, lm.config.in_place) == ("causal_blocks", 4, True)
    curve = losses(tmp_path / "run")
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    asked = [{"role": "user", "content": "the cat"}]
    written = {mode: lm.generate(asked, 8, mode=mode, temperature=0.0) for mode in ("ar", "verify", "diffusion")}
    assert written["ar"].token_ids == written["verify"].token_ids
    assert written["verify"].steps < written["ar"].steps
    assert finetune(make(base=str(folder), objective=objective), tmp_path / "on", console=QUIET)  # it goes on
    with refused("layout 'causal_blocks'"):
        open_base(make(base=str(folder)))


@pytest.mark.parametrize("kind", ["distill", "certainty"])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_base_is_distilled(make: Make, tmp_path: Path, kind: str, rank: int) -> None:
    objective = {"kind": kind, "block_length": 4, "shift": True, "weight": "none", "normaliser": "masked"}
    recipe = make(objective=objective, training__steps=24, lora={"rank": rank, "alpha": 32.0})
    trainer = Finetuner(recipe, tmp_path / "run", QUIET)
    before = None if trainer.teacher is None else [p.clone() for p in trainer.teacher.parameters()]
    trainer.run()
    curve = losses(tmp_path / "run")
    assert sum(curve[-5:]) < 0.95 * sum(curve[:5])
    assert (before is not None) == (kind == "distill")
    if before is not None and trainer.teacher is not None:  # the teacher stays as the run began
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.teacher.parameters(), strict=True))


def test_a_curriculum_is_no_round_of_distillation(make: Make, tmp_path: Path) -> None:
    begins = {"every": 1, "block_length": [1, 2]}
    trainer = Finetuner(make(objective={"kind": "distill", "shift": True, "curriculum": begins}), tmp_path / "r", QUIET)
    teacher = trainer.teacher
    for _ in range(3):
        trainer._train_step()
    assert trainer.teacher is teacher
    assert not trainer.progress.teacher


def test_a_diffusion_model_stays_one(make: Make, tmp_path: Path) -> None:
    first = finetune(make(objective={"kind": "mdlm", "shift": False}), tmp_path / "a", console=QUIET)
    data = {"files": [str(tmp_path / "train.jsonl")], "length": 64, "whole": False, "packed": False}
    second = make(base=str(first), objective={"kind": "mdlm"}, data=data)
    lm = DiffusionLM.from_pretrained(finetune(second, tmp_path / "b", console=QUIET), backend="torch")
    assert (lm.config.layout, lm.config.shift) == ("bidirectional", False)


def test_the_kind_of_a_base_and_the_objective_must_agree(make: Make, tmp_path: Path, refused: Refused) -> None:
    with refused("autoregressive", "objective.shift"):
        open_base(make(objective={"kind": "bd3lm", "block_length": 4}))
    with refused("corruption"):
        open_base(make(objective={"kind": "duo", "shift": False}, data__whole=False))
    with refused("less than data.length 4096"):
        open_base(make(data__length=4096))
    diffusion = finetune(
        make(objective={"kind": "mdlm", "shift": True}, training__steps=1), tmp_path / "a", console=QUIET
    )
    with refused("diffusion model", "objective ar"):
        open_base(make(base=str(diffusion)))


def test_a_run_goes_on_where_it_stopped_bit_for_bit(make: Make, tmp_path: Path) -> None:
    recipe = make(lora={"rank": 2})
    finetune(recipe, tmp_path / "whole", console=QUIET)

    class Stopping(Finetuner):
        def _train_step(self) -> dict[str, float]:
            if self.step == 3:
                raise KeyboardInterrupt
            return super()._train_step()

    with pytest.raises(KeyboardInterrupt):
        Stopping(recipe, tmp_path / "parts", QUIET).run()
    finetune(recipe, tmp_path / "parts", console=QUIET)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_data_that_changed_since_is_refused(make: Make, tmp_path: Path, refused: Refused) -> None:
    held = write(tmp_path / "held.jsonl", chats()[:2])
    recipe = make(training__steps=2, data__validation=[str(held)])
    finetune(recipe, tmp_path / "run", console=QUIET)
    write(held, chats()[:1])
    with refused("checkpoint-0000002", "another held-out data"):
        finetune(recipe, tmp_path / "run", console=QUIET)
    write(held, chats()[:2])
    write(tmp_path / "train.jsonl", chats()[1:])
    with refused("checkpoint-0000002", "another data;"):
        finetune(recipe, tmp_path / "run", console=QUIET)


def test_what_does_not_go_with_a_split_network_is_refused(make: Make, refused: Refused) -> None:
    with refused("training.shard", "training.samples"):
        make(training__shard=True, training__samples=2)
    with refused("training.shard", "training.compile"):
        make(training__shard=True, training__compile=True)
    with refused("training.shard", "teacher"):
        make(training__shard=True, objective={"kind": "distill", "shift": True})


@pytest.mark.parametrize("option", ["gradient_checkpointing", "compile"])
def test_saving_memory_or_compiling_changes_no_loss(make: Make, tmp_path: Path, option: str) -> None:
    if option == "compile":
        pytest.importorskip("torch._inductor")
    plain = Finetuner(make(), tmp_path / "a", QUIET)
    other = Finetuner(make(**{f"training__{option}": True}), tmp_path / "b", QUIET)
    for _ in range(2):
        one, two = plain._train_step(), other._train_step()
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_held_out_prompts_are_answered_and_scored(make: Make, tmp_path: Path, capsys: Any) -> None:
    files = [str(tmp_path / "train.jsonl")]
    recipe = make(training__steps=2, training__samples=2, data__validation=files)
    trainer = Finetuner(recipe, tmp_path / "run", Console())
    trainer.run()
    assert 0 <= trainer.history[-1]["exact_match"] <= 1
    assert "sample at step 2" in capsys.readouterr().out


# LoRA as PEFT has it


def test_peft_and_transformers_load_what_is_saved(make: Make, llama: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    recipe = make(base=str(llama), lora={"rank": 4, "alpha": 16.0, "rslora": True}, training__steps=10)
    folder = finetune(recipe, tmp_path / "run", console=QUIET)
    ids = torch.randint(4, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    base = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    untouched = base(ids).logits
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    ours = DiffusionLM.from_pretrained(folder, backend="torch")
    causal = ours.logits(ids, layout="causal")
    expected = adapted(ids).logits
    assert (expected - untouched).abs().max() > 0.05
    torch.testing.assert_close(causal[:, 1:], expected[:, :-1], atol=2e-2, rtol=0)  # saved in bfloat16
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(whole(ids).logits[:, :-1], causal[:, 1:], atol=1e-4, rtol=1e-4)


GEMMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", {}),
    "gemma 3": (
        "Gemma3Text",
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 100, "final_logit_softcapping": 4.0},
    ),
}


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "lora"])
@pytest.mark.parametrize(
    "objective", [{"kind": "ar"}, {"kind": "bd3lm", "shift": True}, {"kind": "mdlm", "shift": False}], ids=str
)
@pytest.mark.parametrize("kind", GEMMAS)
def test_gemma_is_a_base(
    kind: str, objective: dict[str, Any], rank: int, make: Make, chat_base: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    name, options = GEMMAS[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=2, **options,
    )  # fmt: skip
    base = tmp_path / "gemma"
    getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).save_pretrained(base)
    for file in ("tokenizer.json", "chat_template.jinja"):
        (base / file).write_bytes((chat_base / file).read_bytes())
    trainer = Finetuner(make(base=str(base), objective=objective, lora={"rank": rank}), tmp_path / "run", QUIET)
    before = {name: tensor.clone() for name, tensor in trainer.trained.items()}
    folder = trainer.run()
    assert all(not torch.equal(before[name], tensor) for name, tensor in trainer.ema.values.items())
    lm = DiffusionLM.from_pretrained(folder, backend="torch")
    ids = torch.randint(4, 32, (2, 24), generator=torch.Generator().manual_seed(0))
    logits = lm.logits(ids)
    torch.testing.assert_close(logits, trainer.decode.logits(ids).float(), atol=0.05, rtol=0.05)  # bfloat16
    assert lm.generate("the", 8, seed=0).token_ids
    if objective["kind"] == "ar":
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(logits[:, 1:], theirs(ids).logits[:, :-1], atol=1e-4, rtol=1e-4)


def test_an_adapter_takes_the_place_of_a_model_and_the_other_way_round(make: Make, llama: Path, tmp_path: Path) -> None:
    """What a former run left beside it is never read in its place."""
    ids = torch.randint(4, 32, (1, 12), generator=torch.Generator().manual_seed(0))
    for merge, seed in ((True, 1), (False, 2), (True, 3)):
        shutil.rmtree(tmp_path / "run" / "checkpoint-0000004", ignore_errors=True)
        shutil.rmtree(tmp_path / "run" / "checkpoint-0000002", ignore_errors=True)
        recipe = make(base=str(llama), lora={"rank": 2, "merge": merge}, seed=seed)
        trainer = Finetuner(recipe, tmp_path / "run", QUIET)
        folder = trainer.run()
        assert Checkpoint.open(folder).folder.is_lora is not merge
        lm = DiffusionLM.from_pretrained(folder, backend="torch")
        torch.testing.assert_close(lm.logits(ids), trainer.decode.logits(ids).float(), atol=0.02, rtol=0)


@pytest.mark.parametrize("window", ["save_peft", "write_json"])
def test_an_adapter_is_written_whole_or_not_at_all(
    window: str, make: Make, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.training import finetune as module

    folder = tmp_path / "run" / "model"
    recipe = make(base=str(llama), lora={"rank": 2, "merge": False}, objective={"kind": "mdlm", "shift": True})
    finetune(recipe, tmp_path / "run", console=QUIET)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    home, usual = (lora, lora.save_peft) if window == "save_peft" else (module, module.write_json)

    def interrupted(*args: Any) -> None:
        usual(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(home, window, interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(recipe, tmp_path / "run", console=QUIET)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_adapter_of_peft_is_a_base(make: Make, llama: Path, tmp_path: Path, refused: Refused) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    made = peft.get_peft_model(base, config)
    made.save_pretrained(tmp_path / "adapter")
    opened = open_base(make(base=str(tmp_path / "adapter")))
    ids = torch.randint(4, 32, (2, 12))
    ours = DiffusionLM(opened.network, None).logits(ids, layout="causal")
    torch.testing.assert_close(ours[:, 1:], made.eval()(ids).logits[:, :-1], atol=1e-4, rtol=1e-4)
    raw = json.loads((tmp_path / "adapter" / lora.CONFIG).read_text())
    (tmp_path / "adapter" / lora.CONFIG).write_text(json.dumps({**raw, "r": 5}))
    with refused("its base asks for [5"):
        open_base(make(base=str(tmp_path / "adapter")))


def test_an_adapter_loads_as_a_model_and_goes_on(make: Make, llama: Path, tmp_path: Path, refused: Refused) -> None:
    size = {"rank": 2, "alpha": 4.0}
    recipe = make(base=str(llama), lora=size, training__steps=10)
    folder = finetune(recipe, tmp_path / "run", console=QUIET)
    adapter = tmp_path / "run" / "adapter"
    whole = DiffusionLM.from_pretrained(folder, backend="torch")
    merged = DiffusionLM.from_pretrained(adapter, backend="torch")
    ids = torch.randint(4, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merged.logits(ids), whole.logits(ids), atol=2e-2, rtol=0)  # rounded to bfloat16
    rows = Checkpoint.open(adapter).rows()
    assert rows is not None
    for name, parameter in merged.model.named_parameters():
        np.testing.assert_allclose(rows[name].values(1, 3), parameter[1:3].detach(), atol=1e-6)
    merged.save_pretrained(tmp_path / "saved")
    again = DiffusionLM.from_pretrained(tmp_path / "saved", backend="torch")
    torch.testing.assert_close(again.logits(ids), merged.logits(ids))
    assert inspect(str(adapter)).problem is None

    opened = open_base(make(base=str(adapter), lora=size))
    assert opened.paths
    torch.testing.assert_close(DiffusionLM(opened.network, None).logits(ids), merged.logits(ids), atol=1e-4, rtol=1e-4)
    with refused("rank 2, alpha 4"):
        open_base(make(base=str(adapter), lora={"rank": 4, "alpha": 4.0}))

    blocks = {"kind": "bd3lm", "block_length": 4, "shift": True}
    finetune(make(base=str(adapter), lora=size, objective=blocks), tmp_path / "blocks", console=QUIET)
    read = Checkpoint.open(tmp_path / "blocks" / "adapter")
    assert (read.config.layout, read.config.block_length, read.base_name) == ("block_causal", 4, str(llama))
    whole = DiffusionLM.from_pretrained(tmp_path / "blocks" / "model", backend="torch")
    torch.testing.assert_close(
        DiffusionLM.from_pretrained(read.path, backend="torch").logits(ids), whole.logits(ids), atol=2e-2, rtol=0
    )


def test_an_adapter_of_another_base_is_refused(make: Make, chat_base: Path, tmp_path: Path, refused: Refused) -> None:
    pair = {"x.lora_A": torch.zeros(2, 32), "x.lora_B": torch.zeros(32, 2)}
    names = {"x": "model.layers.9.self_attn.q_proj"}
    lora.save_peft(tmp_path / "other", pair, lora.LoraConfig(rank=2), names, str(chat_base))
    with refused("layers.9", "of another base"):
        open_base(make(base=str(tmp_path / "other")))


def test_an_adapter_alone_is_left_where_that_is_asked_for(make: Make, llama: Path, tmp_path: Path) -> None:
    folder = finetune(make(base=str(llama), lora={"rank": 2, "merge": False}), tmp_path / "run", console=QUIET)
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {p.name for p in folder.iterdir()}
    assert not (folder / "model.safetensors").exists()


def test_unknown_targets_are_named(make: Make, refused: Refused) -> None:
    with refused("lora.targets", "'wq'", "q_proj"):
        open_base(make(lora={"rank": 2, "targets": ["q_proj", "wq"]}))


# the command line


def test_a_dry_run_says_what_a_run_would_do(run: Any, make: Make, chat_base: Path, tmp_path: Path) -> None:
    make()
    path = tmp_path / "r.yaml"
    data = {"files": [str(tmp_path / "train.jsonl")], "length": 96}
    tree = {"name": "x", "base": str(chat_base), "objective": {"kind": "ar"}, "data": data,
            "training": {"steps": 3, "batch_size": 2}, "lora": {"rank": 2}}  # fmt: skip
    path.write_text(json.dumps(tree))
    code, out, _ = run("finetune", str(path), "--dry-run", "--output", str(tmp_path / "run"))
    assert code == 0
    for words in ("documents 6", "learned", "steps 3", "memory", "trained", "example 3", "⟦a cat<|im_end|>⟧"):
        assert words in out
    assert not (tmp_path / "run").exists()
    code, _, err = run("train", str(path))
    assert (code, "unmask finetune" in err) == (2, True)


def test_a_model_is_pushed_to_a_hub(
    run: Any, make: Make, chat_base: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    class Hub:
        def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
            if name.startswith("other/"):
                raise RuntimeError("403 Forbidden\nmore of it")
            return f"https://hub.example/{name}"

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
            sent.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    make()
    path = tmp_path / "r.yaml"
    tree = {"name": "x", "base": str(chat_base), "objective": {"kind": "ar"},
            "data": {"files": [str(tmp_path / "train.jsonl")], "length": 96},
            "training": {"steps": 1, "batch_size": 2}}  # fmt: skip
    path.write_text(json.dumps(tree))
    command = ("finetune", str(path), "--output", str(tmp_path / "run"), "--push")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    for name, words in (("mine", "OWNER/NAME"), ("other/mine", "403 Forbidden")):
        code, _, err = run(*command, name)
        assert (code, words in err, err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "run").exists()  # known before anything is trained
    code, out, _ = run(*command, "me/mine")
    assert (code, "model pushed to https://hub.example/me/mine" in out) == (0, True)
    assert sent[0][0] == "me/mine"
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= set(sent[0][1])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
    with refused("pip install 'unmask[hub]'"):
        open_repository("me/mine")


def test_recipes_are_listed_shown_and_checked(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("recipes", "list")
    assert code == 0
    assert {"ar", "mdlm", "bd3lm", "sedd", "duo", "sft", "a2d", "lora"} <= {
        line.split()[0] for line in out.splitlines()
    }
    for name in packaged():
        code, shown, _ = run("recipes", "show", name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(shown)
        code, out, _ = run("recipes", "check", str(path))
        assert code == 0
        assert "is fine; run: unmask" in out
    code, _, err = run("recipes", "show", "nothing")
    assert (code, err.count("\n")) == (2, 1)


def test_the_reference_names_every_field() -> None:
    text = reference()
    for words in ("`answer_block`", "`gradient_checkpointing`", "objective, kind: duo", "`rslora`", "required"):
        assert words in text


def test_the_page_of_the_docs_is_the_reference() -> None:
    """Made again by: python -c "from unmask.training.reference import reference; print(reference(), end='')"."""
    assert (Path(__file__).parents[2] / "docs" / "recipes.md").read_text() == reference()
