"""DiffusionGemma in GGUF, written as llama.cpp's converter writes it: the folder's network, tokenizer and decoding."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from unmask import DiffusionLM
from unmask.checkpoints import gguf as gguf_file
from unmask.errors import UnmaskError

FOLDER = Path(__file__).parent.parent / "conformance" / "diffusion_gemma"
CONFIG = json.loads((FOLDER / "config.json").read_text())
NAMES = {  # transformers' and the converter's, as regular expressions
    r"model\.decoder\.embed_tokens\.": "token_embd.",
    r"model\.decoder\.norm\.": "output_norm.",
    r"model\.decoder\.self_conditioning\.pre_norm\.": "self_cond_pre_norm.",
    r"model\.decoder\.self_conditioning\.(gate|up|down)_proj\.": r"self_cond_\1.",
    r"model\.encoder\.language_model\.layers\.(\d+)\.layer_scalar": r"blk.\1.enc_layer_output_scale.weight",
    r"model\.decoder\.layers\.(\d+)\.": r"blk.\1.",
    r"\.layer_scalar$": ".layer_output_scale.weight",
    r"\.self_attn\.([qkv])_proj\.": r".attn_\1.",
    r"\.self_attn\.([qk])_norm\.": r".attn_\1_norm.",
    r"\.self_attn\.o_proj\.": ".attn_output.",
    r"\.mlp\.(gate|up|down)_proj\.": r".ffn_\1.",
    r"\.router\.proj\.weight$": ".ffn_gate_inp.weight",
    r"\.router\.scale$": ".ffn_gate_inp.scale",
    r"\.router\.per_expert_scale$": ".ffn_down_exps.scale",
    r"\.experts\.gate_up_proj$": ".ffn_gate_up_exps.weight",
    r"\.experts\.down_proj$": ".ffn_down_exps.weight",
    r"\.input_layernorm\.": ".attn_norm.",
    r"\.post_attention_layernorm\.": ".post_attention_norm.",
    r"\.pre_feedforward_layernorm\.": ".ffn_norm.",
    r"\.pre_feedforward_layernorm_2\.": ".pre_ffw_norm_2.",
    r"\.post_feedforward_layernorm(_1|_2)?\.": r".post_ffw_norm\1.",
}
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<turn|>"]
MERGES = ["t h", "th e", "▁ the", "\n \n"]
WORDS = [
    *CONTROL,
    "<|tool_response>",
    "<0xC3>",
    "<0xA9>",
    "▁",
    "\n",
    *"abcdefghijklmnopqrstuvwxyz",
    "th",
    "the",
    "▁the",
]
WORDS = [*WORDS, "\n\n", *(f"<unused{i}>" for i in range(96 - len(WORDS) - 1))]
Change = Callable[[gguf.GGUFWriter], Any]
Array = np.ndarray


def converted(weights: dict[str, Array]) -> dict[str, Array]:
    out = {}
    for name, values in weights.items():
        for pattern, theirs in NAMES.items():
            name = re.sub(pattern, theirs, name)
        out[name] = values
    return {**out, "rope_freqs.weight": np.array([1.0] * 2 + [1e30] * 6, np.float32)}  # a quarter of 16 is turned


def quantised(name: str, values: Array, kind: Kind) -> bool:
    """Whether the converter stores a tensor in the type that it is asked for."""
    router = "router" in name or "gate_inp" in name
    return kind != Kind.F32 and values.ndim > 1 and values.shape[-1] % 32 == 0 and not router


def write(
    path: Path,
    weights: dict[str, Array],
    kind: Kind = Kind.F32,
    changes: dict[str, Any] | None = None,
    tensors: dict[str, Array | None] | None = None,
) -> Path:
    """changes and tensors: over what the converter writes; None leaves it out."""
    text = CONFIG["text_config"]
    values: dict[str, Any] = {
        "context_length": 512, "embedding_length": 32, "block_count": 3, "feed_forward_length": 48,
        "attention.head_count": 4, "attention.head_count_kv": [2, 2, 1], "attention.key_length": 16,
        "attention.value_length": 16, "attention.key_length_swa": 8, "attention.value_length_swa": 8,
        "attention.sliding_window": 8, "attention.sliding_window_pattern": [True, True, False],
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.shared_kv_layers": 0, "attention.causal": False,
        "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "rope.dimension_count": 16, "rope.dimension_count_swa": 8,
        "final_logit_softcapping": text["final_logit_softcapping"], "embedding_length_per_layer_input": 0,
        "expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 16,
    }  # fmt: skip
    values = {f"diffusion-gemma.{key}": value for key, value in values.items()}
    values |= {"diffusion.canvas_length": 8, "tokenizer.ggml.add_bos_token": True, **(changes or {})}
    writer = gguf.GGUFWriter(path, "diffusion-gemma")
    for key, value in values.items():
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        if value is not None:
            kinds[type(value)](key, value)
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(WORDS)
    writer.add_token_types([3 if word in CONTROL else 4 if word.startswith("<|") else 1 for word in WORDS])
    writer.add_token_merges(MERGES)
    for role, id in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3), ("mask", 4)):
        getattr(writer, f"add_{role}_token_id")(id)
    for name, array in (converted(weights) | (tensors or {})).items():
        if array is not None and quantised(name, array, kind):
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        elif array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in load_file(FOLDER / "model.safetensors").items()}


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_it_is_the_network_of_the_folder(kind: Kind, weights: dict[str, Array], tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", weights, kind)
    shutil.copytree(FOLDER, tmp_path / "plain")
    stored = {
        name: gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind) if quantised(name, array, kind) else array
        for name, array in weights.items()
    }
    save_file({name: torch.from_numpy(array) for name, array in stored.items()}, tmp_path / "plain/model.safetensors")
    lm, plain = DiffusionLM.from_pretrained(path), DiffusionLM.from_pretrained(tmp_path / "plain")
    assert lm.config == plain.config
    ids = torch.randint(7, 96, (2, 28), generator=torch.Generator().manual_seed(0))
    assert torch.equal(lm.logits(ids), plain.logits(ids))  # 20 tokens of text, a window of 8, a canvas of 8
    assert torch.equal(lm.logits(ids, layout="causal"), plain.logits(ids, layout="causal"))
    prompt = ids[0, :9].tolist()
    asked = {"max_new_tokens": 16, "max_denoising_steps": 6, "seed": 3}  # conditioned on what it thought before
    assert lm.generate(prompt, **asked).token_ids == plain.generate(prompt, **asked).token_ids
    lm.save_pretrained(tmp_path / "saved")
    again = DiffusionLM.from_pretrained(tmp_path / "saved")
    assert again.config == plain.config
    assert torch.equal(again.logits(ids), plain.logits(ids))


def test_how_it_denoises_and_ends_comes_with_it(weights: dict[str, Array], tmp_path: Path) -> None:
    said = {"max_steps": 7, "t_min": 0.3, "t_max": 0.9, "entropy_bound": 0.2, "stability_threshold": 2}
    said["confidence_threshold"] = 0.01
    path = write(tmp_path / "x.gguf", weights, changes={f"diffusion.eb_{key}": value for key, value in said.items()})
    folder = tmp_path / "pulled"
    folder.mkdir()
    for name, text in gguf_file.read(path).side_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(path, folder)
    lm = DiffusionLM.from_pretrained(path)
    lm.save_pretrained(tmp_path / "saved")
    for one in (lm, *(DiffusionLM.from_pretrained(there) for there in (folder, tmp_path / "saved"))):
        told = one.defaults
        assert (told.max_denoising_steps, told.t_min, told.t_max, told.entropy_bound) == (7, 0.3, 0.9, 0.2)
        assert (told.stability_threshold, told.confidence_threshold) == (2, 0.01)
        assert sorted(told.eos_token_ids) == [1, 5, 6]  # of text, of a turn, and where a tool is to answer
        assert one.config.mask_token_id is None  # the vocabulary has one, which uniform noise does not use


def test_its_tokenizer(weights: dict[str, Array], tmp_path: Path) -> None:
    """As transformers makes it: merged from characters, with spaces as U+2581 and bytes for what is not there."""
    from transformers import GemmaTokenizer

    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("\n", "\n")]
    theirs = GemmaTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, merges=merges)
    ours = gguf_file.read(write(tmp_path / "x.gguf", weights)).text.tokenizer()
    for text in ("the cat  is on the mat", " the\n\nthé\n", "x é y", "日 the"):
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False).input_ids, text
        assert "日" in text or ours.decode(ours.encode(text).ids) == text
    assert ours.encode("a the<turn|>").tokens == ["<bos>", "a", "▁the", "<turn|>"]


@pytest.mark.parametrize(
    ("changes", "tensors", "words"),
    [
        ({"attention.sliding_window_pattern": None}, {}, "sliding_window_pattern"),
        ({"attention.sliding_window_pattern": [True, False]}, {}, "sliding_window_pattern"),
        ({"attention.sliding_window_pattern": 6}, {}, "sliding_window_pattern"),
        ({"attention.key_length_swa": None}, {}, "key_length_swa"),
        ({"attention.value_length_swa": 16}, {}, "window"),
        ({"rope.dimension_count_swa": 4}, {}, "window"),
        ({"attention.head_count_kv": [2, 2]}, {}, "window"),
        ({"attention.head_count_kv": [2.0, 2.0, 1.0]}, {}, "num_kv_heads"),
        ({"attention.head_count_kv": 2}, {}, "k_proj"),  # three layers of two
        ({"attention.causal": True}, {}, "attention.causal"),
        ({"attention.shared_kv_layers": 2}, {}, "shared_kv_layers"),
        ({"embedding_length_per_layer_input": 8}, {}, "embedding_length_per_layer_input"),
        ({"expert_count": None}, {}, "expert_count"),
        ({"attention.sliding_window": None}, {}, "sliding_window"),
        ({}, {"rope_freqs.weight": None}, "rope_freqs"),
        ({}, {"rope_freqs.weight": np.array([1, 1, 2, 1, 1, 1, 1, 1], np.float32)}, "rope_freqs"),
        ({}, {"rope_freqs.weight": np.ones(7, np.float32)}, "rope_freqs"),
        ({}, {"per_layer_token_embd.weight": np.ones((96, 24), np.float32)}, "per_layer_token_embd"),
        ({}, {"blk.2.attn_v.weight": np.ones((16, 32), np.float32)}, "v_proj"),
        ({}, {"self_cond_up.weight": None}, "self_conditioning.up_proj"),
        ({}, {"output.weight": np.ones((96, 32), np.float32)}, "output.weight"),
    ],
)
def test_files_of_another_build_are_refused(
    changes: dict[str, Any], tensors: dict[str, Any], words: str, weights: dict[str, Array], tmp_path: Path
) -> None:
    own = {f"diffusion-gemma.{key}": value for key, value in changes.items()}
    path = write(tmp_path / "x.gguf", weights, changes=own, tensors=tensors)
    with pytest.raises(UnmaskError, match=words) as caught:
        DiffusionLM.from_pretrained(path).logits([[7, 8, 9]], layout="causal")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("length", [None, 0, [8], 8.0])
def test_a_canvas_of_no_length_is_refused(length: Any, weights: dict[str, Array], tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", weights, changes={"diffusion.canvas_length": length})
    with pytest.raises(UnmaskError, match="block_length"):
        DiffusionLM.from_pretrained(path)
