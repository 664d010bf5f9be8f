"""GGUF files, whole or split: config, tensors and tokenizer as the Hugging Face folder has them.

The header is read here, every count and length checked against the file: the package's own reader trusts them (a
huge count hangs it) and takes seconds over a large vocabulary. The package turns stored blocks into floats.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.checkpoints.families import gemma, llada, llama, registry
from unmask.checkpoints.families.family import Family
from unmask.checkpoints.rows import Rows
from unmask.checkpoints.safetensors import Stored, Weights, fill, opened
from unmask.checkpoints.tokens import free_token
from unmask.errors import UnmaskError

if TYPE_CHECKING:  # torch and the tokenizer library take long to import, and not every use needs them
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor

STORED = {  # number of a type: name, values and bytes of a block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING = 8  # the types of metadata that are not scalars
ARRAY = 9
LONGEST_ARRAY = 2**24  # more entries than any list has
LONGEST_CONTEXT = 2**20  # more positions than any model reads
WIDEST_HEAD = 2**12  # features
CONTROL = 3  # types of token
USER_DEFINED = 4
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}  # our names and the format's
ENDS = ("eot", "eom")  # of a turn, of a message: they end an answer as well
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")  # by name, where no id says it
ROPE_FACTORS = "rope_freqs.weight"
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
MOST_EXPERTS = 4096
LONGEST_SPLIT = 1000  # more parts than any model has
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTING = {  # how text is cut before merging, by the name in the file: a regular expression, or each digit by itself
    "smollm": None,
    "qwen2": QWEN2,
    "llama-bpe": QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"),
}
READ = {  # keys below "llama." that are read; any other that says something is refused
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size", "rope.freq_base",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout",
    "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "attention.causal", "pooling_type",
}  # fmt: skip
EXPERTS = {"expert_count", "expert_used_count", "expert_feed_forward_length"}
WINDOW = "attention.sliding_window"
PATTERN = "attention.sliding_window_pattern"
GELU = dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")
GEMMA3_KEYS = {WINDOW, PATTERN, "rope.freq_base_swa", "final_logit_softcapping"}
LARGEST_GEMMA3 = 62  # layers of the one whose queries are scaled by other than a head's width

WHOLE = {"token_embd": "embedding", "output_norm": "norm", "output": "head"}  # their names and ours
LAYER = {
    "attn_norm": "norm1",
    **{f"attn_{part}": f"mixer.{part}_proj" for part in "qkv"},
    "attn_output": "mixer.o_proj",
    "attn_q_norm": "mixer.q_norm",
    "attn_k_norm": "mixer.k_norm",
    "post_attention_norm": "mixer_norm",
    "ffn_norm": "norm2",
    "post_ffw_norm": "mlp_norm",
    "ffn_gate_inp": "mlp.router",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_exps": f"mlp.experts.{{}}.{part}_proj" for part in ("gate", "up", "down")},
}


@dataclass(frozen=True)
class Architecture:
    """What a file's general.architecture stands for."""

    family: Family
    causal: bool = True
    shift: bool = True  # of the logits, as diffusion.shift_logits says it where it is there
    permuted: bool = False  # rows of queries and keys stand so that neighbours are rotated
    more: dict[str, Any] = field(default_factory=dict)  # of config.json
    read: frozenset[str] = frozenset()  # keys of its own
    added: float = 0.0  # what converters add to weights of norms

    @property
    def experts(self) -> bool:
        return self.read >= EXPERTS


ARCHITECTURES = {
    "llama": Architecture(llama.LLAMA, permuted=True),
    "qwen2": Architecture(llama.OPEN_DCODER),
    "qwen3": Architecture(llama.QWEN3),
    "qwen3moe": Architecture(llama.QWEN3, read=frozenset(EXPERTS), more={"norm_topk_prob": True}),
    "rnd1": Architecture(llama.RND1, causal=False, read=frozenset(EXPERTS), more={"norm_topk_prob": True}),
    "dream": Architecture(llama.DREAM, causal=False),
    "llada": Architecture(llada.LLADA, causal=False, shift=False, permuted=True),
    "llada-moe": Architecture(llama.LLADA_MOE, causal=False, shift=False, read=frozenset(EXPERTS)),
    "gemma": Architecture(gemma.GEMMA, more=GELU, added=1.0),
    "gemma3": Architecture(gemma.GEMMA_3, more=GELU, added=1.0, read=frozenset(GEMMA3_KEYS)),
}
REFUSED = {  # as the folder of such a model is, in the words of that refusal
    "gemma2": "Gemma2ForCausalLM",
}


class GGUF(Weights):
    """A GGUF file whose header was read and found sound; its tensors have their Hugging Face names."""

    def __init__(self, path: Path, metadata: dict[str, Any], stored: dict[str, Stored]) -> None:
        self.source = path
        self.metadata = metadata
        self.stored = stored
        self._rope_factors = stored.pop(ROPE_FACTORS, None)

    @property
    def _kind(self) -> Architecture:
        return ARCHITECTURES[self.metadata["general.architecture"]]

    def config(self) -> dict[str, Any]:
        """What config.json would say; of an AR model with a free control token as mask_token_id.

        Raises UnmaskError for a value that is missing or impossible, and where no control token is free.
        """
        kind = self._kind
        family = kind.family
        hidden = self._number("embedding_length")
        heads = self._number("attention.head_count")
        head = self._number("attention.key_length", hidden // heads)
        context = self._number("context_length")
        theta = self._float("rope.freq_base", 10000.0)
        rotated = self._number("rope.dimension_count", head)
        ids = self.special_ids
        if context > LONGEST_CONTEXT:
            raise self._damaged(f"says that it reads {context} tokens")
        if head > WIDEST_HEAD:
            raise self._damaged(f"has heads of {head} features")
        if rotated != head and (family is not llama.LLADA_MOE or rotated > head):
            raise UnmaskError(f"{self.source}: only part of each head is rotated, which no {family.name} model does")
        if self._number("attention.value_length", head) != head:
            raise UnmaskError(f"{self.source}: values and keys have different widths, which no {family.name} model has")
        self._refuse_unread(kind)
        sizes = {
            "hidden_size": hidden,
            "num_layers": self._number("block_count"),
            "num_heads": heads,
            "num_kv_heads": self._number("attention.head_count_kv", heads),
            "head_dim": head,
            "intermediate_size": self._number("feed_forward_length"),
            "vocab_size": self._vocabulary(),
            "max_length": context,
            "norm_eps": self._float("attention.layer_norm_rms_epsilon"),
            "tie_embeddings": family.theirs("head.weight") not in self.stored,
        }
        biased = family.theirs("blocks.0.mixer.q_proj.bias") in self.stored
        ends = [id for role, id in ids.items() if role in ("eos", *ENDS)]
        raw: dict[str, Any] = {
            "architectures": [family.architectures[0]],
            "model_type": next(iter(family.model_types), "llama"),
            "attention_bias": biased and family is llama.LLAMA,
            "mlp_bias": False,
            "hidden_act": "silu",
            **{llama.SIZES[ours]: value for ours, value in sizes.items()},
            "rope_theta": theta,
            "rope_parameters": self._rope(theta, rotated, context),
            "bos_token_id": ids.get("bos"),
            "eos_token_id": ends if len(ends) > 1 else ids.get("eos"),
            "pad_token_id": ids.get("pad"),
            "mask_token_id": ids.get("mask"),
            **kind.more,
        }
        if family.borrows_mask and raw["mask_token_id"] is None:
            template = self.templates().get("default")
            raw["mask_token_id"] = free_token(self.special_tokens(), list(ids.values()), template, str(self.source))
        if kind.experts:
            size = self._number("expert_feed_forward_length", int(sizes["intermediate_size"]))
            raw |= {"num_experts": self._number("expert_count")}
            raw |= {"num_experts_per_tok": self._number("expert_used_count")}
            raw |= dict.fromkeys(("moe_intermediate_size", "expert_intermediate_size"), size)
            raw |= {"dense_intermediate_size": sizes["intermediate_size"], "partial_rotary_factor": rotated / head}
        if family is gemma.GEMMA_3:
            raw |= self._gemma3(raw, hidden // heads if sizes["num_layers"] == LARGEST_GEMMA3 else head)
        if family is llada.LLADA:
            if head * heads != hidden:
                raise UnmaskError(f"{self.source}: {heads} heads of {head} are not {hidden}, as in every LLaDA")
            plain = raw["rope_parameters"]["rope_type"] == "default"
            raw |= {"rope_parameters": None if plain else raw["rope_parameters"], "include_qkv_bias": biased}
            raw |= {theirs: sizes[ours] for ours, theirs in llada.SIZES.items()}
            raw |= {"n_kv_heads": sizes["num_kv_heads"], "weight_tying": sizes["tie_embeddings"]}
        return raw

    def _gemma3(self, raw: dict[str, Any], scalar: int) -> dict[str, Any]:
        """What only Gemma 3 has: which layers see a window, and how those rotate."""
        name = self.metadata["general.architecture"]
        window = self._number(WINDOW) if self.metadata.get(f"{name}.{WINDOW}") else None
        local = {"rope_type": "default", "rope_theta": self._float("rope.freq_base_swa", 10000.0)}
        slides = self.metadata.get(f"{name}.{PATTERN}")  # of each layer, or how often one sees all
        kinds = [gemma.SLIDING if s else "full_attention" for s in slides] if isinstance(slides, tuple) else None
        return {
            "query_pre_attn_scalar": scalar,
            "final_logit_softcapping": self._float("final_logit_softcapping", 0.0) or None,
            "sliding_window": window or raw["max_position_embeddings"],  # transformers wants one in any case
            "sliding_window_pattern": 1 if window is None or kinds else self._number(PATTERN, 6),
            "layer_types": kinds if window else None,
            "rope_parameters": {"full_attention": raw["rope_parameters"], gemma.SLIDING: local},
        }

    def _refuse_unread(self, kind: Architecture) -> None:
        """Raises UnmaskError for a key of the architecture that says something which is not read."""
        name = self.metadata["general.architecture"]
        read = READ | kind.read
        for key, value in self.metadata.items():
            if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in read and value not in (0, "none", ""):
                raise UnmaskError(f"{self.source}: {key!r:.80} is {value!r:.40}, which cannot be read yet")
        expected = {f"{name}.attention.causal": kind.causal, "diffusion.shift_logits": kind.shift}
        for key, plain in expected.items():
            if self.metadata.get(key, plain) is not plain:
                raise UnmaskError(f"{self.source}: {key} is {self.metadata[key]!r:.40}, which no {name} model has")

    def rows(self, name: str) -> Rows:
        heads = self._heads.get(name.split(".")[-2], 0)
        stored = self.stored[name]
        if heads and stored.shape[0] % (2 * heads):
            raise self._damaged(f"has {stored.shape[0]} rows for {heads} heads")
        return Rows(stored, heads=heads, added=self._kind.added if len(stored.shape) == 1 else 0.0)

    @cached_property
    def _heads(self) -> dict[str, int]:
        """Heads of the parts whose rows stand as GGUF rotates them, neighbours; we (and Hugging Face) rotate rows i and
        i + half."""
        if not self._kind.permuted:
            return {}
        count = self._number("attention.head_count")
        return {"q_proj": count, "k_proj": self._number("attention.head_count_kv", count)}

    def arrays(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor in turn as float32 by its Hugging Face name, queries and keys in that layout's order."""
        for name in self.stored:
            yield name, self.rows(name).values()

    def tensors(
        self, dtype: torch.dtype | None = None, transposed: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        """As `arrays`, as tensors of a dtype (None: float32); no family that a GGUF file holds is transposed."""
        import torch

        for name, values in self.arrays():
            yield name, torch.from_numpy(values).to(torch.float32 if dtype is None else dtype)

    @cached_property
    def names(self) -> list[str]:
        """All tokens; none where the file has none."""
        return self._strings("tokenizer.ggml.tokens")

    def special_tokens(self) -> dict[int, str]:
        """Id to name of the control tokens."""
        kinds = self._token_types(len(self.names))
        return {i: name for i, (name, kind) in enumerate(zip(self.names, kinds, strict=True)) if kind == CONTROL}

    def templates(self) -> dict[str, str]:
        """The Jinja templates of chats by name: "default" and whatever others the file has."""
        start = "tokenizer.chat_template"
        found = {key.removeprefix(start).lstrip("."): value for key, value in self.metadata.items() if start in key}
        return {name or "default": text for name, text in found.items() if isinstance(text, str) and text}

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of bos, eos, unk, pad, mask, eot and eom, where the file names them and they are in the vocabulary."""
        size = len(self.names) or self._vocabulary()
        out = {}
        for role, theirs in (ROLES | {end: end for end in ENDS}).items():
            key = f"tokenizer.ggml.{theirs}_token_id"
            value = self.metadata.get(key, -1)
            if not isinstance(value, int) or isinstance(value, bool):
                raise self._damaged(f"has {key} {value!r:.40}, where a whole number is needed")
            if 0 <= value < size:
                out[role] = value
        if "eot" not in out:
            turns = [id for id, name in self.special_tokens().items() if name in TURN_ENDS]
            if turns and turns[0] != out.get("eos"):
                out["eot"] = turns[0]
        return out

    def token_names(self) -> dict[str, str]:
        """Special tokens by the names that transformers gives them, such as "bos_token"."""
        ids = {role: id for role, id in self.special_ids.items() if role in ROLES and id < len(self.names)}
        return {f"{role}_token": self.names[id] for role, id in ids.items()}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the file's own vocabulary and merges make.

        Raises UnmaskError for one that is not byte-level BPE with a splitting of SPLITTING.
        """
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

        model = self.metadata.get("tokenizer.ggml.model")
        pre = self.metadata.get("tokenizer.ggml.pre")
        if model != "gpt2" or pre not in SPLITTING:
            raise UnmaskError(
                f"{self.source}: its tokenizer ({model!r:.40}, splitting {pre!r:.40}) is not one that can be read; "
                "put the file into a folder with the model's tokenizer.json and load the folder"
            )
        names = self.names
        pairs = self._strings("tokenizer.ggml.merges")
        kinds = self._token_types(len(names))
        merges = [(left, right) for left, _, right in (pair.partition(" ") for pair in pairs)]
        vocabulary = {name: i for i, name in enumerate(names)}
        if len(vocabulary) != len(names) or "" in vocabulary:
            raise self._damaged("has a vocabulary with a token that is empty or there twice")
        try:
            tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
        except Exception as error:  # the library raises bare Exception
            raise self._damaged(f"has merges that do not fit its vocabulary: {str(error)!r:.80}") from None
        pattern = SPLITTING[pre]
        cut: Any = pre_tokenizers.Digits(individual_digits=True)
        if pattern is not None:
            cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        if pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
        tokenizer.decoder = decoders.ByteLevel()
        added = [AddedToken(names[i], normalized=False) for i, kind in enumerate(kinds) if kind == USER_DEFINED]
        control = [AddedToken(name, normalized=False, special=True) for name in self.special_tokens().values()]
        tokenizer.add_tokens(added)
        tokenizer.add_special_tokens(control)
        start = self.special_ids.get("bos")
        if self.metadata.get("tokenizer.ggml.add_bos_token") is True and start is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[names[start], "$A"], special_tokens=[(names[start], start)]
            )
        return tokenizer

    def side_files(self) -> dict[str, str]:
        """Text of the files that spare the next reader this one's metadata: config, tokenizer, chat template."""
        files = {"config.json": json.dumps(self.config(), indent=2) + "\n"}
        with suppress(UnmaskError):  # the model's own may lie there, or the reason is said when it is asked for
            files["tokenizer.json"] = self.tokenizer().to_str()
        template = self.templates().get("default")
        return files if template is None else {**files, "chat_template.jinja": template}

    def _rope(self, theta: float, head: int, context: int) -> dict[str, Any]:
        """rope_parameters of config.json: how positions are stretched, as llama.cpp does it."""
        name = self.metadata["general.architecture"]
        kind = self.metadata.get(f"{name}.rope.scaling.type", "linear")
        factor = self._float("rope.scaling.factor", self._float("rope.scale_linear", 0.0)) or 1.0
        attention = self._float("rope.scaling.attn_factor", 1.0)
        attention *= self._float("rope.scaling.yarn_attn_factor", 1.0)
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
        if kind not in ("linear", "none", "yarn"):
            raise UnmaskError(f"{self.source}: {name}.rope.scaling.type is {kind!r:.40}, which cannot be read")
        if not 0 < factor < 1e6 or not 0 < attention < 1e6:
            raise self._damaged(f"stretches its positions by {factor}, its attention by {attention}")
        if (attention != 1 and kind != "yarn") or (self._rope_factors is not None and kind == "yarn"):
            raise UnmaskError(f"{self.source}: {name}.rope.scaling.type {kind} with other factors cannot be read")
        if kind == "yarn":
            original = self._number("rope.scaling.original_context_length", context)
            scale = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
            return rope | {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": self._float("rope.scaling.yarn_beta_fast", 32.0),
                "beta_slow": self._float("rope.scaling.yarn_beta_slow", 1.0),
                "attention_factor": attention * scale,
            }
        factor = 1.0 if kind == "none" else factor
        if self._rope_factors is not None:
            factors = [value * factor for value in self._factors(self._rope_factors, head)]
            rope |= {"rope_type": "longrope", "original_max_position_embeddings": context, "attention_factor": 1.0}
            return rope | {"short_factor": factors, "long_factor": factors}
        return rope if factor == 1 else rope | {"rope_type": "linear", "factor": factor}

    def _factors(self, tensor: Stored, head: int) -> list[float]:
        """What each pair's frequency is divided by (Llama 3.1 and later)."""
        if tensor.shape != (head // 2,) or tensor.kind != "F32":
            raise self._damaged(f"has rope_freqs of shape {list(tensor.shape)} for heads of {head}")
        with opened(tensor.path) as file:
            factors: list[float] = _bytes(file, tensor).view("<f4").tolist()
        return factors

    def _vocabulary(self) -> int:
        """Rows of the embedding, which must be as many as there are tokens."""
        shape = self.shapes().get(self._kind.family.theirs("embedding.weight"))
        if shape is None or len(shape) != 2:
            raise self._damaged("has no table of embeddings (token_embd.weight)")
        if self.names and len(self.names) != shape[0]:
            raise self._damaged(f"has {len(self.names)} tokens for {shape[0]} embeddings")
        return shape[0]

    def _number(self, key: str, default: int | None = None) -> int:
        """A whole number of the architecture, above 0."""
        key = f"{self.metadata['general.architecture']}.{key}"
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._damaged(f"has {key} {value!r:.40}, where a whole number is needed")
        return value

    def _float(self, key: str, default: float | None = None) -> float:
        key = f"{self.metadata['general.architecture']}.{key}"
        value = self.metadata.get(key, default)
        if not isinstance(value, float) or not math.isfinite(value):
            raise self._damaged(f"has {key} {value!r:.40}, where a number is needed")
        return float(f"{value:.7g}")  # 1e-05, not the 9.99999975e-06 that a float32 makes of it

    def _strings(self, key: str) -> list[str]:
        """A list of texts; none where the file has none."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._damaged(f"has {key} that is not a list of texts")
        return value

    def _token_types(self, count: int) -> tuple[Any, ...]:
        kinds = self.metadata.get("tokenizer.ggml.token_type", (1,) * count)
        if not isinstance(kinds, tuple) or len(kinds) != count:
            raise self._damaged("has token types that do not fit its tokens")
        return kinds

    def _damaged(self, what: str) -> UnmaskError:
        return _damaged(self.source, what)


def find(source: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder, the first of its parts where it is split;
    several raise UnmaskError."""
    if source.suffix == ".gguf" and source.is_file():
        return source
    files = sorted(source.glob("*.gguf"))
    if len({SPLIT.sub("", file.name) for file in files}) > 1:
        raise UnmaskError(f"{source} holds {len(files)} GGUF files; name the one to use, for example {files[0]}")
    return files[0] if files else None


def parts(path: Path) -> list[Path]:
    """All parts of a split file, by one of them; of a whole file that itself."""
    split = SPLIT.search(path.name)
    if split is None or not 1 < int(split[2]) <= LONGEST_SPLIT:
        return [path]
    start = path.name[: split.start()]
    return [path.with_name(f"{start}-{number:05}-of-{split[2]}.gguf") for number in range(1, int(split[2]) + 1)]


def read(path: Path) -> GGUF:
    """Reads the header, of a split file those of all parts. A file that is damaged, in want of a part, of an unknown
    model or of an unknown type raises UnmaskError."""
    files = parts(path)
    for file in files:
        if not file.is_file() and file != path:
            raise UnmaskError(f"{path} is one of {len(files)} parts and {file} is not there; copy or download it too")
    architecture = None
    metadata: dict[str, Any] = {}
    stored: dict[str, Stored] = {}
    for number, file in enumerate(files):
        with opened(file) as data:
            header = _Header(file, data)
            own, count = _values(header)
            if own.get("split.count", 1) not in (len(files), 0) or own.get("split.no", number) != number:
                raise UnmaskError(
                    f"{file} is part {own.get('split.no', 0)!r:.20} of {own.get('split.count', 1)!r:.20} of a split "
                    "file; give all parts the names that they had: NAME-00001-of-00003.gguf and so on"
                )
            metadata = {**own, **metadata}
            architecture = architecture or _architecture(path, metadata)
            for tensor in _tensors(header, own, count, architecture):
                if tensor.name in stored:
                    raise _damaged(file, "has a tensor twice")
                stored[tensor.name] = tensor
    return GGUF(files[0], metadata, stored)


def _bytes(file: BufferedReader, tensor: Stored) -> NDArray[np.uint8]:
    import numpy as np

    out = np.empty(tensor.size, np.uint8)
    file.seek(tensor.start)
    fill(file, out, tensor)
    return out


class _Header:
    """Little-endian values in turn, never more bytes than the file has."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path = path
        self.file = file
        self.size = path.stat().st_size
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise _damaged(self.path, f"ends at byte {self.size}, inside its header")
        self.at += count
        data = self.file.read(count)
        if len(data) != count:
            raise _damaged(self.path, "became shorter while it was read")
        return data

    def number(self, format: str) -> Any:
        return struct.unpack("<" + format, self.take(struct.calcsize("<" + format)))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise _damaged(self.path, f"has text at byte {self.at} that is not UTF-8") from None

    def value(self) -> Any:
        """A scalar, a text, a list of texts or a tuple of scalars."""
        kind = self.number("I")
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise _damaged(self.path, f"has a value of the unknown type {kind}")
        item = self.number("I")
        count = self.number("Q")
        if count > LONGEST_ARRAY or (item != STRING and item not in SCALARS):
            raise _damaged(self.path, f"has a list of {count} values of type {item}")
        if item == STRING:
            return [self.text() for _ in range(count)]
        format = f"<{count}{SCALARS[item]}"
        return struct.unpack(format, self.take(struct.calcsize(format)))


def _values(header: _Header) -> tuple[dict[str, Any], int]:
    """The metadata, and how many tensors there are."""
    path = header.path
    magic = header.take(4) if header.size >= 4 else b""
    if magic == b"vers":
        raise UnmaskError(f"{path} is only a pointer to a file kept by Git LFS; fetch it with: git lfs pull")
    if magic != b"GGUF":
        raise UnmaskError(f"{path} is not a GGUF file; copy or download it again")
    version = header.number("I")
    if version not in (2, 3):
        raise UnmaskError(f"{path} is GGUF version {version}; versions 2 and 3 (little-endian) can be read")
    tensor_count: int = header.number("Q")
    value_count = header.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):  # a huge count ends at the end of the file
        key = header.text()
        if key in metadata:
            raise _damaged(path, f"has {key!r:.60} twice")
        metadata[key] = header.value()
    return metadata, tensor_count


def _architecture(path: Path, metadata: dict[str, Any]) -> Architecture:
    if metadata.get("general.type") == "adapter":
        raise UnmaskError(f"{path} is an adapter, not a model; merge it into its base with: llama-export-lora")
    name = metadata.get("general.architecture")
    if name in REFUSED:
        registry.recognise({"architectures": [REFUSED[name]]}, str(path))
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnmaskError(
            f"{path} is of architecture {name!r:.40}; {', '.join(ARCHITECTURES)} can be read from GGUF, "
            "others from the model's safetensors"
        )
    return ARCHITECTURES[name]


def _tensors(header: _Header, metadata: dict[str, Any], count: int, architecture: Architecture) -> Iterator[Stored]:
    """Where the tensors of one file lie; those of experts each by itself."""
    path = header.path
    entries = [(header.text(), _dimensions(header), header.number("I"), header.number("Q")) for _ in range(count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise _damaged(path, f"has the alignment {alignment!r:.40}")
    start = -(-header.at // alignment) * alignment
    for entry in entries:
        tensor = _stored(path, header.size - start, start, *entry)
        if tensor.name == ROPE_FACTORS:
            yield tensor
            continue
        names = _translated(path, tensor.name, architecture, tensor.shape)
        size = tensor.size // len(names)
        for number, name in enumerate(names):
            shape = tensor.shape if len(names) == 1 else tensor.shape[1:]
            yield replace(tensor, name=name, shape=shape, start=tensor.start + number * size, size=size)


def _dimensions(header: _Header) -> tuple[int, ...]:
    count = header.number("I")
    if not 1 <= count <= 4:
        raise _damaged(header.path, f"has a tensor of {count} dimensions")
    return tuple(header.number("Q") for _ in range(count))


def _stored(
    path: Path, room: int, start: int, name: str, dimensions: tuple[int, ...], number: int, offset: int
) -> Stored:
    """Where a tensor lies, checked against the bytes that the file has; `room` of them are for tensors."""
    if number not in STORED:
        from gguf import GGMLQuantizationType as Kind

        kind = Kind(number).name if number in list(Kind) else f"the unknown type {number}"
        raise UnmaskError(
            f"{path}: tensor {name!r:.60} is stored as {kind}, which cannot be read; use a "
            f"{', '.join(sorted(known for known, _, _ in STORED.values()))} version of the model"
        )
    kind, values, size = STORED[number]
    if dimensions[0] % values or min(dimensions) < 1:
        raise _damaged(path, f"has tensor {name!r:.60} of shape {list(dimensions)}")
    size = math.prod(dimensions) // values * size
    if offset > room or size > room - offset:
        raise _damaged(path, f"ends before the {size} bytes of tensor {name!r:.60}")
    if len(dimensions) == 1 and values > 1:
        raise UnmaskError(f"{path}: tensor {name!r:.60} is a single row stored as {kind}, which cannot be read")
    return Stored(path, name, kind, dimensions[::-1], start + offset, size)


def _translated(path: Path, name: str, architecture: Architecture, shape: tuple[int, ...]) -> list[str]:
    """The Hugging Face name of a tensor; those of its experts where it holds several."""
    family = architecture.family
    layer = re.fullmatch(r"blk\.([0-9]{1,6})\.(\w+)\.(weight|bias)", name)
    whole = re.fullmatch(r"(\w+)\.weight", name)
    if whole is not None and whole[1] in WHOLE:
        return [family.theirs(f"{WHOLE[whole[1]]}.weight")]
    with suppress(KeyError):  # no network has such a tensor, or none of this family
        part, number, leaf = ("", "", "") if layer is None else (layer[2], layer[1], layer[3])
        ours = LAYER[part]
        experts = shape[0] if "{}" in ours else 1
        if experts == 1 or (len(shape) == 3 and experts <= MOST_EXPERTS):
            return [family.theirs(f"blocks.{number}.{ours.format(expert)}.{leaf}") for expert in range(experts)]
    raise UnmaskError(f"{path}: tensor {name!r:.60} is not one of a {family.name} model, so it cannot be read")


def _damaged(path: Path, what: str) -> UnmaskError:
    return UnmaskError(f"{path} is damaged: it {what}; copy or download it again")
