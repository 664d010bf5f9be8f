"""Tokenisers made from a corpus: bytes, characters or byte-level BPE, all as `tokenizers` objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

TokenizerKind = Literal["byte", "char", "bpe"]
EOS, MASK, UNKNOWN = "<|endoftext|>", "<|mask|>", "<|unknown|>"


def train_tokenizer(kind: TokenizerKind, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer whose first ids are EOS (0) and MASK (1). `vocab_size` is read by `bpe` only."""
    if kind == "char":
        characters = sorted(set().union(*(set(text) for text in texts)))
        vocabulary = {token: i for i, token in enumerate([EOS, MASK, UNKNOWN, *characters])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([EOS, MASK, UNKNOWN])
        return tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = vocab_size if kind == "bpe" else 2 + len(alphabet)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[EOS, MASK], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts if kind == "bpe" else [], trainer)
    return tokenizer
