"""Small GGUF files that the tests write themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

Array = NDArray[np.float32]
LAYERS, HIDDEN, INNER, HEADS, KEY_HEADS, HEAD = 2, 64, 96, 4, 2, 16
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<spare>"]
MERGES = ["t h", "th e", "Ġ the", "a n", "an d"]
WORDS = [*CONTROL, *sorted(ByteLevel.alphabet()), "th", "the", "Ġthe", "an", "and"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def llama_weights(seed: int = 0, tied: bool = True) -> dict[str, Array]:
    """Random weights of a small Llama under their Hugging Face names."""
    draw = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (len(WORDS), HIDDEN), "model.norm": (HIDDEN,)}
    if not tied:
        shapes["lm_head"] = (len(WORDS), HIDDEN)
    rows = {"q_proj": HEADS * HEAD, "k_proj": KEY_HEADS * HEAD, "v_proj": KEY_HEADS * HEAD, "o_proj": HIDDEN}
    for layer in range(LAYERS):
        for part in PARTS:
            last = part.split(".")[-1]
            inner = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
            shape = (HIDDEN,) if "norm" in last else inner.get(last) or (rows[last], HIDDEN)
            shapes[f"model.layers.{layer}.{part}"] = shape
    return {f"{k}.weight": draw.normal(0, 0.3, shape).astype(np.float32) for k, shape in shapes.items()}


def permuted(values: Array, heads: int) -> Array:
    """Rows as GGUF has them: of a head of K rows, row i goes to 2i and row i + K/2 to 2i + 1."""
    out, size = np.empty_like(values), len(values) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = values[head * size + i]
            out[head * size + 2 * i + 1] = values[head * size + i + size // 2]
    return out


def write_gguf(
    path: Path,
    weights: dict[str, Array] | None = None,
    kind: Kind = Kind.F32,
    words: list[str] | None = None,
    control: list[str] | None = None,
    architecture: str = "llama",
    pre: str = "smollm",
    extra: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
) -> Path:
    """Writes a small Llama; norms are float32 whatever the type of the rest."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    words, control = words or WORDS, CONTROL if control is None else control
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3 if word in control else 1 for word in words])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    extra(writer)
    for name, values in (llama_weights() if weights is None else weights).items():
        stem = name.removesuffix(".weight")
        if stem in WHOLE:
            theirs = WHOLE[stem]
        else:
            layer, part = stem.removeprefix("model.layers.").split(".", 1)
            theirs = f"blk.{layer}.{PARTS[part]}"
        heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(stem.split(".")[-1])
        values = values if heads is None else permuted(values, heads)
        add_tensor(writer, f"{theirs}.weight", values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensor(writer: gguf.GGUFWriter, name: str, values: Array, kind: Kind) -> None:
    """A tensor, in a type where it is a matrix and no router, which converters leave as it is."""
    if values.ndim == 1 or kind == Kind.F32 or "gate_inp" in name:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def write_as_converted(
    path: Path,
    architecture: gguf.MODEL_ARCH,
    weights: dict[str, Array],
    extra: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
    pre: str = "qwen2",
    parts: int = 0,
    kind: Kind = Kind.F32,
    layers: int = LAYERS,
) -> Path:
    """Writes weights under their Hugging Face names as llama.cpp's converter does, by the package's own map of names.

    parts: tensors in each part of a split file; 0 writes one file.
    """
    name = gguf.MODEL_ARCH_NAMES[architecture]
    known = gguf.get_tensor_name_map(architecture, layers)
    out: dict[str, Array] = {}
    for theirs, values in weights.items():
        part = theirs.split(".")[-2]
        if name in ("llama", "llada") and part in ("q_proj", "k_proj"):
            values = permuted(values, HEADS if part == "q_proj" else KEY_HEADS)
        if name.startswith("gemma") and theirs.endswith("norm.weight"):
            values = values + 1
        layer, _, expert = theirs.partition(".experts.")
        if expert:  # all of a layer's in one
            number, leaf = expert.split(".", 1)
            if number != "0":
                continue
            same = [w for n, w in weights.items() if n.startswith(f"{layer}.experts.") and n.endswith(leaf)]
            theirs, values = f"{layer}.experts.{leaf}", np.stack(same)
        found = known.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert found is not None, theirs
        out[found] = values
    writer = gguf.GGUFWriter(path, name, split_max_tensors=parts)
    sizes = {"block_count": layers, "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": INNER}
    for key, value in {**sizes, "head_count": HEADS, "head_count_kv": KEY_HEADS}.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(WORDS)
    writer.add_token_types([3 if word in CONTROL else 1 for word in WORDS])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(2)
    extra(writer)
    for theirs, values in out.items():
        add_tensor(writer, theirs, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def converter() -> Writer:
    return write_as_converted


@pytest.fixture(scope="session")
def gguf_writer() -> Writer:
    return write_gguf


@pytest.fixture(scope="session")
def weights() -> Callable[..., dict[str, Array]]:
    return llama_weights
