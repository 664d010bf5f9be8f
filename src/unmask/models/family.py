"""What a family of public checkpoints is: how its config reads, and one table of tensor names used both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig, build

Names = list[tuple[str, str]]  # (ours, theirs); {i} stands for every layer's number


@dataclass(frozen=True)
class Family:
    """A checkpoint family. `read` turns config.json into ModelConfig fields; `names` gives the table."""

    name: str
    model_types: tuple[str, ...]  # of config.json
    architectures: tuple[str, ...]  # of config.json; decides where a model_type is shared
    read: Callable[[dict[str, Any]], dict[str, Any]]
    names: Callable[[ModelConfig], Names]
    defaults: dict[str, Any] = field(default_factory=dict)  # decoding options of the model card

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

    def table(self, config: ModelConfig) -> dict[str, str]:
        """Our tensor name -> theirs, every layer written out."""
        out = {}
        for ours, theirs in self.names(config):
            for i in range(config.num_layers) if "{i}" in ours else (0,):
                out[ours.replace("{i}", str(i))] = theirs.replace("{i}", str(i))
        return out
