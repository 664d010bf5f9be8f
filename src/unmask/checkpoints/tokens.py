"""The text side of a checkpoint: which ids are the mask, the end of text and the rest, tokenizer, chat templates."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from unmask.checkpoints.folder import Folder
    from unmask.models.config import ModelConfig

# <mask>, [MASK], <|mask|>, <|mdm_mask|>, <[MASK_TOKEN]>, |<MASK>|, and Open-dCoder's <M>
MASK_NAME = re.compile(r"\W*(\w+_)?mask(_token)?\W*|<M>", re.IGNORECASE)

ROLES = ("mask", "eos", "bos", "pad")
LARGEST_TEMPLATE = 2**22  # bytes
END = "<|endoftext|>"
CLASSES = {  # what transformers' tokenizers call their special tokens unless told otherwise
    "Llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "Qwen2": {"eos_token": END, "unk_token": END, "pad_token": END},
    "GPT2": {"bos_token": END, "eos_token": END, "unk_token": END},
    "Gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
}


@dataclass(frozen=True)
class TokenFiles:
    """What the files beside config.json say; empty where there are none."""

    added: Mapping[int, str] = field(default_factory=dict)  # tokens added to the vocabulary, tokenizer.json
    control: frozenset[int] = frozenset()  # those of them that no text holds
    named: Mapping[str, int] = field(default_factory=dict)  # mask, eos, bos, pad: tokenizer_config.json
    ends: tuple[int, ...] = ()  # eos_token_id of generation_config.json
    size: int = 0  # tokens of tokenizer.json's own vocabulary; 0: not known


@dataclass(frozen=True)
class Tokens:
    """Special ids as settled, where each comes from, and what the files disagree about."""

    mask: Any
    eos: Any
    bos: Any
    pad: Any
    ends: tuple[int, ...]  # others that end an answer
    origins: Mapping[str, str]
    notes: tuple[str, ...]


def resolve(
    raw: Mapping[str, Any],
    fields: Mapping[str, Any],
    files: TokenFiles,
    usual: tuple[int | None, int | None, int | None],
    source: str,
) -> Tokens:
    """Settles the special ids of a model.

    config.json comes first (the network was trained with it), then generation_config.json, then the tokenizer's
    files, then the family's usual ids (mask, eos, turn). `fields` is what config.json was read to, `raw` the file.
    Values of a wrong type are handed on for the config's own check. Raises UnmaskError for a mask outside the
    vocabulary.
    """
    size: int = fields["vocab_size"] if _is_id(fields.get("vocab_size")) else 0
    if files.size > size > 0:
        raise UnmaskError(f"{source}: its tokenizer has {files.size} tokens, the network's vocabulary {size}")
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    notes: list[str] = []
    masks = [token for token, name in files.added.items() if MASK_NAME.fullmatch(name)]
    named = {**({"mask": masks[0]} if len(masks) == 1 else {}), **files.named}
    uniform = fields.get("corruption") == "uniform"  # it writes over random tokens; none means "not written yet"
    for role, standard in (("mask", usual[0]), ("eos", usual[1]), ("bos", None), ("pad", None)):
        own = fields.get(f"{role}_token_id")
        generation = files.ends[0] if role == "eos" and files.ends else None
        follows = role == "mask" and raw.get("mask_token_id") is None
        options = [(own, "the sizes in config.json" if follows else "config.json")]
        if role != "mask" or not uniform:
            others = (
                (generation, "generation_config.json"),
                (named.get(role), "the tokenizer"),
                (standard, "the family's usual id"),
            )
            options += [(value, origin) for value, origin in others if value is not None and value < size]
        found[role], origins[role] = next(((v, o) for v, o in options if v is not None), (None, "nowhere"))
        told = named.get(role)
        if told is not None and found[role] != told and _is_id(found[role]):
            notes.append(f"{role} is {found[role]} by {origins[role]}, {told} by the tokenizer; the first is used")
    mask = found["mask"]
    if _is_id(mask) and mask >= size > 0:
        raise UnmaskError(f"{source}: mask_token_id {mask} is outside the vocabulary of {size}")
    listed = raw.get("eos_token_id")
    turn = usual[2] if not files.added or usual[2] in files.added else None
    ends = [*(listed if isinstance(listed, list) else []), *files.ends, files.named.get("eos"), turn]
    rest = tuple(sorted({end for end in ends if _is_id(end) and end < size and end != found["eos"]}))
    return Tokens(mask, found["eos"], found["bos"], found["pad"], rest, origins, tuple(notes))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def free_token(special: Mapping[int, str], used: Collection[int | None], template: str | None, source: str) -> int:
    """Id of the token to mask with: one named like a mask, else the last control token with no other use.

    special: id to name of the control tokens. used: ids with a meaning (start, end, padding). A token that the
    chat template writes is in use as well. Raises UnmaskError where none is free.
    """
    named = [token for token, name in special.items() if MASK_NAME.fullmatch(name)]
    if named:
        return named[0]
    free = [token for token, name in special.items() if token not in used and not (template and name in template)]
    if not free:
        raise UnmaskError(
            f"{source}: all {len(special)} control tokens are in use, so none can be the mask; "
            "put a config.json with a mask_token_id beside it"
        )
    return max(free)


def token_files(folder: Folder) -> TokenFiles:
    """What the files of a folder beside config.json say of special tokens."""
    tokenizer = folder.json("tokenizer.json")
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    size = len(vocabulary) if isinstance(vocabulary, dict | list) else 0
    listed = tokenizer.get("added_tokens")
    own = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    sound = [e for e in [*own, *_added_beside(folder)] if _is_id(e.get("id")) and isinstance(e.get("content"), str)]
    added = {e["id"]: e["content"] for e in sound}
    ids = {name: i for name, i in vocabulary.items() if _is_id(i)} if isinstance(vocabulary, dict) else {}
    ids |= {name: i for i, name in added.items()}
    names = _named(folder)
    named = {role: ids[names[f"{role}_token"]] for role in ROLES if names.get(f"{role}_token") in ids}
    ends = folder.json("generation_config.json").get("eos_token_id")
    ends = tuple(i for i in (ends if isinstance(ends, list) else [ends]) if _is_id(i))
    control = frozenset(e["id"] for e in sound if e.get("special") is True)
    return TokenFiles(added, control, named, ends, size)


def _added_beside(folder: Folder) -> list[dict[str, Any]]:
    """Tokens that files beside tokenizer.json add, by id; it may not hold them."""
    more = folder.json("tokenizer_config.json").get("added_tokens_decoder")
    entries = [{"content": name, "id": i} for name, i in folder.json("added_tokens.json").items()]
    for i, token in more.items() if isinstance(more, dict) else ():
        if i.isdecimal() and len(i) < 20 and isinstance(token, dict):
            entries.append({**token, "id": int(i)})
    return sorted((e for e in entries if _is_id(e["id"])), key=lambda e: int(e["id"]))


def _named(folder: Folder) -> dict[str, str]:
    """Names of special tokens, such as "bos_token", by the tokenizer's files; the order is that of transformers."""
    config = folder.json("tokenizer_config.json")
    more = config.get("extra_special_tokens")
    out = {}
    for file in (more if isinstance(more, dict) else {}, config, folder.json("special_tokens_map.json")):
        for role, token in file.items():
            text = token.get("content") if isinstance(token, dict) else token
            if role.endswith("_token") and isinstance(text, str) and text:
                out[role] = text
    return out


def _of_class(folder: Folder, tokenizer: Tokenizer | None) -> dict[str, str]:
    """Special tokens that transformers' class of tokenizer has where tokenizer_config.json does not speak of them."""
    config = folder.json("tokenizer_config.json")
    kind = str(config.get("tokenizer_class")).removesuffix("Fast").removesuffix("Tokenizer")
    there = {} if tokenizer is None else CLASSES.get(kind, {})
    return {
        role: text
        for role, text in there.items()
        if role not in config and tokenizer is not None and tokenizer.token_to_id(text) is not None
    }


def special_tokens(folder: Folder, config: ModelConfig, tokenizer: Tokenizer | None) -> dict[str, str]:
    """Special tokens as chat templates name them ("bos_token", "eos_token", ...): by the tokenizer's files as
    transformers reads them, by the GGUF file, or where neither names any by the config's ids."""
    named = {**_of_class(folder, tokenizer), **_named(folder)}
    if not named and not folder.has("config.json") and folder.gguf is not None:
        named = folder.gguf.text.token_names()
    if named or tokenizer is None or folder.has("tokenizer_config.json"):
        return named
    return {role: text for role, text in tokens_of(config, tokenizer).items() if text}


def tokens_of(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str | None]:
    """Special tokens by the config's ids."""
    ids = {f"{role}_token": getattr(config, f"{role}_token_id") for role in ROLES}
    return {role: tokenizer.id_to_token(id) for role, id in ids.items() if id is not None}


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json of any name, without truncation and padding; a missing or broken one raises UnmaskError."""
    if not path.is_file():
        raise UnmaskError(f"tokenizer {path} does not exist")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UnmaskError(f"{path} is not a readable tokenizer ({error})") from None
    tokenizer.no_truncation()  # of the call that it was saved after; a text is read whole
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer(folder: Folder) -> Tokenizer | None:
    """The checkpoint's tokenizer; None where there is none (ids go in and come out)."""
    if folder.has("tokenizer.json"):
        return _completed(read_tokenizer(folder.path / "tokenizer.json"), folder)
    return None if folder.gguf is None else folder.gguf.text.tokenizer()


def _completed(tokenizer: Tokenizer, folder: Folder) -> Tokenizer:
    """A tokenizer with the tokens that only the files beside it add, or name as special; UnmaskError for an id that one
    cannot have."""
    from tokenizers import AddedToken

    named = {name: tokenizer.token_to_id(name) for name in _named(folder).values()}
    known = [{"content": name, "id": id} for name, id in named.items() if id is not None]
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for entry in [*_added_beside(folder), *known]:
        content = entry.get("content")
        if isinstance(content, str) and content and content not in there:
            flags = {flag: entry.get(flag) is True for flag in ("lstrip", "rstrip", "single_word", "normalized")}
            token = AddedToken(content, special=entry.get("special") is True or content in named, **flags)
            tokenizer.add_tokens([token])
            there.add(content)
            if tokenizer.token_to_id(content) != entry["id"]:
                raise UnmaskError(
                    f"{folder.path}: token {content!r:.60} has id {entry['id']} by the files beside tokenizer.json, "
                    f"where it would be {tokenizer.token_to_id(content)}; save the tokenizer again"
                )
    return tokenizer


def chat_templates(folder: Folder) -> dict[str, str]:
    """Chat templates (Jinja) by name, looked for where transformers does, newest first. The plain one is "default"; so
    is the only one, whatever its name."""
    found = {"default": folder.path / "chat_template.jinja"} if folder.has("chat_template.jinja") else {}
    found |= {path.stem: path for path in sorted(folder.path.glob("additional_chat_templates/*.jinja"))}
    templates = {name: _read_template(path) for name, path in found.items()}
    for file in ("tokenizer_config.json", "chat_template.json"):
        templates = templates or _templates(folder.json(file).get("chat_template"))
    if not templates and folder.gguf is not None:
        templates = folder.gguf.text.templates
    return {"default": next(iter(templates.values()))} if len(templates) == 1 else templates


def _read_template(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_TEMPLATE:
            raise UnmaskError(f"{path} has {path.stat().st_size} bytes, which no chat template has; copy it again")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UnmaskError(f"{path} cannot be read as UTF-8 text ({error})") from None


def _templates(value: Any) -> dict[str, str]:
    """Templates of a JSON value: one text, a mapping of names, or a list of {"name", "template"}."""
    if isinstance(value, str):
        value = {"default": value}
    if isinstance(value, list):
        value = {e.get("name"): e.get("template") for e in value if isinstance(e, dict)}
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(name, str) and isinstance(text, str) and text}
