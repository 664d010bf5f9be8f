"""Where mask, end and padding ids come from, and who wins where the files disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.tokens import MASK_NAME, TokenFiles, resolve
from unmask.errors import UnmaskError

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
DREAM = {"architectures": ["DreamModel"], "vocab_size": 152064, "max_position_embeddings": 32, **SIZES}


def write(path: Path, config: dict[str, Any], **files: Any) -> Checkpoint:
    """A folder with config.json and other small files (name without .json, then content), recognised."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in {"config": config, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return Checkpoint.open(path)


def tokenizer(*added: tuple[int, str], size: int = 3) -> dict[str, Any]:
    vocabulary = {f"t{i}": i for i in range(size)}
    listed = [{"id": i, "content": name, "special": True} for i, name in added]
    return {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": listed}


@pytest.mark.parametrize(
    "name",
    ["<mask>", "[MASK]", "<|mask|>", "<|mdm_mask|>", "<|MASK|>", "|<MASK>|", "<[MASK_TOKEN]>", "<[MASK]>", "<M>"],
)
def test_names_of_masks(name: str) -> None:
    assert MASK_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["<|endoftext|>", "masked", "<unmask>er", "M", "<|im_end|>"])
def test_names_of_other_tokens(name: str) -> None:
    assert not MASK_NAME.fullmatch(name)


def test_the_config_comes_first_and_the_family_last(tmp_path: Path) -> None:
    found = write(tmp_path / "usual", DREAM)
    assert (found.config.mask_token_id, found.origins["mask"]) == (151666, "the family's usual id")
    assert (found.config.eos_token_id, found.defaults.eos_token_ids) == (151643, (151645,))
    found = write(tmp_path / "named", DREAM, tokenizer=tokenizer((151660, "<|mask|>"), (151645, "<|im_end|>")))
    assert (found.config.mask_token_id, found.origins["mask"]) == (151660, "the tokenizer")
    assert found.defaults.eos_token_ids == (151645,)
    own = {**DREAM, "mask_token_id": 151666, "eos_token_id": [151643, 7], "pad_token_id": 151643}
    files = {
        "tokenizer": tokenizer((151660, "<|mask|>"), (151667, "<|dlm_pad|>"), (9, "<end>")),
        "tokenizer_config": {"pad_token": "<|dlm_pad|>", "eos_token": {"content": "<end>"}, "bos_token": None},
        "generation_config": {"eos_token_id": [5, 151643]},
    }
    found = write(tmp_path / "all", own, **files)
    assert (found.config.mask_token_id, found.origins["mask"]) == (151666, "config.json")
    assert found.config.eos_token_id == 151643
    assert found.defaults.eos_token_ids == (5, 7, 9)  # the turn's usual id is not one of this tokenizer's
    assert sorted(note.split()[0] for note in found.notes) == ["eos", "mask", "pad"]


def test_ends_come_from_the_generation_config_where_the_config_has_none(tmp_path: Path) -> None:
    found = write(tmp_path, DREAM, generation_config={"eos_token_id": 12})
    assert (found.config.eos_token_id, found.origins["eos"]) == (12, "generation_config.json")


def test_a_mask_of_added_tokens_makes_a_qwen2_an_open_dcoder(tmp_path: Path) -> None:
    config = {**DREAM, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    plain = write(tmp_path / "plain", config)
    assert plain.family is not None
    assert (plain.family.name, plain.config.layout) == ("Qwen2", "causal")
    found = write(tmp_path / "mask", config, added_tokens={"<M>": 151665})
    assert found.family is not None
    assert (found.family.name, found.config.mask_token_id) == ("Open-dCoder", 151665)


def test_uniform_noise_has_no_mask_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    sizes = {"hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 1, "model_length": 8, "vocab_size": 20}
    found = write(tmp_path, {"model_type": "duo", **sizes}, tokenizer=tokenizer((7, "[MASK]")))
    assert found.config.mask_token_id is None


def test_ids_of_side_files_outside_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    small = {**DREAM, "vocab_size": 50}
    files = {"tokenizer": tokenizer((60, "<mask>"), (61, "<pad>")), "tokenizer_config": {"pad_token": "<pad>"}}
    found = write(tmp_path, small, generation_config={"eos_token_id": [3, 70]}, **files)
    assert (found.config.mask_token_id, found.config.pad_token_id) == (None, None)
    assert (found.config.eos_token_id, found.defaults.eos_token_ids) == (3, ())


def test_wrong_vocabularies_and_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnmaskError, match=r"tokenizer has 51 tokens.*vocabulary 50"):
        write(tmp_path / "a", {**DREAM, "vocab_size": 50}, tokenizer=tokenizer(size=51))
    with pytest.raises(UnmaskError, match=r"mask_token_id 50 is outside the vocabulary of 50"):
        write(tmp_path / "b", {**DREAM, "vocab_size": 50, "mask_token_id": 50})
    for wrong in ("x", True, -1, [3], {}):
        with pytest.raises(UnmaskError, match="mask_token_id"):
            write(tmp_path / "c", {**DREAM, "vocab_size": 50, "mask_token_id": wrong})


def test_side_files_of_wrong_content_are_read_for_what_is_right(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "tokenizer": {"added_tokens": [1, {"id": "x"}, {"id": 5, "content": "<mask>"}, {"id": -2, "content": "y"}]},
        "tokenizer_config": {"eos_token": ["x"], "pad_token": {"content": 3}, "chat_template": [1]},
        "special_tokens_map": {"eos_token": "<mask>"},
        "generation_config": {"eos_token_id": ["a", True, None, 4]},
    }
    found = write(tmp_path, DREAM, **files)
    assert (found.config.mask_token_id, found.config.eos_token_id) == (5, 4)
    assert Checkpoint.open(tmp_path).chat_template is None
    for name in files:
        (tmp_path / f"{name}.json").write_text("[]")
        with pytest.raises(UnmaskError, match=name):
            Checkpoint.open(tmp_path)
        (tmp_path / f"{name}.json").unlink()


def test_older_chat_templates_are_found(tmp_path: Path) -> None:
    write(tmp_path, DREAM, tokenizer_config={"chat_template": "{{ messages }}"})
    assert Checkpoint.open(tmp_path).chat_template == "{{ messages }}"
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert Checkpoint.open(tmp_path).chat_template == "newer"


def test_code_of_the_checkpoint_is_named_and_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = write(tmp_path, {**DREAM, "auto_map": {"AutoModel": "modeling_dream.DreamModel"}})
    assert "modeling_dream" in found.notes[0]
    found.say()
    assert "not run" in caplog.text


def test_an_empty_tokenizer_changes_nothing() -> None:
    tokens = resolve({}, {"vocab_size": 10, "eos_token_id": 3}, TokenFiles(), (4, 5, 6), "x")
    assert (tokens.mask, tokens.eos, tokens.ends, tokens.notes) == (4, 3, (6,), ())
    assert tokens.origins == {
        "mask": "the family's usual id", "eos": "config.json", "bos": "nowhere", "pad": "nowhere",
    }  # fmt: skip
