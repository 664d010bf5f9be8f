"""A server in a thread with three small models: one that chats and drafts, a full canvas, and an AR one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live_server import Live
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from unmask.engine.scheduler import Limits
from unmask.generation import DecodingDefaults
from unmask.lm import DiffusionLM
from unmask.models.transformer import Transformer
from unmask.server.app import Settings
from unmask.server.guard import Rules, local_hosts
from unmask.server.run import bind, make_server
from unmask.training.tokenizer import train_tokenizer

TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog sat. été ☕ 猫 " * 4
LOCAL = Settings(Rules(hosts=local_hosts("127.0.0.1")))
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


Starter = Callable[..., Live]


@pytest.fixture(scope="session")
def served_models(
    tiny: Callable[..., Transformer], drafting: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, DiffusionLM]:
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
    described: Any = SimpleNamespace(chat_template=TEMPLATE)
    talker = DiffusionLM(network, tokenizer, DecodingDefaults(threshold=0.4, block_length=3), "talker", described)
    folder = Path(__file__).parent.parent / "conformance" / "diffusion_gemma"
    noisy = DiffusionLM.from_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(noisy.config.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    options = DecodingDefaults(rule="entropy_bound", entropy_bound=3.0, max_denoising_steps=3)
    return {"talker": talker, **made, "noisy": DiffusionLM(noisy.model, words, options, "noisy")}


@pytest.fixture(scope="session")
def start(served_models: dict[str, DiffusionLM]) -> Iterator[Starter]:
    running: list[Live] = []

    def starting(
        limits: Limits | None = None,
        settings: Settings | None = None,
        models: dict[str, DiffusionLM] | None = None,
        **options: Any,
    ) -> Live:
        models = models or served_models
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = make_server(models, limits or Limits(slots=8, queue=8), settings or LOCAL, **options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        running.append(Live(server, f"http://127.0.0.1:{port}/v1", port, models, thread))
        return running[-1]

    yield starting
    for live in running:
        live.server.should_exit = True
        live.server.engine.close()
        live.thread.join(timeout=20)


@pytest.fixture(scope="session")
def live(start: Starter) -> Live:
    return start()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# the team's\nopen-sesame\n\nsecond-key\n")
    return path
