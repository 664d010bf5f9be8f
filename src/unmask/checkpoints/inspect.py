"""What `unmask models inspect` tells of a checkpoint: read from its small files and its headers, no weight read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from unmask import machine
from unmask.checkpoints import weights
from unmask.checkpoints.open import Checkpoint
from unmask.checkpoints.tokens import ROLES
from unmask.decoding.methods import DecodingDefaults
from unmask.errors import UnmaskError
from unmask.layout import BEHIND_TEXT
from unmask.models.adapter import own_parameters
from unmask.models.config import ModelConfig
from unmask.models.network import on_meta

KINDS = {"A": "full canvas", "B": "block-causal", "C": "renoised canvas", "AR": "autoregressive"}


@dataclass(frozen=True)
class Inspection:
    """A report as plain values, and the one line with which loading would fail (None: it would not)."""

    record: dict[str, Any]
    problem: str | None


def inspect(name: str) -> Inspection:
    """Inspects a model by name, folder or GGUF file. Raises UnmaskError where its config cannot be understood; what
    is wrong with its weights is part of the report."""
    checkpoint = Checkpoint.open(name)
    config = checkpoint.config
    family = checkpoint.family
    raw = checkpoint.raw_config
    count = parameters(config)
    tokenizer = checkpoint.tokenizer
    record: dict[str, Any] = {
        "path": str(checkpoint.path),
        "family": "unmask" if family is None else family.name,
        "class": _kind(config) if family is None else family.kind,
        "model_type": raw.get("model_type"),
        "architectures": raw.get("architectures"),
        "base": checkpoint.base_name,
        "config": config.to_dict(),
        "layout": config.layout,
        "block_length": config.block_length,
        "parameters": count.total,
        "parameters_per_token": count.per_token,
        "tokens": _tokens(checkpoint),
        "ends": sorted({*checkpoint.defaults.eos_token_ids, *({config.eos_token_id} - {None})}),
        "tokenizer": tokenizer is not None,
        "tokenizer_size": None if tokenizer is None else tokenizer.get_vocab_size(),
        "chat_template": checkpoint.chat_template is not None,
        "decoding": asdict(checkpoint.defaults),
        "memory_available": machine.available(),
        "notes": list(checkpoint.notes) + _tokenizer_notes(checkpoint),
        "limits": "" if family is None else family.limits,
    }
    try:
        stored = checkpoint.folder.weights
        result = _fit(checkpoint)
    except UnmaskError as error:
        return Inspection(record | {"weights": None, "fits": False}, str(error))
    record["weights"] = {
        "files": len({s.path for s in stored.stored.values()}),
        "tensors": len(stored.stored),
        "bytes_by_dtype": stored.bytes_by_dtype(),
        "missing": list(result.missing),
        "extra": list(result.extra),
        "misshapen": [{"name": n, "found": list(a), "expected": list(b)} for n, a, b in result.misshapen],
    }
    record["fits"] = result.holds
    return Inspection(record, result.problem(str(checkpoint.path)))


def _fit(checkpoint: Checkpoint) -> weights.Fit:
    stored = checkpoint.folder.weights
    if checkpoint.base is None:
        network = weights.build(checkpoint.config, stored, checkpoint.folder.source)
        return weights.fit(network, stored, checkpoint.family, checkpoint.raw_config)
    if checkpoint.folder.is_lora:
        checkpoint.lora()
        return weights.Fit((), (), ())
    own = own_parameters(on_meta(checkpoint.config))
    return weights.compare(stored.shapes(), {name: tuple(p.shape) for name, p in own.items()}, ["draft_vocabulary"])


def _kind(config: ModelConfig) -> str:
    """The class of a model in our own layout."""
    if config.layout in ("causal", "drafts"):
        return "AR"
    if config.layout == "canvas" or config.corruption == "uniform":
        return "C"
    return "B" if config.layout in ("block_causal", *BEHIND_TEXT) else "A"


def _tokens(checkpoint: Checkpoint) -> dict[str, Any]:
    out = {}
    for role in ROLES:
        token = getattr(checkpoint.config, f"{role}_token_id")
        text = None
        if checkpoint.tokenizer is not None and token is not None:
            text = checkpoint.tokenizer.id_to_token(token)
        out[role] = {"id": token, "text": text, "from": checkpoint.origins[role]}
    return out


def _tokenizer_notes(checkpoint: Checkpoint) -> list[str]:
    other = [name for name in ("vocab.json", "merges.txt", "tokenizer.model") if checkpoint.folder.has(name)]
    if checkpoint.tokenizer is None:
        return [f"only tokenizer.json is read as a tokenizer, not {' and '.join(other)}"] if other else []
    size = checkpoint.tokenizer.get_vocab_size()
    if size > checkpoint.config.vocab_size:
        return [f"the tokenizer has {size} tokens with those added, the network {checkpoint.config.vocab_size}"]
    return []


def lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people: pairs of a heading and what it says."""
    c = ModelConfig.from_dict(record["config"])
    stored = record["weights"]
    mlp = f"MLP {c.intermediate_size}"
    if c.num_experts:
        mlp += f", {c.num_experts} experts of {c.expert_size} ({c.experts_per_token} a token)"
    listed = record["architectures"]
    listed = listed if isinstance(listed, list) else [listed]
    named = " ".join(f"{v}"[:60] for v in (record["model_type"], *listed) if v) or "no names"
    out = [
        ("path", record["path"]),
        ("family", f"{record['family']}, class {record['class']} ({KINDS[record['class']]}); config.json: {named}"),
        ("network", f"{c.num_layers} layers of {c.hidden_size}, {c.num_heads} heads ({c.num_kv_heads} of keys) of "
         f"{c.head_dim}, {mlp}, vocabulary {c.vocab_size}, up to {c.max_length} tokens"),
        ("options", _options(c)),
        ("layout", c.layout + (f", blocks of {c.block_length}" if c.block_length else "")),
        ("parameters", _billions(record["parameters"]) + (
            f", {_billions(record['parameters_per_token'])} a token" if c.num_experts else "")),
    ]  # fmt: skip
    if record["base"]:
        out.insert(1, ("base", record["base"]))
    for role in ROLES:
        token = record["tokens"][role]
        named = f"{token['id']} {token['text'] or ''}".strip()
        out.append((role, "none" if token["id"] is None else f"{named}, by {token['from']}"))
    out.append(("ends", ", ".join(str(i) for i in record["ends"]) or "none"))
    size = f", {record['tokenizer_size']} tokens" if record["tokenizer"] else ""
    template = "yes" if record["chat_template"] else "no"
    out.append(("tokenizer", f"{'yes' if record['tokenizer'] else 'no'}{size}; chat template: {template}"))
    if stored is not None:
        kinds = ", ".join(f"{kind} {_bytes(size)}" for kind, size in stored["bytes_by_dtype"].items())
        out.append(("weights", f"{stored['tensors']} tensors, files: {stored['files']}; {kinds}"))
        for what in ("missing", "extra", "misshapen"):
            out.append((what, _listed(stored[what])))
    free = record["memory_available"]
    shapes = ", ".join(f"{n} {_bytes(record['parameters'] * b)}" for n, b in (("float32", 4), ("bfloat16", 2)))
    out.append(("memory", shapes + ("" if free is None else f"; {_bytes(free)} is free")))
    usual = asdict(DecodingDefaults())
    own = [f"{k} {v}" for k, v in record["decoding"].items() if v != usual[k] or k in ("rule", "sampler")]
    out.append(("decoding", ", ".join(own)))
    out += [("limits", record["limits"])] if record["limits"] else []
    return out + [("note", note) for note in record["notes"]]


def _options(config: ModelConfig) -> str:
    """What differs from a plain network, sizes and ids aside."""
    plain = {f.name: f.default for f in fields(ModelConfig)}
    skipped = {"num_kv_heads", "head_dim", "max_length", "layout", "block_length", "attention"}
    skipped |= {"num_experts", "expert_size", "experts_per_token"}
    told = []
    for name, value in vars(config).items():
        required = name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
        if not required and name not in skipped and not name.endswith("_token_id") and value != plain[name]:
            told.append(name if value is True else f"no {name}" if value is False else f"{name} {value}"[:60])
    return ", ".join(told) or "none"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e8 else f"{count / 1e6:.3f}M"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _listed(names: list[Any]) -> str:
    """The first few of some names."""
    few = [str(n["name"]) if isinstance(n, dict) else str(n) for n in names[:5]]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(repr(n)[:100] for n in few)}{more}" if names else "none"


class Count(NamedTuple):
    """Parameters: all of them, and those that one token passes (fewer where experts are chosen)."""

    total: int
    per_token: int


def parameters(config: ModelConfig) -> Count:
    """Parameters of a network of this config, adapters aside: of one layer of each kind, times how many there are."""
    plain = replace(config, adapter_rank=0, adapter_width=0, chain_width=0)
    times = [1] * config.num_layers
    if not config.attention and len(config.mixers) == 1:  # its layers differ by whether they have experts
        dense = min(config.first_dense_layers, config.num_layers)
        times = [dense, config.num_layers - dense]
        plain = replace(plain, num_layers=2, first_dense_layers=1)
    total = experts = 0
    for name, parameter in on_meta(plain).named_parameters():
        count = parameter.numel() * (times[int(name.split(".")[1])] if name.startswith("blocks.") else 1)
        total += count
        experts += count * (".experts." in name)
    return Count(total, total - experts + experts * config.experts_per_token // max(1, config.num_experts))
