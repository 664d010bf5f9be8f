"""What a checkpoint is, from its small files: family, config, special tokens and where each was found."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmask.checkpoints import folder
from unmask.checkpoints.families import registry
from unmask.checkpoints.family import Family
from unmask.checkpoints.special_tokens import TokenFiles, free_token
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recognised:
    """config.json as found, the family (None: our own layout), and what was made of both."""

    source: str
    raw: dict[str, Any]
    family: Family | None
    config: ModelConfig
    origins: dict[str, str]  # of mask, eos, bos and pad
    notes: tuple[str, ...]  # what the files disagree about, and what was left alone
    ends: tuple[int, ...] = ()  # tokens that end an answer besides eos, such as the end of a turn


def recognise(source: Path) -> Recognised:
    """Reads a folder's or a GGUF file's config; raises UnmaskError naming what is wrong."""
    gguf = folder.gguf_of(source)
    where = str(source / folder.CONFIG if gguf is None or (source / folder.CONFIG).is_file() else gguf)
    try:
        return _recognise(source, where)
    except UnmaskError as error:
        message = str(error)
        if message.startswith("model config:"):
            message = f"{where}:{message.removeprefix('model config:')}"
        raise UnmaskError(message) from None


def _recognise(source: Path, where: str) -> Recognised:
    raw = folder.read_config(source)
    family = registry.recognise(raw, where, source.absolute().name)
    if family is None:
        config = ModelConfig.from_dict(raw, where)
        ids = {role: getattr(config, f"{role}_token_id") for role in ("mask", "eos", "bos", "pad")}
        return Recognised(
            where, raw, None, config, {k: "nowhere" if v is None else "config.json" for k, v in ids.items()}, ()
        )
    files = folder.token_files(source)
    config, tokens = family.understand(raw, where, files)
    origins, notes = dict(tokens.origins), list(tokens.notes)
    if family.borrows_mask and config.mask_token_id is None:
        borrowed = _borrowed(source, raw, files)
        if borrowed is not None and borrowed < config.vocab_size:
            config = replace(config, mask_token_id=borrowed)
            origins["mask"] = "a control token that no text holds"
    code = raw.get("auto_map")
    if isinstance(code, dict) and code:
        names = ", ".join(sorted({str(v).split(".")[0] for v in code.values()}))
        notes.append(f"code of the checkpoint's own is not run: auto_map names {names!r:.200}")
    return Recognised(where, raw, family, config, origins, tuple(notes), tokens.ends)


def say(found: Recognised) -> None:
    """Logs, as a warning each, what the files disagree about and what was left alone."""
    for note in found.notes:
        log.warning("%s: %s", found.source, note)


def _borrowed(source: Path, raw: dict[str, Any], files: TokenFiles) -> int | None:
    """A control token for the mask of a vocabulary that has none; None where there is none to spare."""
    special = {token: name for token, name in files.added.items() if token in files.control}
    used = [raw.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
    flat = [i for ids in used for i in (ids if isinstance(ids, list) else [ids])]
    with suppress(UnmaskError, UnicodeDecodeError):  # it can score text without a mask, if not write
        return free_token(special, flat, folder.load_template(source), str(source))
    return None
