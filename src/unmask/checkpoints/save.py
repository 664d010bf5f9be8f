"""Writing checkpoints: what was loaded comes back, in its family's own layout or as SDAR folders for other engines.

What SDAR can say is found out by reading back what would be written: the first field that differs is why not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unmask.checkpoints import adapter_files
from unmask.checkpoints.families import llama, registry
from unmask.checkpoints.folder import (
    ADAPTER,
    CONFIG,
    GENERATION,
    LORA,
    LORA_WEIGHTS,
    TEMPLATE,
    TEXT_FILES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    write_json,
)
from unmask.checkpoints.hub import TEMPLATES
from unmask.checkpoints.safetensors import INDEX, WEIGHTS, write_tensors
from unmask.checkpoints.tokens import ROLES, tokens_of
from unmask.checkpoints.weights import weights_to_save
from unmask.errors import UnmaskError
from unmask.files import filling, replacing, write_text
from unmask.models.adapter import own_parameters
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from unmask.checkpoints.open import Checkpoint
    from unmask.models.transformer import Transformer

SGLANG = "sglang.yaml"  # what SGLang 0.5.23 must be told, for it takes no block length from config.json
SGLANG_MASK = 151669  # id of the mask that SGLang 0.5.23 takes every SDAR to have
FIRST = ("adapter_rank", "adapter_width", "corruption", "layout", "shift")  # differences that say most
CLASS = "configuration_sdar"
# what a checkpoint in a folder may consist of
OWNED = (
    *(CONFIG, GENERATION, ADAPTER, LORA, LORA_WEIGHTS, *TEXT_FILES, INDEX, "model*.safetensors"),
    f"{TEMPLATES}/*.jinja",
)
# transformers knows no SDAR: its folders bring their config class along
CODE = """from transformers import PretrainedConfig


class SDARConfig(PretrainedConfig):
    model_type = "{model_type}"
"""


def checkpoint_at(folder: Path) -> AbstractContextManager[Path]:
    """Gives a folder to write a checkpoint into, which takes the place of one that stood at `folder`, all of it or not
    at all; other files there stay."""
    return filling(folder, OWNED)


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a checkpoint folder's files, each whole or not at all; names and config as the layout has them."""
    write_tensors(folder / WEIGHTS, weights, metadata)
    describe_checkpoint(folder, config, tokenizer)


def describe_checkpoint(folder: Path, config: dict[str, Any], tokenizer: Tokenizer | None) -> None:
    """Writes the files of a checkpoint that are not its weights."""
    if tokenizer is not None:
        write_text(folder / TOKENIZER, tokenizer.to_str(pretty=False))
    write_json(folder / CONFIG, config)


def save_new(folder: Path, network: Transformer, tokenizer: Tokenizer | None, decoding: dict[str, Any]) -> None:
    """Writes a network that was made here, in our own layout."""
    raw = network.config.to_dict()
    with checkpoint_at(folder) as made:
        write_checkpoint(made, raw, weights_to_save(network, None, raw), tokenizer)
        write_json(made / GENERATION, decoding)


def save_again(folder: Path, network: Transformer, checkpoint: Checkpoint, decoding: dict[str, Any]) -> None:
    """Writes a network beside all else that its checkpoint has: tokenizer, chat templates, special tokens, decoding.

    network: of the checkpoint, or one that went on from it; read in another way, it is saved in our own layout.
    decoding: how it decodes, for a layout that has no words of its own for that.
    """
    whole = checkpoint.whole
    if whole.base is not None:
        with checkpoint_at(folder) as made:
            adapter_files.save(made, network, dict(own_parameters(network)), checkpoint.base_name or "")
            write_json(made / GENERATION, decoding)
        return
    same = network.config == whole.config
    family = whole.family if same else None
    raw = whole.raw_config if same else network.config.to_dict()
    if family is not None:
        decoding = whole.folder.generation
        lost = [name for name in whole.folder.weights.shapes() if name.startswith(family.unread)]
        if lost:
            raise UnmaskError(
                f"model '{checkpoint.name}' has {len(lost)} tensors that are not read, {lost[0]!r} among them; "
                "saving would lose them, copy its folder instead"
            )
        if registry.recognise(raw, CONFIG, folder.absolute().name) is not family:  # its old folder's name said it
            raw = {**raw, "architectures": list(family.architectures[:1])}
        raw = {name: value for name, value in raw.items() if name not in ("quantization_config", "quantization")}
    with checkpoint_at(folder) as made:
        _save_text(made, whole)
        if whole is not checkpoint:
            _save_text(made, checkpoint)
        write_checkpoint(made, raw, weights_to_save(network, family, raw), None)
        if decoding:
            write_json(made / GENERATION, decoding)


def _save_text(folder: Path, checkpoint: Checkpoint) -> None:
    """Tokenizer, special tokens and chat templates: copies of the files, or what a GGUF file says in their place."""
    source = checkpoint.folder
    named = [name for name in TEXT_FILES if source.has(name)]
    named += [f"{TEMPLATES}/{path.name}" for path in sorted(source.path.glob(f"{TEMPLATES}/*.jinja"))]
    copies = {name: (source.path / name).read_bytes() for name in named}
    if TOKENIZER not in copies and checkpoint.tokenizer is not None:
        copies[TOKENIZER] = checkpoint.tokenizer.to_str(pretty=False).encode()
        tokens = {"tokenizer_class": "PreTrainedTokenizerFast", **checkpoint.special_tokens}
        copies.setdefault(TOKENIZER_CONFIG, (json.dumps(tokens, indent=2) + "\n").encode())
    if not any(name.endswith(".jinja") for name in copies) and source.gguf is not None:
        for name, text in checkpoint.templates.items():
            copies.setdefault(_template_file(name), text.encode())
    for name, content in copies.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _template_file(name: str) -> str:
    return TEMPLATE if name == "default" else f"{TEMPLATES}/{name}.jinja"


def _in_sdars_words(config: ModelConfig) -> dict[str, Any]:
    """config.json; what SDAR has no key for is left out."""
    raw = {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        **{theirs: getattr(config, ours) for ours, theirs in llama.SIZES.items()},
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "block_size": config.block_length,
        **{f"{role}_token_id": getattr(config, f"{role}_token_id") for role in ROLES},
    }
    if config.num_experts:
        raw |= {"architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe", "decoder_sparse_step": 1}
        raw |= {"num_experts": config.num_experts, "num_experts_per_tok": config.experts_per_token}
        raw |= {"moe_intermediate_size": config.expert_size, "norm_topk_prob": config.router_normalise}
    return raw


def sdar_config(config: ModelConfig, name: str) -> dict[str, Any]:
    """config.json of a network in SDAR's words. Raises UnmaskError naming the first thing SDAR has no words for."""
    raw = _in_sdars_words(config)
    mine = config.to_dict()
    theirs = llama.SDAR.config(raw, f"model '{name}' as SDAR").to_dict()
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
    templates: Mapping[str, str] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    ends: tuple[int, ...] = (),
    threshold: float | None = None,
) -> None:
    """Writes a network as an SDAR folder, all of it or nothing.

    templates: of chats, by name. special_tokens: such as "bos_token", as text. ends: ids that end an answer besides the
    config's. threshold: of SGLang's decoding; None leaves it its own. Raises UnmaskError where SDAR cannot express the
    network, or the folder holds something.
    """
    config = network.config
    raw = sdar_config(config, name)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UnmaskError(f"{folder} holds something already; choose another folder")
    weights = weights_to_save(network, llama.SDAR, raw)
    raw["torch_dtype"] = str(network.embedding.weight.dtype).removeprefix("torch.")
    stops = [end for end in (config.eos_token_id, *ends) if end is not None]
    generation = {"eos_token_id": stops, "bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    known = "" if threshold is None else f"threshold: {threshold}\n"
    with replacing(folder) as made:
        write_checkpoint(made, raw, weights, tokenizer, {"format": "pt"})
        write_json(made / GENERATION, generation)
        write_text(made / f"{CLASS}.py", CODE.format(model_type=raw["model_type"]))
        write_text(made / SGLANG, f"block_size: {config.block_length}\n{known}")
        if tokenizer is not None:
            kind: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_length}
            write_json(made / TOKENIZER_CONFIG, kind | tokens_of(config, tokenizer) | dict(special_tokens or {}))
        for name, text in (templates or {}).items():
            write_text(made / _template_file(name), text)
