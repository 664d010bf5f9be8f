"""What a family of public checkpoints is: how its config reads, and one table of tensor names used both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from unmask.checkpoints.tokens import ROLES, TokenFiles, Tokens, resolve
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig, build

if TYPE_CHECKING:
    from torch import Tensor

# our modules (or parameters, where theirs are not called alike) to theirs; {} stands for each number. Several of ours
# that have one name of theirs are joined in it along the first axis
Names = dict[str, str]
Table = dict[str, list[str]]  # their tensor -> ours, in the order they are joined
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
GATED = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """A checkpoint family. `read` turns config.json into ModelConfig fields; `names` is the table."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    architectures: tuple[str, ...]  # of config.json; decides where a model_type is shared
    read: Callable[[dict[str, Any]], dict[str, Any]]
    names: Names
    kind: Literal["A", "B", "C", "AR"] = "A"  # full canvas, block-causal, renoised canvas, autoregressive
    defaults: dict[str, Any] = field(default_factory=dict)  # decoding options of the model card
    generation: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda raw, generation: {}
    # decoding options from config.json and generation_config.json ({}: there is none), over the defaults
    # the usual ids, where no file of the folder names one: mask, end of text, end of a turn of a dialogue
    mask: int | None = None
    eos: int | None = None
    turn: int | None = None
    recognises: Callable[[dict[str, Any], str], bool] = lambda raw, hint: False
    # for configs that name no family, by their keys, or by the folder's name where another family's names stand in it
    transposed: tuple[str, ...] = ()  # ends of names of tensors that are stored [in, out]
    ignored: tuple[str, ...] = ()  # ends of names of tensors that are neither read nor written again
    constants: Callable[[ModelConfig, dict[str, Any]], dict[str, Tensor]] = lambda config, raw: {}
    # tensors in their files that follow from the config: not read, and written again
    unread: tuple[str, ...] = ()  # how the names of tensors begin that are in their files and not in the network
    borrows_mask: bool = False  # an AR vocabulary has no mask; a control token that no text holds stands in
    unmasked: Family | None = None  # what a model of this architecture without a mask token is
    limits: str = ""  # what is not as in the reference, said by `unmask models inspect`

    def understand(
        self, raw: dict[str, Any], source: str, files: TokenFiles | None = None
    ) -> tuple[ModelConfig, Tokens]:
        """Our config of theirs and where its special tokens come from; impossible values raise UnmaskError."""
        raw = without_absent_ids(raw)
        if self.kind == "AR":  # encoders made of such networks, which transformers reads by this key
            require(raw, f"{self.name}, an autoregressive model,", is_causal=True)
        fields = self.read(raw)
        tokens = resolve(raw, fields, files or TokenFiles(), (self.mask, self.eos, self.turn), source)
        fields |= {f"{role}_token_id": getattr(tokens, role) for role in ROLES}
        config: ModelConfig = build(ModelConfig, fields, source)
        return config, tokens

    def config(self, raw: dict[str, Any], source: str) -> ModelConfig:
        """Our config of theirs; impossible values raise UnmaskError naming them."""
        return self.understand(raw, source)[0]

    def theirs(self, parameter: str) -> str:
        """What the tensor is called that holds one of our parameters."""
        plain = NUMBER.sub("{}", parameter)
        module, _, leaf = plain.rpartition(".")
        named = self.names.get(plain) or f"{self.names[module]}.{leaf}"
        return named.format(*NUMBER.findall(parameter))

    def table(self, parameters: Iterable[str]) -> Table:
        """Their tensor names and those of the network's parameters."""
        out: Table = {}
        for ours in parameters:
            out.setdefault(self.theirs(ours), []).append(ours)
        return out


def layered(whole: Names, layer: str, each: Names) -> Names:
    """A table of names: those outside the layers, and those of each layer, whose names begin with `layer`."""
    return whole | {f"blocks.{{}}.{ours}": layer + theirs for ours, theirs in each.items()}


def ends_of(family: Family | None) -> tuple[str, str]:
    """What the head, were it not tied, and the embedding are called in the files; "" for a head without a name."""
    if family is None:
        return "head.weight", "embedding.weight"
    return family.theirs("head.weight") if "head" in family.names else "", family.theirs("embedding.weight")


def ids(raw: dict[str, Any]) -> dict[str, Any]:
    """The special tokens that config.json names."""
    return {f"{role}_token_id": raw.get(f"{role}_token_id") for role in ROLES}


def without_absent_ids(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json without start, end and padding ids below 0, which mean that there is none."""
    out = dict(raw)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = out.get(key)
        if isinstance(value, list):
            out[key] = [id for id in value if not _is_negative(id)] or None
        elif _is_negative(value):
            out[key] = None
    if isinstance(out.get("text_config"), dict):
        out["text_config"] = without_absent_ids(out["text_config"])
    return out


def _is_negative(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < 0


def require(raw: dict[str, Any], family: str, **expected: Any) -> None:
    """Raises UnmaskError where a key of config.json has another value than the network can have; a missing or null
    key passes. A tuple lists the values that pass."""
    for key, values in expected.items():
        options = values if isinstance(values, tuple) else (values,)
        value = raw.get(key)
        if value is not None and value not in options:
            wanted = " or ".join(repr(option) for option in options)
            raise UnmaskError(f"model config: {key} {value!r:.60} is not supported; {family} is read with {wanted}")
