"""The worked examples of docs/extend.md, built in a copy of the package and used once, and the files that each touches.

Run as a program in such a copy, this file is the user of all of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
Edit = tuple[str, str, str]  # a file of src/unmask, text in it (none: a new file), and what is put before that


def section(title: str) -> tuple[int, str]:
    """The number of files in the heading that begins so, and the code below it."""
    found = re.search(rf"^## {title}[^\n]*\((\d)\)\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return int(found[1]), "".join(re.findall(r"```python\n(.*?)```", found[2], re.DOTALL))


BACKEND = """
from unmask.backends import anything, multiple_of, one_of
from unmask.backends.torch import TorchBackend

IMPLEMENTS = {
    "hidden_size": multiple_of(16), "layout": one_of("bidirectional"),
    **dict.fromkeys(("vocab_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"), anything),
    **dict.fromkeys(("intermediate_size", "max_length", "mask_token_id", "eos_token_id"), anything),
}


def unavailable(device):
    return None if device == "cpu" else f"runs on no {device}"


def create(source, sibling, progress):
    return TorchBackend(source.network())
"""
ENDPOINT = """
from unmask.serving.api.dialect import Dialect
from unmask.serving.api.schema import CompletionRequest, Strict


class ShoutBody(Strict):
    text: str


class Shout(Dialect):
    def request(self):
        return CompletionRequest(prompt=self.sent.text, max_tokens=4, seed=1)

    def whole(self, reply):
        return {"shouted": reply["choices"][0]["text"].upper()}
"""
ADDRESS = """    Endpoint(
        "/v1/shout", "Continue a text, loudly", example={"text": "the cat"},
        body=shout.ShoutBody, reply=TextReply, plan=Planner.completion, format=TEXT, dialect=shout.Shout,
    ),
"""
BENCH = '''
from unmask.cli.options import Json, Served
from unmask.cli.report import report


def command(model: Served = "default", as_json: Json = False) -> None:
    """What it measures, in one line."""
    report({"model": model}, "names", ["model"], [[model]], as_json)
'''
MIXER = '''
import torch
from torch import nn


class Decay(nn.Module):
    """Sums of what stands before, weaker with distance."""

    def __init__(self, config, layer):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_BTD, context):
        place = torch.arange(x_BTD.shape[1])
        apart = place[:, None] - place
        return torch.einsum("ts,bsd->btd", torch.where(apart >= 0, self.rate ** apart.clamp(min=0), 0.0), x_BTD)
'''
OBJECTIVE = '''
from dataclasses import dataclass

from unmask.objectives.masked import MDLM


@dataclass(frozen=True)
class Louder(MDLM):
    """Masked diffusion whose loss counts so many times."""

    times_over: float = 2.0

    def loss(self, model, noised):
        return self.times_over * super().loss(model, noised)
'''
EXAMPLES: dict[str, list[Edit]] = {
    "A commit rule": [
        ("decoding/rules.py", "RULES: dict", section("A commit rule")[1] + "\n\n"),
        ("decoding/rules.py", '    "quota": ', '    "patient": Rule(patient, reads=("patience",)),\n'),
        ("decoding/rules.py", '    "quota", "threshold"', '    "patient",\n'),
        ("decoding/rules.py", "    factor: float = option", "    patience: float = option(0.8, ge=0, le=1)\n"),
    ],
    "A backend": [
        ("backends/echo.py", "", BACKEND),
        ("backends/__init__.py", '    "native-f32": ', '    "echo": "unmask.backends.echo",\n'),
    ],
    "An endpoint": [
        ("serving/api/shout.py", "", ENDPOINT),
        ("serving/api/endpoints.py", "from unmask.serving.api.answers", "from unmask.serving.api import shout\n"),
        ("serving/api/endpoints.py", '    Endpoint(\n        path="/v1/completions"', ADDRESS),
    ],
    "A bench": [("../../benchmarks/greet.py", "", BENCH)],
    "An attention-free mixer": [
        ("models/decay.py", "", MIXER),
        ("models/mixers.py", "from unmask.models.layers", "from unmask.models.decay import Decay\n"),
        ("models/mixers.py", '"attention": Attention', '"decay": Decay, '),
        ("models/config.py", '"attention", "mamba2"]', '"decay", '),
    ],
    "An objective": [
        ("objectives/louder.py", "", OBJECTIVE),
        ("training/recipe.py", "from unmask.objectives.masked", "from unmask.objectives.louder import Louder\n"),
        ("training/recipe.py", '    "ar": AR', '    "louder": Louder,\n'),
    ],
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, without the weights, to which all examples are added."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src/unmask", root / "src/unmask", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (root / "benchmarks").mkdir()
    for edits in EXAMPLES.values():
        for name, place, more in edits:
            path = root / "src/unmask" / name
            before = path.read_text(encoding="utf-8") if place else ""
            assert before.count(place) == 1 or not place, (name, place)
            path.write_text(before.replace(place, more + place) if place else more, encoding="utf-8")
    return root


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_touches_as_many_files_as_its_heading_says(title: str) -> None:
    touched = {name for name, _, _ in EXAMPLES[title] if not name.startswith("..")}
    assert len(touched) == section(title)[0]


def test_every_example_works(package: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(package / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    used, bench = map(json.loads, ran.stdout.splitlines())
    assert Path(used["package"]).is_relative_to(package)
    assert used["rule"] == {"steps": [1, 4], "refused": "option 'patience' changes nothing here"}
    assert used["backend"] == {"same": True, "refused": "backend 'echo' does not implement layout 'causal'"}
    assert used["endpoint"] == {"status": 200, "loud": True}
    assert bench == {"model": "mine"}
    assert used["trained"] == {"mixers": ["decay"], "twice": True}


def _decoded(folder: Path) -> dict[str, Any]:
    """The rule and the backend, by a toy model that is served afterwards."""
    from unmask import DiffusionLM, UnmaskError
    from unmask.decoding.methods import DecodingDefaults
    from unmask.models.config import ModelConfig
    from unmask.models.transformer import Transformer
    from unmask.serving.asgi import Asked, whole
    from unmask.serving.engine import Limits
    from unmask.serving.server import make_app
    from unmask.training.tokenizer import train_tokenizer

    tokenizer = train_tokenizer("byte", [], 0)
    sizes: dict[str, Any] = {"vocab_size": 258, "hidden_size": 32, "num_layers": 1, "num_heads": 2}
    sizes |= {"intermediate_size": 48, "max_length": 64, "mask_token_id": 257, "eos_token_id": 0}
    network = Transformer(ModelConfig(**sizes)).initialise(0, 0.3).eval()
    lm = DiffusionLM(network, tokenizer, DecodingDefaults(rule="quota"), "toy")
    asked: dict[str, Any] = {"max_denoising_steps": 4, "seed": 1, "ignore_eos": True}
    steps = [lm.generate("cat", 8, rule="patient", patience=p, **asked).steps for p in (0.0, 1.0)]
    out: dict[str, Any] = {"rule": {"steps": steps}}

    def refusal(call: Any) -> str:
        try:
            call()
        except UnmaskError as error:
            return str(error).split(";")[0].split(" (")[0]
        return ""

    out["rule"]["refused"] = refusal(lambda: lm.generate("cat", 8, rule="quota", patience=0.5))[:39]
    for name, layout in (("toy", "bidirectional"), ("left", "causal")):
        made = Transformer(ModelConfig(**sizes, layout=layout)).initialise(0, 0.3)
        DiffusionLM(made, tokenizer, lm.defaults, name).save_pretrained(folder / name)
    echo = DiffusionLM.from_pretrained(folder / "toy", backend="echo")
    plain = DiffusionLM.from_pretrained(folder / "toy", backend="torch")
    same = echo.generate("cat", 8, seed=1).token_ids == plain.generate("cat", 8, seed=1).token_ids
    told = refusal(lambda: DiffusionLM.from_pretrained(folder / "left", backend="echo"))
    out["backend"] = {"same": same and echo.computes == "echo", "refused": told}
    app, engine = make_app({"toy": echo}, Limits(slots=2))
    status, body = asyncio.run(whole(app, Asked("/v1/shout", json.dumps({"text": "cat"}).encode())))
    engine.close()
    shouted = json.loads(body)["shouted"]
    return {**out, "endpoint": {"status": status, "loud": shouted == shouted.upper()}}


def _trained(folder: Path) -> dict[str, Any]:
    """Two steps by the objective, of a network with the mixer; and the same without what it adds."""
    from rich.console import Console

    from unmask import DiffusionLM
    from unmask.training.recipe import parse_recipe
    from unmask.training.trainer import Trainer

    (folder / "text.txt").write_text("the cat sat on the mat and the dog lay on the log.\n" * 20)
    model = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 48, "mixers": ["decay"]}
    files = [str(folder / "text.txt")]
    data = {"files": files, "validation": files, "tokenizer": "byte", "length": 32}
    training = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1, "threads": 1}
    losses = []
    for kind in ("louder", "mdlm"):
        parts = {"name": kind, "seed": 3, "objective": {"kind": kind}, "model": model, "data": data}
        recipe = parse_recipe({**parts, "training": training}, "recipe")
        made = Trainer(recipe, folder / kind, Console(quiet=True)).run()
        losses.append(json.loads((made / "curve.jsonl").read_text().splitlines()[0])["loss"])
    mixers = DiffusionLM.from_pretrained(folder / "louder" / "model").config.mixers
    return {"mixers": list(mixers), "twice": abs(losses[0] - 2 * losses[1]) < 1e-3}


def main(folder: Path) -> None:
    import unmask
    from unmask.cli.bench import OUR_BENCHES
    from unmask.cli.main import app

    used = {"package": unmask.__file__, **_decoded(folder), "trained": _trained(folder)}
    assert OUR_BENCHES.parent != ROOT
    print(json.dumps(used), flush=True)
    app(["bench", "greet", "mine", "--json"], standalone_mode=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
