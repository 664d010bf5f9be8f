"""Networks of Qwen3's shape as GGUF files, and llama.cpp on them: answers under its own grammar, and single passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unmask import DiffusionLM
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

ENDS = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
PARTS = {
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
    **{f"mixer.{name}_proj": f"attn_{name}" for name in "qkv"},
    "mixer.o_proj": "attn_output",
    **{f"mixer.{name}_norm": f"attn_{name}_norm" for name in "qk"},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
NOISE = 2**20  # random values that are repeated
BLOCK = 32  # values of a scale, which stands before them


def theirs(name: str) -> str:
    """The name of one of our parameters in a file."""
    stem = name.removesuffix(".weight")
    _, layer, part = (*stem.split(".", 2), "", "")[:3]
    return f"{ENDS.get(stem) or f'blk.{layer}.{PARTS[part]}'}.weight"


def _write(
    path: Path,
    config: ModelConfig,
    words: list[str],
    special: set[str],
    merges: list[str],
    tensors: Iterator[tuple[str, np.ndarray]],
    stored: str,
    splitting: str = "gpt-2",
) -> None:
    """Tensors by our names, vectors as they are, of matrices the bytes of a stored type, one in memory at a time."""
    import gguf

    if not (config.layout == "causal" and config.qk_norm and config.activation == "swiglu" and not config.num_experts):
        raise UnmaskError("only a causal network with Qwen3's shape is written as a GGUF file")
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges(merges)
    if config.eos_token_id is not None:
        writer.add_eos_token_id(config.eos_token_id)
    for name, values in tensors:
        plain = values.ndim == 1
        writer.add_tensor(theirs(name), values, raw_dtype=None if plain else gguf.GGMLQuantizationType[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(lm: DiffusionLM, path: Path) -> Path:
    """Writes a model, its matrices in Q8_0. Raises UnmaskError for a network of another shape."""
    import gguf

    assert lm.tokenizer is not None
    tokenizer = json.loads(lm.tokenizer.to_str())
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    words = [lm.tokenizer.id_to_token(number) for number in range(lm.config.vocab_size)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, tensor in lm.model.named_parameters():
            values = np.ascontiguousarray(tensor.detach().float().numpy())
            q8 = gguf.GGMLQuantizationType.Q8_0
            yield name, values if values.ndim == 1 else gguf.quants.quantize(values, q8)

    _write(path, lm.config, words, special, merges, tensors(), "Q8_0")
    return path


def write_random(config: ModelConfig, path: Path) -> Path:
    """Writes a network of random weights in Q4_0: the same values again and again, each row at a scale of its own.
    Tokens are called by their numbers."""
    import gguf

    from unmask.models.network import on_meta

    words = ["t", "0", *(f"t{number}" for number in (0, *range(3, config.vocab_size)))]
    random = np.random.default_rng(0)
    noise = random.standard_normal(NOISE, np.float32)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        made: dict[int, np.ndarray] = {}
        for name, parameter in on_meta(config).named_parameters():
            rows, columns = (*parameter.shape, 0)[:2]
            if columns == 0:
                yield name, np.ones(rows, np.float32)
                continue
            if columns not in made:
                values = noise[: NOISE // columns * columns].reshape(-1, columns) * np.float32(columns**-0.5)
                made[columns] = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
            stored = np.resize(made[columns], (rows, made[columns].shape[1]))
            scales = stored.reshape(rows, columns // BLOCK, -1)[..., :2].view(np.float16)
            scales *= random.uniform(0.7, 1.3, (rows, 1, 1)).astype(np.float16)
            yield name, stored

    _write(path, config, words, {words[-1], words[-2]}, ["t 0"], tensors(), "Q4_0", "qwen2")
    return path


class LlamaTwin:
    """llama.cpp (package `xllamacpp`) on a GGUF file, greedy, at a number of threads."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import xllamacpp
        except ImportError:
            raise UnmaskError("llama.cpp is not installed; `pip install xllamacpp` puts it beside us") from None
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = 1
        params.n_ctx = 1024
        params.cache_ram_mib = 0
        params.verbosity = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)
        self.grammar_of = xllamacpp.json_schema_to_grammar
        self.build = f"xllamacpp {xllamacpp.__version__}, {xllamacpp.get_system_info().strip(' |')}"

    def grammar(self, schema: Any) -> str:
        """Its grammar of a JSON schema."""
        return str(self.grammar_of(json.dumps(schema)))

    def _ask(self, **asked: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.server.handle_completions({"temperature": 0, **asked})
        if "choices" not in answer:
            raise UnmaskError(f"llama.cpp: {answer}")
        return answer

    def answer(self, ids: list[int], longest: int, grammar: str) -> tuple[str, int]:
        """The text of an answer and its tokens."""
        answer = self._ask(prompt=ids, n_predict=longest, cache_prompt=False, grammar=grammar)
        return str(answer["choices"][0]["text"]), int(answer["usage"]["completion_tokens"])

    def read(self, ids: list[int], count: int) -> tuple[int, float]:
        """Reads the last `count` tokens of a prompt whose others it has read, by a file that `write_random` made: the
        best token after it, and the seconds of that pass as llama.cpp says them."""
        answer = self._ask(prompt=ids, n_predict=1, cache_prompt=True)
        timings = answer["timings"]
        if not count - 2 <= timings["prompt_n"] <= count:  # tokens that the last prompt had there by chance are kept
            raise UnmaskError(f"llama.cpp read {timings['prompt_n']} tokens where {count} are timed")
        digits = str(answer["choices"][0]["text"]).removeprefix("t")
        return int(digits) if digits.isdecimal() else -1, timings["prompt_ms"] / 1e3
