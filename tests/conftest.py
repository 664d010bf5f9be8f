"""Shared by all tests: one thread, reproducible hypothesis runs, small networks, fixture files."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

from unmask.checkpoints.hub import pull
from unmask.errors import UnmaskError
from unmask.models import adapter
from unmask.models.config import ModelConfig
from unmask.models.transformer import Transformer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
settings.register_profile("unmask", derandomize=True, deadline=None, max_examples=30, database=None)
settings.load_profile("unmask")

CONFORMANCE = Path(__file__).parent / "conformance"


def make_tiny(seed: int = 0, std: float = 0.3, **options: Any) -> Transformer:
    """A network of two layers and 13 tokens, the last of which is the mask.

    Its weights are larger than a fresh network's, so that mistakes show in the logits.
    """
    sizes: dict[str, Any] = {
        "vocab_size": 13, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
        "intermediate_size": 48, "max_length": 64, "mask_token_id": 12,
    }  # fmt: skip
    return Transformer(ModelConfig(**{**sizes, **options})).initialise(seed, std).eval()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Transformer]:
    return make_tiny


def make_drafting(
    seed: int = 0,
    block_length: int = 4,
    rank: int = 4,
    width: int = 0,
    strength: float = 0.1,
    chain: int = 0,
    **options: Any,
) -> tuple[Transformer, Transformer]:
    """A small causal base of 9 tokens, the last of which is the mask, and the same with a random adapter.

    Its drafts are right often enough, and wrong often enough, for all that can happen to happen.
    """
    sizes = {"vocab_size": 9, "mask_token_id": 8, "layout": "causal", "shift": True, "num_kv_heads": 2}
    base = make_tiny(seed, **{**sizes, **options})
    config = adapter.adapted_config(base.config, block_length, rank, width, chain)
    network = adapter.attach(base, config)
    generator = torch.Generator().manual_seed(seed + 1)
    shapes = {name: p.shape for name, p in adapter.own_parameters(network).items()}
    adapter.put(network, {n: strength * torch.randn(shape, generator=generator) for n, shape in shapes.items()})
    ids = torch.arange(base.config.vocab_size)
    network.draft_vocabulary = ids[ids != base.config.mask_token_id]
    return base, network.eval()


@pytest.fixture(scope="session")
def drafting() -> Callable[..., tuple[Transformer, Transformer]]:
    return make_drafting


@pytest.fixture(scope="session")
def conformance() -> Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]:
    """Reads a fixture by name, "samplers/entropy_bound": its JSON and its tensors (none: an empty dict)."""

    def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = CONFORMANCE / f"{name}.safetensors"
        text = (CONFORMANCE / f"{name}.json").read_text()
        return json.loads(text), load_file(tensors) if tensors.exists() else {}

    return read


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the base model, fetched once into the user's cache."""
    try:
        return pull("smollm2-135m-instruct")
    except UnmaskError as error:
        if "cannot be fetched" not in str(error):
            raise
        pytest.skip(f"no network: {error}")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line: its exit status, and what it wrote on standard output and standard error."""
    from unmask.cli.main import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unmask", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return int(left.value.code or 0), out, err

    return call
