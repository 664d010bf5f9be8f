"""Opening a checkpoint: what a model is, read from its small files once; its weights when they are asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unmask.checkpoints import hub, tokens
from unmask.checkpoints.families import registry
from unmask.checkpoints.families.family import Family, ends_of, without_absent_ids
from unmask.checkpoints.folder import (
    ADAPTER,
    ANSWERS,
    CONFIG,
    GENERATION,
    LORA,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Folder,
)
from unmask.checkpoints.foreign import refuse_quantised
from unmask.checkpoints.gguf import parts
from unmask.checkpoints.quantised import Scheme
from unmask.checkpoints.safetensors import INDEX, WEIGHTS, same_bytes
from unmask.decoding.methods import DecodingDefaults
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

    from unmask.checkpoints.lora import LoraConfig
    from unmask.checkpoints.rows import Matrix
    from unmask.models.transformer import Transformer

log = logging.getLogger(__name__)
DTYPES = ("float32", "bfloat16", "float16", "auto")
UNNAMED = ("model", "adapter", "final", "best", "last", "")  # names that say nothing of what is in there
STATE = re.compile(r"checkpoint-\d+")  # the state of a run
# fields of a config that no tensor depends on: how a network is read may change, what it is may not
READINGS = ("layout", "block_length", "shift", "corruption", "noise_schedule", "noise_range", "mask_in_softmax",
            "mask_token_id", "eos_token_id", "bos_token_id", "pad_token_id", "max_length")  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lies on disk."""

    path: Path  # its folder or GGUF file
    name: str  # what to call it
    folder: Folder  # its files; the weights are read from here
    raw_config: dict[str, Any]  # config.json as found, or as the GGUF file says it
    family: Family | None  # whose layout the files have; None for our own
    config: ModelConfig
    origins: dict[str, str]  # where the ids of mask, eos, bos and pad come from
    notes: tuple[str, ...]  # what the files disagree about, and what was left alone
    defaults: DecodingDefaults  # how it decodes where the caller does not say
    base: Checkpoint | None = None  # the model that an adapter was made for
    base_name: str | None = None  # as the adapter's folder names it
    device: str = "cpu"  # where `network` puts the weights
    dtype: str = "float32"  # or bfloat16, float16, "auto" for the files' own

    @classmethod
    def open(cls, name: str | Path, device: str = "cpu", dtype: str = "float32") -> Checkpoint:
        """Finds a model by name, folder or GGUF file and reads all about it but the weights; UnmaskError where there
        is none, or something in its files is wrong."""
        if dtype not in DTYPES:
            raise UnmaskError(f"dtype '{dtype}' is unknown; use one of {', '.join(DTYPES)}")
        path = hub.find(str(name))
        folder = Folder(path)
        base = None
        if folder.base is not None:
            if Folder(_base_path(folder)).base is not None:
                raise UnmaskError(f"{path}: its base '{folder.base}' is an adapter itself; it must be a whole model")
            base = cls.open(folder.base, device, dtype)
        if base is not None and folder.is_lora and not folder.has(CONFIG):
            found = replace(base, path=path, name=name_of(path), folder=folder)
        else:
            try:
                found = _recognise(folder, folder.config)
            except UnmaskError as error:
                raise UnmaskError(re.sub("^model config:", lambda match: f"{folder.source}:", str(error))) from None
        if base is not None and folder.is_lora:
            read = {name: getattr(found.config, name) for name in READINGS}
            if replace(base.config, **read) != found.config:
                raise UnmaskError(f"{folder.source} is not that of its base '{folder.base}'; it is of another base")
        return replace(found, base=base, base_name=folder.base, device=device, dtype=dtype)

    def _text(self, file: str) -> Checkpoint:
        """Whose tokenizer or templates it has: an adapter its base's where it has no such file of its own."""
        return self if self.base is None or self.folder.has(file) else self.base

    @property
    def whole(self) -> Checkpoint:
        """Itself, or the base that its LoRA adapter is merged into: whose layout the whole network has."""
        return self.base if self.base is not None and self.folder.is_lora else self

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """None where the files have none: ids go in and come out."""
        return tokens.load_tokenizer(self._text(TOKENIZER).folder)

    @cached_property
    def templates(self) -> dict[str, str]:
        """Chat templates (Jinja) by name; the plain one is "default", and "tool_use" is for requests with tools."""
        return tokens.chat_templates(self._text(TEMPLATE).folder)

    @property
    def chat_template(self) -> str | None:
        """The plain chat template; None without one."""
        return self.templates.get("default")

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """What chat templates know as bos_token, eos_token, pad_token, unk_token and so on."""
        source = self._text(TOKENIZER_CONFIG)
        return tokens.special_tokens(source.folder, source.config, self.tokenizer)

    @cached_property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema of its answers; None for a model that writes freely."""
        return self.folder.json(ANSWERS) or None

    @property
    def backend(self) -> str | None:
        """The backend that a model of ours was measured with and asks for in its config.json."""
        return self.raw_config.get("backend") if self.family is None else None

    @property
    def is_large(self) -> bool:
        """Whether a compiled backend is worth its start-up: 50M parameters and more, embeddings aside."""
        c = self.config
        return c.num_layers * c.hidden_size * (2 * c.hidden_size + 3 * c.intermediate_size) > 5e7

    def network(self, **changes: Any) -> Transformer:
        """Reads the weights into a network, in evaluation mode.

        changes: fields of the config that no tensor depends on, for a network that is to be trained on in another way:
        `layout="block_causal", block_length=16, shift=True` makes a block diffusion model of an AR base that keeps its
        shifted head. Raises UnmaskError for another field, for a device that cannot be used and for weights that do
        not fit their config or the free memory.
        """
        import torch

        from unmask.checkpoints import adapter_files, weights

        for name in sorted(changes.keys() - set(READINGS)):
            known = ", ".join(READINGS)
            raise UnmaskError(f"{name} of '{self.name}' is settled by its weights; what can change: {known}")
        self.say()
        device = usable_device(self.device)
        dtype = None if self.dtype == "auto" else getattr(torch, self.dtype)
        if self.base is None:
            return weights.read_network(self, replace(self.config, **changes), dtype, device)
        if self.folder.is_lora:
            from unmask.checkpoints import lora

            network = self.base.network(**{name: getattr(self.config, name) for name in READINGS} | changes)
            config, tensors = self.lora()
            lora.merge(network, lora.put(network, config, tensors), config)
            return network
        if changes:
            raise UnmaskError(f"'{self.name}' is an adapter; change how its base '{self.base_name}' is read instead")
        return adapter_files.load(self.folder, self.base.network(), self.config)

    def rows(self) -> Mapping[str, Matrix] | None:
        """The network's parameters by our names, to be read row by row; None for an adapter of drafts. Raises as
        `network`."""
        from unmask.checkpoints import lora, weights

        self.say()
        if self.base is None:
            return weights.parameter_rows(self)
        if not self.folder.is_lora:
            return None
        return lora.added(weights.parameter_rows(self.base), *self.lora())

    def lora(self) -> tuple[LoraConfig, dict[str, Tensor]]:
        """Its LoRA adapter, as `checkpoints.lora.put` takes it; UnmaskError for one of another base."""
        from unmask.checkpoints import lora, weights

        base = cast(Checkpoint, self.base)
        network = weights.fitting(base, base.config)
        return lora.read_peft(self.path, network, weights.weight_table(network, base.family))

    def say(self) -> None:
        """Logs, as a warning each, what the files disagree about and what was left alone."""
        for note in self.notes:
            log.warning("%s: %s", self.folder.source, note)

    def weight_files(self) -> list[Path]:
        """The files that hold its weights, and those of its base."""
        beside = [] if self.path.is_file() else sorted(self.path.iterdir())
        own = parts(self.path) if self.path.is_file() else [p for p in beside if _has_weights(p)]
        return own if self.base is None else [*own, *self.base.weight_files()]


def _has_weights(path: Path) -> bool:
    """Whether a file of a model's folder says what its weights are."""
    return path.suffix in (".safetensors", ".gguf") or path.name == LORA


def _base_path(folder: Folder) -> Path:
    """Where an adapter's base lies."""
    try:
        return hub.find(str(folder.base))
    except UnmaskError as error:
        raise UnmaskError(
            f"{folder.path} is an adapter for {folder.base!r:.120}, which cannot be had ({error}); put the base there, "
            f"or name where it lies in {LORA if folder.is_lora else ADAPTER}"
        ) from None


def usable_device(name: str) -> torch.device:
    """The torch device of a name; raises UnmaskError where it cannot be used."""
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UnmaskError(f"device '{name}' cannot be used ({reason}); try device='cpu'") from None


def _recognise(folder: Folder, raw: dict[str, Any]) -> Checkpoint:
    """A checkpoint by its config and the tokenizer's files."""
    source = folder.source
    scheme = Scheme.of(raw)
    if scheme is None:
        refuse_quantised(raw, source)
    family = registry.recognise(raw, source, folder.path.absolute().name)
    values = folder.generation
    notes: list[str] = []
    if family is None:
        if raw.get("backend") not in (None, "native", "native-q4", "native-f32", "torch"):
            raise UnmaskError(f"{source}: backend is {raw['backend']!r}; use native, native-q4, native-f32 or torch")
        config = ModelConfig.from_dict({name: value for name, value in raw.items() if name != "backend"}, source)
        ids = {role: getattr(config, f"{role}_token_id") for role in tokens.ROLES}
        origins = {role: "nowhere" if id is None else "config.json" for role, id in ids.items()}
        decoding = {**_sampled(config), **values}
    else:
        files = tokens.token_files(folder)
        config, settled = family.understand(raw, source, files)
        if settled.mask is None and family.unmasked is not None:
            family = family.unmasked
            config, settled = family.understand(raw, source, files)
        origins = dict(settled.origins)
        notes += settled.notes
        if family.borrows_mask and config.mask_token_id is None:
            borrowed = _borrowed(folder, raw, files)
            if borrowed is not None and borrowed < config.vocab_size:
                config = replace(config, mask_token_id=borrowed)
                origins["mask"] = "a control token that no text holds"
        if scheme is not None:
            notes.append("quantised weights are read as the values that they stand for, in floating point")
        code = raw.get("auto_map")
        if isinstance(code, dict) and code:
            named = ", ".join(sorted({str(v).split(".")[0] for v in code.values()}))
            notes.append(f"code of the checkpoint's own is not run: auto_map names {named!r:.200}")
        if any(folder.path.glob("adapter_model.*")):
            notes.append("an adapter made by PEFT lies beside the weights; it is not applied")
        # another maker's generation_config.json speaks of other things than ours
        own = family.generation(without_absent_ids(raw), without_absent_ids(values))
        decoding = {"eos_token_ids": list(settled.ends), **family.defaults, **own}
    if config.tie_embeddings and _has_own_head(folder, family):
        config = replace(config, tie_embeddings=False)
        notes.append("tie_word_embeddings is true, but a head of other values is stored; it is used, and not tied")
    defaults = DecodingDefaults.read(decoding, str(folder.path / GENERATION))
    return Checkpoint(folder.path, name_of(folder.path), folder, raw, family, config, origins, tuple(notes), defaults)


def _has_own_head(folder: Folder, family: Family | None) -> bool:
    """Whether the files of a network that is tied by its config hold another head, which counts, as in transformers.

    Where only the head is stored it is the embedding under the other's name.
    """
    if not folder.has(WEIGHTS) and not folder.has(INDEX):  # a GGUF file says it itself
        return False
    with suppress(UnmaskError):  # what is wrong with weights is said when they are read
        stored = folder.weights.stored
        head, embedding = ends_of(family)
        if head in stored and embedding not in stored:
            stored[embedding] = replace(stored.pop(head), name=embedding)
        if head in stored and embedding in stored and stored[head].shape == stored[embedding].shape:
            return not same_bytes(stored[head], stored[embedding])
    return False


def name_of(path: Path) -> str:
    """What to call a model: its file or folder, with the folder around one whose name says nothing of its own."""
    whole = path.absolute()
    own = whole.stem if path.is_file() else whole.name
    names = [name for name in (own, *(p.name for p in whole.parents)) if name not in UNNAMED]
    if not names:
        return "model"
    return "-".join(names[1::-1]) if STATE.fullmatch(names[0]) else names[0]


def _borrowed(folder: Folder, raw: dict[str, Any], files: tokens.TokenFiles) -> int | None:
    """A control token for the mask of a vocabulary that has none; None where there is none to spare."""
    special = {token: name for token, name in files.added.items() if token in files.control}
    if not special and folder.gguf is not None:
        special = folder.gguf.text.special_tokens()
    used = [raw.get(f"{name}_token_id") for name in ("bos", "eos", "pad")]
    flat = [i for ids in used for i in (ids if isinstance(ids, list) else [ids])]
    with suppress(UnmaskError, UnicodeDecodeError):  # it can score text without a mask, if not write
        return tokens.free_token(special, flat, tokens.chat_templates(folder).get("default"), folder.source)
    return None


def _sampled(config: ModelConfig) -> dict[str, Any]:
    """Decoding defaults of a network of our own that no rule can decode."""
    if config.output == "log_score":
        return {"sampler": "analytic", "temperature": 1.0, "noise_removal": "ancestral"}
    if config.corruption == "uniform" and config.layout == "bidirectional":
        return {"sampler": "ancestral", "temperature": 1.0, "noise_removal": "ancestral"}
    return {}
