"""The small models that tests serve; run as a program, it serves them at a port of loopback until told to stop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from unmask.decoding.methods import DecodingDefaults
from unmask.lm import DiffusionLM
from unmask.training.tokenizer import train_tokenizer

TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog sat. été ☕ 猫 " * 4
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
TESTS = Path(__file__).parent.parent


def small_models(tiny: Callable[..., Any], drafting: Callable[..., Any]) -> dict[str, DiffusionLM]:
    """One that chats and drafts, a full canvas, an AR one, one of blocks, and one whose noise is random tokens."""
    tokenizer = train_tokenizer("bpe", [TEXT], 330)
    sizes: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "mask_token_id": 1, "eos_token_id": 0}
    sizes |= {"bos_token_id": 0, "pad_token_id": 0, "max_length": 160}
    quota = DecodingDefaults(rule="quota", max_denoising_steps=8)
    made = {
        "canvas": DiffusionLM(tiny(1, **sizes), tokenizer, quota, "canvas"),
        "left": DiffusionLM(tiny(2, layout="causal", shift=True, **sizes), tokenizer, None, "left"),
        "blocks": DiffusionLM(tiny(3, layout="block_causal", block_length=4, **sizes), tokenizer, quota, "blocks"),
    }
    network = drafting(1, strength=0.3, **{**sizes, "max_length": 400})[1]
    described: Any = SimpleNamespace(templates={"default": TEMPLATE}, special_tokens={}, answer_schema=None)
    talker = DiffusionLM(network, tokenizer, DecodingDefaults(threshold=0.4, block_length=3), "talker", described)
    noisy = DiffusionLM.from_pretrained(TESTS / "conformance" / "diffusion_gemma")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(noisy.config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    options = DecodingDefaults(rule="entropy_bound", entropy_bound=3.0, max_denoising_steps=3)
    return {"talker": talker, **made, "noisy": DiffusionLM(noisy.model, words, options, "noisy")}


def main(port: int) -> None:
    from unmask.serving.api.access import local_hosts
    from unmask.serving.api.settings import Settings
    from unmask.serving.engine import Limits
    from unmask.serving.server import Server, bind, make_app, serve

    spec = spec_from_file_location("tests_conftest", TESTS / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    shared = module_from_spec(spec)
    spec.loader.exec_module(shared)
    models = small_models(shared.make_tiny, shared.make_drafting)
    settings = Settings(hosts=local_hosts("127.0.0.1"))
    server = Server(*make_app(models, Limits(slots=8, queue=8), settings), grace=5.0)
    serve(server, models, bind("127.0.0.1", port))


if __name__ == "__main__":
    main(int(sys.argv[sys.argv.index("--port") + 1]))
