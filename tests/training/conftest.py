"""Small recipes, clean errors and a fresh Accelerate for every training test."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from trees import Tree, change

from unmask.errors import UnmaskError
from unmask.training.recipe import Recipe, parse_recipe

TEXT = "the cat sat on the mat and the dog lay on the log.\n"


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its precision for a whole process and refuses another one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lines = [TEXT.replace("cat", animal) for animal in ("cat", "fox", "owl", "hen", "rat")]
    (folder / "train.txt").write_text("".join(lines * 5))
    (folder / "held-out.txt").write_text("".join(lines[::-1]))
    return folder


@pytest.fixture(scope="session")
def make_tree(corpus_folder: Path) -> Callable[..., Tree]:
    """A recipe as plain mappings: 2 layers x 32, bytes, rows of 32; keywords change single fields.

    The default objective divides by the masked tokens, whose number differs from rank to rank, and rows
    are cut, so that a step which is spread wrongly shows in the curve.
    """

    def make(**changes: Any) -> Tree:
        tree: Tree = {
            "name": "tiny",
            "seed": 3,
            "objective": {"kind": "mdlm", "clip": [0.1, 1.0], "normaliser": "masked"},
            "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "qk_norm": True},
            "data": {
                "files": [str(corpus_folder / "train.txt")],
                "validation": [str(corpus_folder / "held-out.txt")],
                "split": "^the owl",
                "tokenizer": "byte",
                "length": 32,
                "cut": 0.3,
            },
            "training": {
                "steps": 12,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "warmup_steps": 2,
                "optimizer": "muon",
                "threads": 1,
                "save_every": 4,
                "validate_every": 4,
                "validation_rows": 4,
            },
        }
        return change(tree, changes)

    return make


@pytest.fixture(scope="session")
def make_recipe(make_tree: Callable[..., Tree]) -> Callable[..., Recipe]:
    """The same as a Recipe: make_recipe(training__steps=3)."""
    return lambda **changes: parse_recipe(make_tree(**changes), "recipe")


@pytest.fixture(scope="session")
def finished(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run of the default recipe: what other ways to run it are compared with."""
    from unmask.training.trainer import Trainer

    folder = tmp_path_factory.mktemp("finished")
    Trainer(make_recipe(), folder, Console(quiet=True)).run()
    return folder


@pytest.fixture(scope="session")
def refused() -> Callable[..., AbstractContextManager[None]]:
    """Expects an UnmaskError of one line that holds every given word."""

    @contextmanager
    def expect(*words: object) -> Iterator[None]:
        with pytest.raises(UnmaskError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert str(word) in message

    return expect


@pytest.fixture(scope="session")
def chat_base(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small causal model that was never trained: letters, and ChatML with a system prompt."""
    from tokenizers import Tokenizer, decoders, models

    from unmask.lm import DiffusionLM

    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
    words = [*control, "\n", " ", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(control)
    ids = {"mask_token_id": 3, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 2}
    shape = {"layout": "causal", "shift": True, "num_kv_heads": 2, "max_length": 128, "vocab_size": len(words)}
    folder = tmp_path_factory.mktemp("models") / "chat"
    DiffusionLM(tiny(5, 0.15, **shape, **ids), tokenizer, name="chat").save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}"
        "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nbe good<|im_end|>\n{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return folder


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
