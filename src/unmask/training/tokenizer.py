"""Tokenisers made from a corpus: bytes, characters or byte-level BPE, all as `tokenizers` objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from unmask.checkpoints.folder import TOKENIZER, Folder
from unmask.checkpoints.tokens import MASK_NAME, TokenFiles, token_files
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.training.data import DataConfig

TokenizerKind = Literal["byte", "char", "bpe"]
EOS = "<|endoftext|>"
MASK = "<|mask|>"
UNKNOWN = "<|unknown|>"


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


def begin_with_eos(tokenizer: Tokenizer) -> None:
    """Makes texts begin with EOS where special tokens are asked for, as they did in training."""
    eos = tokenizer.token_to_id(EOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, eos)])


def special_tokens(tokenizer: Tokenizer, data: DataConfig, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The vocabulary's size and special ids, as ModelConfig names them.

    Ids that `shape` gives come first, then names in the recipe, then those of the files beside the tokenizer, then our
    own names, then for the mask the one added token that is named like one. Raises UnmaskError without an end of text.
    """
    file = Path(data.tokenizer_file)
    files = token_files(Folder(file.parent)) if file.name == TOKENIZER else TokenFiles()
    masks = [i for i, token in tokenizer.get_added_tokens_decoder().items() if MASK_NAME.fullmatch(token.content)]

    def find(role: str, named: str, usual: str) -> int | None:
        given = shape.get(f"{role}_token_id")
        if given is not None:
            return int(given)
        if named and tokenizer.token_to_id(named) is None:
            raise UnmaskError(f"recipe: data.{role}_token {named!r} is not in the tokenizer's vocabulary")
        options = (tokenizer.token_to_id(named) if named else None, files.named.get(role), tokenizer.token_to_id(usual))
        return next((option for option in options if option is not None), None)

    eos = find("eos", data.eos_token, EOS)
    if eos is None:
        raise UnmaskError(f"the tokenizer has no '{EOS}' token to end documents with; name its own as data.eos_token")
    mask = find("mask", data.mask_token, MASK)
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "mask_token_id": masks[0] if mask is None and len(masks) == 1 else mask,
        "eos_token_id": eos,
        "bos_token_id": files.named.get("bos", eos),
        "pad_token_id": files.named.get("pad", eos),
    }
