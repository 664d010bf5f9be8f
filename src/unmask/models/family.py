"""What a family of public checkpoints is: how its config reads, and one table of tensor names used both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig, build

if TYPE_CHECKING:
    from torch import Tensor

# (ours, theirs); {i} stands for every layer's number; "a + b" on our side are joined in theirs, a first
Names = list[tuple[str, str]]
Table = dict[str, list[str]]  # their tensor -> ours, in the order they are joined along the first axis


@dataclass(frozen=True)
class Family:
    """A checkpoint family. `read` turns config.json into ModelConfig fields; `names` gives the table."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    architectures: tuple[str, ...]  # of config.json; decides where a model_type is shared
    read: Callable[[dict[str, Any]], dict[str, Any]]
    names: Callable[[ModelConfig], Names]
    defaults: dict[str, Any] = field(default_factory=dict)  # decoding options of the model card
    generation: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda raw, generation: {}
    # decoding options from config.json and generation_config.json ({}: there is none), over the defaults
    constants: Callable[[ModelConfig, dict[str, Any]], dict[str, Tensor]] = lambda config, raw: {}
    # tensors in their files that follow from the config: not read, and written again
    unread: tuple[str, ...] = ()  # how the names of tensors begin that are in their files and not in the network
    borrows_mask: bool = False  # an AR vocabulary has no mask; a control token that no text holds stands in

    def config(self, raw: dict[str, Any], source: str) -> ModelConfig:
        """Our config of theirs; impossible values raise UnmaskError naming them."""
        fields = self.read(raw)
        mask = fields.get("mask_token_id")
        if isinstance(mask, int) and isinstance(fields.get("vocab_size"), int) and mask >= fields["vocab_size"]:
            if "mask_token_id" in raw:
                raise UnmaskError(f"{source}: mask_token_id {mask} is outside the vocabulary of {fields['vocab_size']}")
            fields["mask_token_id"] = None  # the family's usual id, and this model has a smaller vocabulary
        config: ModelConfig = build(ModelConfig, fields, source)
        return config

    def table(self, config: ModelConfig) -> Table:
        """Their tensor names and ours, every layer written out."""
        out: Table = {}
        for ours, theirs in self.names(config):
            for i in range(config.num_layers) if "{i}" in ours else (0,):
                out[theirs.replace("{i}", str(i))] = ours.replace("{i}", str(i)).split(" + ")
        return out
