"""The default model: a frozen AR base of the catalogue and the adapter in the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unmask import DiffusionLM, UnmaskError
from unmask.checkpoints import hub
from unmask.checkpoints.folder import ADAPTER
from unmask.checkpoints.open import Checkpoint

PROMPTS = ["Why is the sky blue?", "Name three fruits.", "What is the capital of France?"]


@pytest.fixture(scope="module")
def exact(smollm2: Path) -> DiffusionLM:
    """In torch, float32."""
    return DiffusionLM.from_pretrained("default", dtype="float32")


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def test_its_text_is_the_bases_to_the_bit(exact: DiffusionLM, smollm2: Path) -> None:
    base = Checkpoint.open(smollm2).network()
    ids = torch.randint(100, 40000, (2, 48), generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact.logits(ids), DiffusionLM(base, None).logits(ids))


def test_it_writes_valid_json_in_every_mode(smollm2: Path) -> None:
    lm = DiffusionLM.from_pretrained("default")
    schema = {"type": "object", "properties": {"animal": {"enum": ["cat", "dog"]}, "legs": {"type": "integer"}}}
    schema |= {"required": ["animal", "legs"], "additionalProperties": False}
    texts = dict[tuple[str, float], str]()
    for mode in ("ar", "verify", "diffusion"):
        for temperature in (0.0, 1.2):
            out = lm.generate(
                chat("A cat, as JSON."), 24, mode=mode, temperature=temperature, json_schema=schema, seed=1
            )
            found = json.loads(out.text)
            assert found["animal"] in ("cat", "dog")
            assert isinstance(found["legs"], int)
            texts[mode, temperature] = out.text
    assert texts["verify", 0.0] == texts["ar", 0.0]
    assert texts["verify", 1.2] == texts["ar", 1.2]


@pytest.mark.parametrize("window", [2, 4])
def test_verify_writes_what_ar_writes(exact: DiffusionLM, window: int) -> None:
    for prompt in PROMPTS:
        plain = exact.generate(chat(prompt), 24, mode="ar", temperature=0.0)
        checked = exact.generate(chat(prompt), 24, mode="verify", temperature=0.0, block_length=window)
        assert checked.token_ids == plain.token_ids
        assert checked.steps <= plain.steps


def test_drafts_are_right_often_enough_to_pay(exact: DiffusionLM) -> None:
    strict = {"mode": "diffusion", "threshold": 1.0, "block_length": 2}  # planned by a fixed price, on any machine
    outs = [exact.generate(chat(p), 32, temperature=0.0, **strict) for p in PROMPTS[:2]]
    assert sum(len(out.token_ids) for out in outs) / sum(out.steps for out in outs) > 1.15


def test_it_answers_compiled_in_all_modes(smollm2: Path) -> None:
    lm = DiffusionLM.from_pretrained("default")
    for mode in ("diffusion", "ar", "verify"):
        out = lm.generate(chat("What is the capital of France?"), 24, mode=mode, temperature=0.0)
        assert "Paris" in out.text or len(out.text.split()) > 3
    again = [lm.generate(chat("Hello"), 12, mode="diffusion", temperature=0.8, seed=3).token_ids for _ in range(2)]
    assert again[0] == again[1]


def test_a_warm_start_needs_no_torch_and_little_memory(smollm2: Path) -> None:
    DiffusionLM.from_pretrained("default").generate(chat("Hi"), 4)  # graphs on disk from here on
    code = (
        "import sys; from unmask import DiffusionLM\n"
        "DiffusionLM.from_pretrained('default').generate([{'role': 'user', 'content': 'Hi'}], 16)\n"
        "assert 'torch' not in sys.modules\n"
        "print(next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM')) / 1024)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 700  # MB


def test_an_adapter_for_another_base_is_refused(tmp_path: Path, smollm2: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(hub.find("default"), folder)
    details = json.loads((folder / ADAPTER).read_text())
    (folder / ADAPTER).write_text(json.dumps({**details, "embedding": "0" * 16}))
    with pytest.raises(UnmaskError, match="another base"):
        DiffusionLM.from_pretrained(folder, dtype="float32")
    (folder / ADAPTER).write_text(json.dumps({**details, "base": "no-such-model"}))
    with pytest.raises(UnmaskError, match="no-such-model"):
        DiffusionLM.from_pretrained(folder)


def test_what_does_not_fit_is_said(exact: DiffusionLM) -> None:
    with pytest.raises(UnmaskError, match="too many; shorten one"):
        exact.generate([5] * 8190, 64)
    with pytest.raises(UnmaskError, match="block_length of at least 2"):
        exact.generate(chat("Hi"), 8, mode="verify", block_length=1)
    with pytest.raises(UnmaskError, match="rule 'checked' is for models with an adapter"):
        exact.generate(chat("Hi"), 8, mode="diffusion", rule="checked", block_length=1)
    with pytest.raises(UnmaskError, match="rule 'checked' is for models with an adapter"):
        DiffusionLM.from_pretrained("austen").generate("Emma", 8, rule="checked")
    with pytest.raises(UnmaskError, match="cannot fill gaps"):
        exact.fill("The [[mask:2]].")
    with pytest.raises(UnmaskError, match="decodes in mode"):
        exact.generate("x", 4, mode="guess")
