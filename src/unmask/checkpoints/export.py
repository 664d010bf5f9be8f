"""Our own networks as SDAR folders, which other engines serve (SGLang among them).

What SDAR can say is found out by reading back what would be written: the first field that differs is why not.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.checkpoints import weights as checkpoint
from unmask.checkpoints.families import sdar
from unmask.checkpoints.folder import GENERATION, TEMPLATE, TOKENS
from unmask.errors import UnmaskError
from unmask.files import replacing, write_text
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from unmask.models.transformer import Transformer

SGLANG = "sglang.yaml"  # what SGLang 0.5.23 must be told, for it takes no block length from config.json
SGLANG_MASK = 151669  # id of the mask that SGLang 0.5.23 takes every SDAR to have
FIRST = ("adapter_rank", "adapter_width", "corruption", "layout", "shift")  # differences that say most
CLASS = "configuration_sdar"
# transformers knows no SDAR: its folders bring their config class along
CODE = """from transformers import PretrainedConfig


class SDARConfig(PretrainedConfig):
    model_type = "{model_type}"
"""


def sdar_config(config: ModelConfig, name: str) -> dict[str, Any]:
    """config.json of a network in SDAR's words. Raises UnmaskError naming the first thing SDAR has no words for."""
    raw, mine = sdar.write(config), config.to_dict()
    theirs = sdar.FAMILY.config(raw, f"model '{name}' as SDAR").to_dict()
    for field in (*FIRST, *(field.name for field in fields(config))):
        if mine[field] != theirs[field]:
            raise UnmaskError(
                f"model '{name}' cannot be written as SDAR: its {field} is {mine[field]!r:.60}, where SDAR has "
                f"{theirs[field]!r:.60}; docs/serving.md says what a recipe needs"
            )
    if config.mask_token_id is None:
        raise UnmaskError(f"model '{name}' cannot be written as SDAR: it has no mask token")
    return {**raw, "auto_map": {"AutoConfig": f"{CLASS}.SDARConfig"}}


def export_sdar(
    folder: Path,
    network: Transformer,
    name: str,
    tokenizer: Tokenizer | None,
    chat_template: str | None = None,
    ends: tuple[int, ...] = (),
    threshold: float | None = None,
) -> None:
    """Writes a network as an SDAR folder, all of it or nothing.

    ends: ids that end an answer besides the config's. threshold: of SGLang's decoding; None leaves it its own. Raises
    UnmaskError for a network that SDAR cannot express, and for a folder that holds something.
    """
    config = network.config
    raw = sdar_config(config, name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UnmaskError(f"{folder} holds something already; choose another folder")
    weights = checkpoint.weights_to_save(network, sdar.FAMILY, raw)
    raw["torch_dtype"] = str(network.embedding.weight.dtype).removeprefix("torch.")
    stops = [end for end in (config.eos_token_id, *ends) if end is not None]
    generation = {"eos_token_id": stops, "bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    known = None if threshold is None else f"threshold: {threshold}\n"
    with replacing(folder) as made:
        checkpoint.save(made, raw, weights, tokenizer, {"format": "pt"})
        write_text(made / GENERATION, json.dumps(generation, indent=2) + "\n")
        write_text(made / f"{CLASS}.py", CODE.format(model_type=raw["model_type"]))
        write_text(made / SGLANG, f"block_size: {config.block_length}\n{known or ''}")
        if tokenizer is not None:
            write_text(made / TOKENS, json.dumps(_tokens(config, tokenizer), indent=2) + "\n")
        if chat_template is not None:
            write_text(made / TEMPLATE, chat_template)


def _tokens(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json: what the special tokens are called."""
    roles = {"mask": config.mask_token_id, "eos": config.eos_token_id}
    roles |= {"bos": config.bos_token_id, "pad": config.pad_token_id}
    named = {f"{role}_token": tokenizer.id_to_token(id) for role, id in roles.items() if id is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_length, **named}
