"""What a model is, read without its weights; the torch network comes when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.checkpoints import catalogue, folder, recognition
from unmask.decoding.methods import DecodingDefaults
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from unmask.checkpoints.family import Family
    from unmask.models.transformer import Transformer

DTYPES = ("float32", "bfloat16", "float16", "auto")
GENERATION = folder.GENERATION


@dataclass(frozen=True)
class Loaded:
    """Where a model lies and what its small files say. An adapter also names its base and where that lies."""

    path: Path
    name: str
    config: ModelConfig
    raw_config: dict[str, Any]
    family: Family | None
    tokenizer: Tokenizer | None
    chat_template: str | None
    defaults: DecodingDefaults
    device: str
    dtype: str
    base: str | None = None
    base_path: Path | None = None

    @property
    def is_large(self) -> bool:
        """Whether a compiled graph is worth its start-up: 50M parameters and more, embeddings aside."""
        c = self.config
        return c.num_layers * c.hidden_size * (2 * c.hidden_size + 3 * c.intermediate_size) > 5e7

    def network(self) -> Transformer:
        """Reads the weights into a torch network; raises UnmaskError where the device cannot be used."""
        import torch

        from unmask.checkpoints import weights as checkpoint
        from unmask.models import adapter

        device = usable_device(self.device)
        dtype = None if self.dtype == "auto" else getattr(torch, self.dtype)
        if self.base_path is None:
            return checkpoint.load(self.path, device, dtype)[0]
        base = checkpoint.load(self.base_path, device, dtype)[0]
        return adapter.load(self.path, base, self.config)


def usable_device(name: str) -> torch.device:
    """The torch device of a name; raises UnmaskError where it cannot be used."""
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UnmaskError(f"device '{name}' cannot be used ({reason}); try device='cpu'") from None


def describe(name: str, device: str = "cpu", dtype: str = "float32") -> Loaded:
    """Finds a model and reads everything about it but the weights; raises UnmaskError naming what is wrong."""
    if dtype not in DTYPES:
        raise UnmaskError(f"dtype '{dtype}' is unknown; use one of {', '.join(DTYPES)}")
    path = catalogue.find(name)
    found = recognition.recognise(path)
    raw, family, config = found.raw, found.family, found.config
    base_name = folder.base_of(path)
    base_path = None if base_name is None else catalogue.find(base_name)
    source = path if base_path is None else base_path
    file = path / GENERATION
    values: dict[str, Any] = folder.read_json(file) if file.is_file() else {}
    if family is not None:  # other layouts' file speaks of other things
        values = {"eos_token_ids": list(found.ends), **family.defaults, **family.generation(raw, values)}
    else:
        values = {**_sampled(config), **values}
    defaults = DecodingDefaults.read(values, str(file))
    label = path.stem if path.is_file() else path.name
    about = (path, label, config, raw, family, folder.load_tokenizer(source), folder.load_template(source))
    return Loaded(*about, defaults, device, dtype, base_name, base_path)


def _sampled(config: ModelConfig) -> dict[str, Any]:
    """Decoding defaults of a network of our own that no rule can decode."""
    if config.output == "log_score":
        return {"sampler": "analytic", "temperature": 1.0, "noise_removal": "ancestral"}
    if config.corruption == "uniform" and config.layout == "bidirectional":
        return {"sampler": "ancestral", "temperature": 1.0, "noise_removal": "ancestral"}
    return {}
