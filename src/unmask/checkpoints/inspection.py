"""What `unmask models inspect` tells of a checkpoint: read from its small files and its headers, no weight read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from unmask.checkpoints import catalogue, folder, memory, recognition
from unmask.checkpoints import weights as checkpoint
from unmask.checkpoints.fit import Fit, compare
from unmask.checkpoints.loading import Loaded, describe
from unmask.checkpoints.sizes import parameters
from unmask.checkpoints.tensor_files import TensorFiles, Tensors
from unmask.errors import UnmaskError
from unmask.models import adapter
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer
from unmask.models.unfilled import unfilled

KINDS = {"A": "full canvas", "B": "block-causal", "C": "renoised canvas", "AR": "autoregressive"}
ROLES = ("mask", "eos", "bos", "pad")


@dataclass(frozen=True)
class Inspection:
    """A report as plain values, and the one line with which loading would fail (None: it would not)."""

    record: dict[str, Any]
    problem: str | None


def inspect(name: str) -> Inspection:
    """Inspects a model by name, folder or GGUF file. Raises UnmaskError where its config cannot be understood; what
    is wrong with its weights is part of the report."""
    path = catalogue.find(name)
    found = recognition.recognise(path)
    loaded = describe(name)
    config, family = found.config, found.family
    count = parameters(config)
    record: dict[str, Any] = {
        "path": str(path),
        "family": "unmask" if family is None else family.name,
        "class": _kind(config) if family is None else family.kind,
        "model_type": found.raw.get("model_type"),
        "architectures": found.raw.get("architectures"),
        "base": loaded.base,
        "config": config.to_dict(),
        "layout": config.layout,
        "block_length": config.block_length,
        "parameters": count.total,
        "parameters_per_token": count.per_token,
        "tokens": _tokens(found, loaded),
        "ends": sorted({*loaded.defaults.eos_token_ids, *({config.eos_token_id} - {None})}),
        "tokenizer": loaded.tokenizer is not None,
        "tokenizer_size": None if loaded.tokenizer is None else loaded.tokenizer.get_vocab_size(),
        "chat_template": loaded.chat_template is not None,
        "decoding": asdict(loaded.defaults),
        "memory_available": memory.available(),
        "notes": list(found.notes) + _tokenizer_notes(loaded),
        "limits": "" if family is None else family.limits,
    }
    try:
        weights = checkpoint.open_weights(path)
        result = _fit(found, loaded, weights, path)
    except UnmaskError as error:
        return Inspection(record | {"weights": None, "fits": False}, str(error))
    record["weights"] = {
        "files": len({s.path for s in weights.stored.values()}) if isinstance(weights, TensorFiles) else 1,
        "tensors": len(weights.shapes()),
        "bytes_by_dtype": weights.bytes_by_dtype(),
        "missing": list(result.missing),
        "extra": list(result.extra),
        "misshapen": [{"name": n, "found": list(a), "expected": list(b)} for n, a, b in result.misshapen],
    }
    record["fits"] = result.holds
    return Inspection(record, None if result.holds else result.line(str(path), folder.CONFIG))


def _fit(found: recognition.Recognised, loaded: Loaded, weights: Tensors, path: Path) -> Fit:
    if loaded.base is None:
        return checkpoint.fit(checkpoint.build(found.config, weights, found.source), weights, found.family, found.raw)
    with unfilled():
        own = adapter.own_parameters(Transformer(found.config))
    return compare(weights.shapes(), {name: tuple(p.shape) for name, p in own.items()}, ["draft_vocabulary"])


def _kind(config: ModelConfig) -> str:
    """The class of a model in our own layout."""
    if config.layout in ("causal", "drafts"):
        return "AR"
    if config.layout == "canvas" or config.corruption == "uniform":
        return "C"
    return "B" if config.layout == "block_causal" else "A"


def _tokens(found: recognition.Recognised, loaded: Loaded) -> dict[str, Any]:
    out = {}
    for role in ROLES:
        token = getattr(found.config, f"{role}_token_id")
        text = loaded.tokenizer.id_to_token(token) if loaded.tokenizer is not None and token is not None else None
        out[role] = {"id": token, "text": text, "from": found.origins[role]}
    return out


def _tokenizer_notes(loaded: Loaded) -> list[str]:
    other = [name for name in ("vocab.json", "merges.txt", "tokenizer.model") if (loaded.path / name).is_file()]
    if loaded.tokenizer is None:
        return [f"only tokenizer.json is read as a tokenizer, not {' and '.join(other)}"] if other else []
    size = loaded.tokenizer.get_vocab_size()
    if size > loaded.config.vocab_size:
        return [f"the tokenizer has {size} tokens with those added, the network {loaded.config.vocab_size}"]
    return []


def lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people: pairs of a heading and what it says."""
    c, weights = ModelConfig.from_dict(record["config"]), record["weights"]
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
        said = (
            "none" if token["id"] is None else f"{token['id']} {token['text'] or ''}".strip() + f", by {token['from']}"
        )
        out.append((role, said))
    out.append(("ends", ", ".join(str(i) for i in record["ends"]) or "none"))
    size = f", {record['tokenizer_size']} tokens" if record["tokenizer"] else ""
    template = "yes" if record["chat_template"] else "no"
    out.append(("tokenizer", f"{'yes' if record['tokenizer'] else 'no'}{size}; chat template: {template}"))
    if weights is not None:
        kinds = ", ".join(f"{kind} {_bytes(size)}" for kind, size in weights["bytes_by_dtype"].items())
        out.append(("weights", f"{weights['tensors']} tensors, files: {weights['files']}; {kinds}"))
        for what in ("missing", "extra", "misshapen"):
            out.append((what, _listed(weights[what])))
    free = record["memory_available"]
    shapes = ", ".join(f"{n} {_bytes(record['parameters'] * b)}" for n, b in (("float32", 4), ("bfloat16", 2)))
    out.append(("memory", shapes + ("" if free is None else f"; {_bytes(free)} is free")))
    chosen = {k: v for k, v in record["decoding"].items() if v is not None}
    out.append(("decoding", ", ".join(f"{k} {v}" for k, v in chosen.items())))
    out += [("limits", record["limits"])] if record["limits"] else []
    return out + [("note", note) for note in record["notes"]]


def _options(config: ModelConfig) -> str:
    """What differs from a plain network, sizes and ids aside."""
    plain = {f.name: f.default for f in fields(ModelConfig)}
    skipped = {"num_kv_heads", "head_dim", "max_length", "layout", "block_length", "attention"}
    skipped |= {"num_experts", "expert_size", "experts_per_token"}
    told = []
    for name, value in asdict(config).items():
        required = name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
        if not required and name not in skipped and not name.endswith("_token_id") and value != plain[name]:
            told.append(name if value is True else f"no {name}" if value is False else f"{name} {value}")
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
