"""An AR model of ours as a GGUF file for llama.cpp, which answers under its own grammar of a JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from unmask import DiffusionLM
from unmask.errors import UnmaskError

ENDS = {"embedding": "token_embd", "norm": "output_norm"}
PARTS = {
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
    **{f"mixer.{name}_proj": f"attn_{name}" for name in "qkv"},
    "mixer.o_proj": "attn_output",
    **{f"mixer.{name}_norm": f"attn_{name}_norm" for name in "qk"},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}


def write_gguf(lm: DiffusionLM, path: Path) -> Path:
    """Writes a causal network with norms of queries and keys as Qwen3's, its matrices in Q8_0.

    Raises UnmaskError for a network of another shape.
    """
    import gguf

    config = lm.config
    if not (config.layout == "causal" and config.qk_norm and config.tie_embeddings and config.activation == "swiglu"):
        raise UnmaskError(f"model '{lm.name}' has not the shape of Qwen3, so it is not written as a GGUF file")
    assert lm.tokenizer is not None
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
    tokenizer = json.loads(lm.tokenizer.to_str())
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    words = [lm.tokenizer.id_to_token(number) for number in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config.eos_token_id)
    for name, tensor in lm.model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem == "head":
            continue
        _, layer, part = (*stem.split(".", 2), "", "")[:3]
        theirs = ENDS.get(stem) or f"blk.{layer}.{PARTS[part]}"
        values = tensor.float().numpy()
        if values.ndim == 1:
            writer.add_tensor(f"{theirs}.weight", values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(
                f"{theirs}.weight", gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaTwin:
    """llama.cpp (package `xllamacpp`) on a GGUF file, greedy, at a number of threads."""

    def __init__(self, path: Path, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = 1
        params.n_ctx = 1024
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)
        self.grammar_of = xllamacpp.json_schema_to_grammar

    def grammar(self, schema: Any) -> str:
        """Its grammar of a JSON schema."""
        return str(self.grammar_of(json.dumps(schema)))

    def answer(self, ids: list[int], longest: int, grammar: str) -> tuple[str, int]:
        """The text of an answer and its tokens."""
        asked = {"prompt": ids, "n_predict": longest, "temperature": 0, "cache_prompt": False, "grammar": grammar}
        answer: dict[str, Any] = self.server.handle_completions(asked)
        if "choices" not in answer:
            raise UnmaskError(f"llama.cpp: {answer}")
        return str(answer["choices"][0]["text"]), int(answer["usage"]["completion_tokens"])
