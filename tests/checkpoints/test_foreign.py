"""Folders and files that are no model that can be read: each says what it is, and the remedy, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.checkpoints.open import Checkpoint
from unmask.cli.serve import names
from unmask.errors import UnmaskError

Writer = Callable[..., Path]
DREAM = Path(__file__).parents[1] / "conformance" / "dream"


def refused(path: Path) -> str:
    """The line with which opening and loading fails."""
    with pytest.raises(UnmaskError) as caught:
        Checkpoint.open(path).network()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model of the test's own."""
    made = tmp_path / "dream"
    made.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(DREAM / name, made / name)
    return made


def edit(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


@pytest.mark.parametrize("config", [False, True], ids=["alone", "beside a config"])
def test_an_adapter_of_peft_whose_base_is_not_there(config: bool, folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    model.name_or_path = "runs/base"
    target = tmp_path / "lora"
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(target)
    if config:
        shutil.copy(folder / "config.json", target)
    message = refused(target)
    assert "is an adapter for 'runs/base', which cannot be had" in message
    assert "adapter_config.json" in message


def test_weights_quantised_by_mlx(folder: Path) -> None:
    edit(folder, quantization={"group_size": 64, "bits": 3}, quantization_config={"group_size": 64, "bits": 3})
    message = refused(folder)
    assert "quantised by 'MLX' to 3 bits" in message
    assert "--dequantize" in message


@pytest.mark.parametrize("method", ["hqq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_by_their_config(method: str, folder: Path) -> None:
    edit(folder, quantization_config={"quant_method": method, "bits": 4})
    message = refused(folder)
    assert f"quantised by '{method}'" in message
    assert "load the unquantised model" in message


@pytest.mark.parametrize(
    ("end", "kind"),
    [("qweight", "GPTQ or AWQ"), ("weight_scale_inv", "FP8"), ("weight.absmax", "bitsandbytes"), ("scales", "MLX")],
)
def test_quantised_weights_by_the_names_of_their_tensors(end: str, kind: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name.removesuffix("weight") + end] = torch.zeros(4, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors")
    message = refused(folder)
    assert f"quantised by {kind}" in message
    assert "unquantised" in message


def test_parts_of_a_split_gguf(gguf_writer: Writer, tmp_path: Path) -> None:
    def split(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", 3)

    for number in (1, 2):
        message = refused(gguf_writer(tmp_path / f"toy-0000{number}-of-00003.gguf", extra=split))
        assert "is one of 3 parts and " in message
        assert ".gguf is not there; copy or download it too" in message
    assert "is one of 3 parts and " in refused(tmp_path)


def test_an_adapter_in_gguf(gguf_writer: Writer, tmp_path: Path) -> None:
    path = gguf_writer(tmp_path / "x.gguf", extra=lambda writer: writer.add_type("adapter"))
    assert "llama-export-lora" in refused(path)


@pytest.mark.parametrize("name", ["model.safetensors", "toy.gguf"])
def test_pointers_of_git_lfs(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in refused(folder)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("pytorch_model.bin", "pickle"),
        ("model.onnx", "compiled graph"),
        ("flax_model.msgpack", "Flax"),
        ("tf_model.h5", "TensorFlow"),
        ("weights.npz", "MLX"),
        ("consolidated.00.safetensors", "for transformers"),
        ("zero_to_fp32.py", "DeepSpeed"),
        ("model-00001-of-00002.safetensors", "index.json is missing"),
        ("model_index.json", "diffusers"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_weights_of_other_kinds(file: str, says: str, config: bool, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / file).write_text("")
    if not config:
        (folder / "config.json").unlink()
    message = refused(folder)
    assert says in message
    assert file in message


def test_the_state_of_a_training_run_and_its_folder(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    state = run / "checkpoint-0000100"
    state.mkdir(parents=True)
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        (state / name).write_text("")
    message = refused(state)
    assert "unmask finetune" in message
    assert str(run / "model") in message
    assert "has not ended" in refused(run)
    shutil.copytree(folder, run / "model")
    assert f"such as {run / 'model'}" in refused(run)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "config.json does not exist" in refused(tmp_path)


def test_an_adapter_of_an_adapter(tmp_path: Path, folder: Path) -> None:
    (folder / "adapter.json").write_text(json.dumps({"base": str(folder)}))
    assert "is an adapter itself" in refused(folder)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *(("runs/mine/model", "mine"), ("runs/mine", "mine"), ("a/final", "a"), ("b/best/model", "b")),
        *(("runs/mine/adapter", "mine"), ("runs/mine/checkpoint-0000100", "mine-checkpoint-0000100")),
    ],
)
def test_models_are_named_by_what_says_something(
    place: str, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(folder, tmp_path / place))
    assert Checkpoint.open(target).name == name
    assert names([str(target)]) == {name: str(target)}
    monkeypatch.chdir(target)
    assert Checkpoint.open(".").name == name
    assert names(["."]) == {name: "."}
    monkeypatch.chdir(target.parent)
    assert names([target.name]) == {name: target.name}


def test_files_and_names_are_called_alike_everywhere(gguf_writer: Writer, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    for file, name in (("small-q4.gguf", "small-q4"), ("model.gguf", "mine")):
        path = gguf_writer(place / file)
        assert Checkpoint.open(path).name == name
        assert names([str(path)]) == {name: str(path)}
    asked = ["austen", "owner/name", "other=austen"]
    assert names(asked) == {"austen": "austen", "owner/name": "owner/name", "other": "austen"}
