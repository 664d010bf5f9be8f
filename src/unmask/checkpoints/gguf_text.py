"""The text side of a GGUF file: its tokens, special ids, chat templates and the tokenizer that they make."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unmask.checkpoints.gguf_header import Values
from unmask.errors import UnmaskError

if TYPE_CHECKING:  # the tokenizer library takes long to import, and not every use needs it
    from tokenizers import Tokenizer

CONTROL = 3  # types of token
USER_DEFINED = 4
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}  # our names and the format's
ENDS = {  # of a turn, and of a message that a tool answers: they end an answer as well; by name, where no id says it
    "eot": ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>"),
    "eom": ("<|eom_id|>", "<|tool_response>"),
}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTING = {  # how text is cut before merging, by the name in the file: a regular expression, or each digit by itself
    "smollm": None,
    "qwen2": QWEN2,
    "llama-bpe": QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"),
    "llada-moe": QWEN2.replace(r"\s*[\r\n]+|", r"\s*[\r\n]|"),
}


@dataclass(frozen=True)
class Text:
    """What a file says of text. vocabulary: rows of the embedding."""

    values: Values
    vocabulary: int

    @cached_property
    def names(self) -> list[str]:
        """All tokens; none where the file has none."""
        return self.values.strings("tokenizer.ggml.tokens")

    @cached_property
    def _kinds(self) -> tuple[Any, ...]:
        count = len(self.names)
        kinds = self.values.all.get("tokenizer.ggml.token_type", (1,) * count)
        if not isinstance(kinds, tuple) or len(kinds) != count:
            raise self.values.damaged("has token types that do not fit its tokens")
        return kinds

    def special_tokens(self, *kinds: int) -> dict[int, str]:
        """Id to name of the control tokens, or of those of other types."""
        typed = enumerate(zip(self.names, self._kinds, strict=True))
        return {i: name for i, (name, kind) in typed if kind in (kinds or (CONTROL,))}

    @cached_property
    def templates(self) -> dict[str, str]:
        """The Jinja templates of chats by name: "default" and whatever others the file has."""
        start = "tokenizer.chat_template"
        found = {key.removeprefix(start).lstrip("."): value for key, value in self.values.all.items() if start in key}
        return {name or "default": text for name, text in found.items() if isinstance(text, str) and text}

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of bos, eos, unk, pad, mask, eot and eom, where the file names them and they are in the vocabulary."""
        out = {}
        for role, theirs in (ROLES | {end: end for end in ENDS}).items():
            key = f"tokenizer.ggml.{theirs}_token_id"
            value = self.values.all.get(key, -1)
            if not isinstance(value, int) or isinstance(value, bool):
                raise self.values.damaged(f"has {key} {value!r:.40}, where a whole number is needed")
            if 0 <= value < self.vocabulary:
                out[role] = value
        for role, names in ENDS.items():
            found = [id for id, name in self.special_tokens(CONTROL, USER_DEFINED).items() if name in names]
            if role not in out and found and found[0] != out.get("eos"):
                out[role] = found[0]
        return out

    @property
    def ends(self) -> list[int]:
        """All ids that end an answer."""
        return [id for role, id in self.special_ids.items() if role in ("eos", *ENDS)]

    def token_names(self) -> dict[str, str]:
        """Special tokens by the names that transformers gives them, such as "bos_token"."""
        ids = {role: id for role, id in self.special_ids.items() if role in ROLES and id < len(self.names)}
        return {f"{role}_token": self.names[id] for role, id in ids.items()}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the file's own vocabulary and merges make.

        Raises UnmaskError for one that is neither BPE of bytes with a splitting of SPLITTING nor Gemma 4's.
        """
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

        model = self.values.all.get("tokenizer.ggml.model")
        pre: Any = self.values.all.get("tokenizer.ggml.pre")
        if model != "gemma4" and (model != "gpt2" or pre not in SPLITTING):
            raise UnmaskError(
                f"{self.values.path}: its tokenizer ({model!r:.40}, splitting {pre!r:.40}) is not one that can be "
                "read; put the file into a folder with the model's tokenizer.json and load the folder"
            )
        pairs = self.values.strings("tokenizer.ggml.merges")
        vocabulary = {name: i for i, name in enumerate(self.names)}
        if len(vocabulary) != len(self.names) or "" in vocabulary:
            raise self.values.damaged("has a vocabulary with a token that is empty or there twice")
        options: dict[str, Any] = {"ignore_merges": pre == "llama-bpe"}
        if model == "gemma4":
            options = {"byte_fallback": True, "fuse_unk": True, "unk_token": self.token_names().get("unk_token")}
        try:
            merges = [(left, right) for left, _, right in (pair.partition(" ") for pair in pairs)]
            tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))
        except Exception as error:  # the library raises bare Exception
            raise self.values.damaged(f"has merges that do not fit its vocabulary: {str(error)!r:.80}") from None
        if model == "gemma4":  # of characters, with spaces as U+2581
            tokenizer.normalizer = normalizers.Replace(" ", "▁")
            back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            tokenizer.decoder = decoders.Sequence(back)
        else:
            pattern = SPLITTING[pre]
            cut: Any = pre_tokenizers.Digits(individual_digits=True)
            if pattern is not None:
                cut = pre_tokenizers.Split(Regex(pattern), "isolated")
            if pre == "qwen2":
                tokenizer.normalizer = normalizers.NFC()
            level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
            tokenizer.decoder = decoders.ByteLevel()
        plain = [AddedToken(name, normalized=False) for name in self.special_tokens(USER_DEFINED).values()]
        tokenizer.add_tokens(plain)
        control = [AddedToken(name, normalized=False, special=True) for name in self.special_tokens().values()]
        tokenizer.add_special_tokens(control)
        start = self.special_ids.get("bos")
        if self.values.all.get("tokenizer.ggml.add_bos_token") is True and start is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[self.names[start], "$A"], special_tokens=[(self.names[start], start)]
            )
        return tokenizer
