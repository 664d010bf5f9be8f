"""From a checkpoint's tensors to a network and back: names, shapes, whether all fit, and how much memory they need."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmask import machine
from unmask.checkpoints.families.family import Family, Table, ends_of
from unmask.checkpoints.folder import CONFIG
from unmask.checkpoints.foreign import quantised_by
from unmask.checkpoints.rows import Rows, not_finite
from unmask.checkpoints.safetensors import Weights
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.network import fill, on_meta
from unmask.models.transformer import Transformer

if TYPE_CHECKING:
    from unmask.checkpoints.open import Checkpoint

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """What a checkpoint lacks, has too much, or has in another shape (name, found, expected)."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[tuple[str, Shape, Shape], ...]

    @property
    def holds(self) -> bool:
        return not (self.missing or self.extra or self.misshapen)

    def problem(self, source: str) -> str | None:
        """One line with counts and the first few names, or what quantised the tensors; None where all is there."""
        kind = quantised_by(self.extra)
        if kind is not None:
            return f"{source}: weights quantised by {kind} are not read; load the unquantised model"
        parts = []
        for what, names in (("missing", self.missing), ("unknown", self.extra)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{_count(names)} {what} ({', '.join(f'{name!r:.100}' for name in names[:3])}{more})")
        if self.misshapen:
            name, found, expected = self.misshapen[0]
            more = f" and {len(self.misshapen) - 1} more" if len(self.misshapen) > 1 else ""
            shapes = f"{name!r:.100} is {list(found)!r:.60}, {CONFIG} asks for {list(expected)!r:.60}{more}"
            parts.append(f"{_count(self.misshapen)} misshapen ({shapes})")
        if not parts:
            return None
        return f"{source} does not fit its {CONFIG}: {', '.join(parts)}; one of the two is of another model"

    def check(self, source: str) -> None:
        """Raises UnmaskError with that line unless everything is there."""
        problem = self.problem(source)
        if problem is not None:
            raise UnmaskError(problem)


def compare(found: Mapping[str, Shape], expected: Mapping[str, Shape], allowed: Collection[str] = ()) -> Fit:
    """Compares a file's shapes with the expected ones; `allowed` names tensors that may be there and are not read."""
    both = [name for name in expected if name in found and found[name] != expected[name]]
    return Fit(
        tuple(name for name in expected if name not in found),
        tuple(sorted(found.keys() - expected.keys() - set(allowed))),
        tuple((name, found[name], expected[name]) for name in both),
    )


def _count(found: Collection[Any]) -> str:
    return f"{len(found)} tensor{'' if len(found) == 1 else 's'}"


def build(config: ModelConfig, weights: Weights, source: str) -> Transformer:
    """A network on the meta device; a config that no such weights can be of raises UnmaskError before it is built."""
    shapes = weights.shapes()
    values = sum(math.prod(shape) for shape in shapes.values())
    layer = config.hidden_size * (config.num_heads * config.head_dim + config.intermediate_size)
    positions = config.max_length * config.hidden_size if config.learned_positions else 0
    tensors = config.num_layers * max(1, config.num_experts)
    if (
        config.vocab_size * config.hidden_size + config.num_layers * layer * (config.num_experts == 0) + positions
        > 2 * values + 2**20
        or tensors > 2 * len(shapes) + 2**10
    ):
        raise UnmaskError(f"{source} describes a network far larger than the weights beside it")
    return on_meta(config)


def weight_table(model: Transformer, family: Family | None) -> Table:
    """Names in the file and ours; the same ones in our own layout."""
    names = [name for name, _ in model.named_parameters()]  # a tied head is listed once, as the embedding
    return {name: [name] for name in names} if family is None else family.table(names)


def expected_shapes(model: Transformer, family: Family | None) -> dict[str, Shape]:
    """Their tensors' shapes by the config: ours joined along the first axis, then transposed where they are."""
    out = {}
    for theirs, ours in weight_table(model, family).items():
        parts = [model.get_parameter(name).shape for name in ours]
        shape = tuple(parts[0]) if len(parts) == 1 else (sum(part[0] for part in parts), *parts[0][1:])
        out[theirs] = shape[::-1] if _transposed(theirs, family) else shape
    return out


def fit(model: Transformer, weights: Weights, family: Family | None, raw: dict[str, Any]) -> Fit:
    """How a checkpoint's tensors compare with those of a network."""
    shapes = weights.shapes()
    allowed = set()
    if model.config.tie_embeddings:  # a head that is stored as well is the embedding again, or it would not be tied
        head, embedding = ends_of(family)
        allowed = {head} if shapes.get(head) == shapes.get(embedding) else set()
    if family is not None:
        allowed |= {name for name in shapes if name.endswith(family.ignored) or name.startswith(family.unread)}
        allowed |= family.constants(model.config, raw).keys()
    return compare(shapes, expected_shapes(model, family), allowed)


def needed_bytes(model: Transformer, weights: Weights, names: Collection[str], dtype: torch.dtype | None) -> int:
    """Bytes of a network in memory: parameters in a dtype (None: the file's) and tables of rotation."""
    tables = 0 if model.config.attention else 2 * model.config.max_length * (model.config.rotary_size // 2) * 4
    stored = [weights.stored[name] for name in names]
    return tables + sum(math.prod(s.shape) * (s.dtype if dtype is None else dtype).itemsize for s in stored)


def read_parameters(
    model: Transformer, weights: Weights, family: Family | None, dtype: torch.dtype | None, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """The network's parameters from a checkpoint's tensors, one at a time, each onto its device."""
    table = weight_table(model, family)
    for name, tensor in weights.tensors(dtype, family.transposed if family is not None else ()):
        if name not in table:
            continue
        if not tensor.is_floating_point():
            raise UnmaskError(f"{weights.source}: tensor {name!r} has dtype {tensor.dtype}, expected floating point")
        tensor = tensor.to(device)
        if not bool(torch.isfinite(tensor).all()):
            raise not_finite(weights.source, name)
        joined = len(table[name]) > 1
        sizes = [model.get_parameter(ours).shape[0] for ours in table[name]] if joined else []
        yield from zip(table[name], torch.split(tensor, sizes) if joined else [tensor], strict=True)


def weights_to_save(model: Transformer, family: Family | None, raw: dict[str, Any]) -> dict[str, Tensor]:
    """The network's tensors under the names of the layout, joined and transposed as it has them."""
    state = model.state_dict()
    out = {}
    for theirs, ours in weight_table(model, family).items():
        joined = state[ours[0]] if len(ours) == 1 else torch.cat([state[name] for name in ours])
        out[theirs] = joined.T if _transposed(theirs, family) else joined
    return out if family is None else {**out, **family.constants(model.config, raw)}


def _transposed(name: str, family: Family | None) -> bool:
    return family is not None and name.endswith(family.transposed)


def fitting(checkpoint: Checkpoint, config: ModelConfig) -> Transformer:
    """The network that a checkpoint's weights are of, on the meta device; UnmaskError where they do not fit it."""
    weights = checkpoint.folder.weights
    model = build(config, weights, checkpoint.folder.source)
    fit(model, weights, checkpoint.family, checkpoint.raw_config).check(str(weights.source))
    return model


def parameter_rows(checkpoint: Checkpoint) -> dict[str, Rows]:
    """The network's parameters as they lie in the files, none read; weights that do not fit raise UnmaskError."""
    model = fitting(checkpoint, checkpoint.config)
    weights = checkpoint.folder.weights
    out = {}
    for theirs, ours in weight_table(model, checkpoint.family).items():
        whole = replace(weights.rows(theirs), transposed=_transposed(theirs, checkpoint.family))
        first = 0
        for name in ours:
            count = model.get_parameter(name).shape[0]
            out[name] = replace(whole, first=first, count=count) if len(ours) > 1 else whole
            first += count
    return out


def read_network(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype | None, device: torch.device
) -> Transformer:
    """The network of a checkpoint under a config, in evaluation mode; `Checkpoint.network` is what to call.

    dtype None keeps the file's; a GGUF file's blocks become float32. Peak memory is near the size of the weights: the
    network is built on the meta device and every parameter is replaced by its tensor as it is read. Missing, unknown
    and misshapen tensors, and weights that the free memory has no room for, raise UnmaskError before any is read.
    """
    weights = checkpoint.folder.weights
    model = fitting(checkpoint, config)
    needed = needed_bytes(model, weights, weight_table(model, checkpoint.family), dtype)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    half = "" if dtype is not None and dtype.itemsize <= 2 else "take dtype bfloat16, or "
    machine.require(needed, str(checkpoint.path), f"{half}free some, or use a machine with more", free)
    fill(model, read_parameters(model, weights, checkpoint.family, dtype, device), trained=True)
    model.make_rotary_tables()
    return model.to(device).eval()
