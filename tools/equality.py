"""Records what the package does through its public surface, and compares two records: the proof asked of a refactor.

    python tools/equality.py record before.json        on the code as it was
    python tools/equality.py record after.json         on the code as it is
    python tools/equality.py compare before.json after.json

Ids, texts, frames, likelihoods, training losses, saved weights and a served transcript must be identical; logits agree
to 1e-5. Eight minutes on two cores; `--only SECTION` records a part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unmask import DiffusionLM

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}  # fmt: skip
CHATS = ["Why is the sky blue?", "Describe a cat.", "List three colours."]
CANVAS: dict[str, dict[str, Any]] = {  # options of `austen`, by name
    "default": {},
    **{
        rule: {"rule": rule, "max_denoising_steps": 8}
        for rule in ("quota", "margin", "entropy", "sequential", "random")
    },
    "threshold": {"rule": "threshold", "threshold": 0.5},
    "factor": {"rule": "factor", "factor": 0.9},
    "entropy_bound": {"rule": "entropy_bound", "entropy_bound": 1.0},
    "warm": {"temperature": 0.8, "max_denoising_steps": 8},
    "top": {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "max_denoising_steps": 8},
    "blocks": {"block_length": 8, "max_denoising_steps": 4},
    "prefix": {"block_length": 8, "cache": "prefix", "max_denoising_steps": 4},
    "dual": {"block_length": 8, "cache": "dual", "max_denoising_steps": 4},
    "guidance": {"guidance": 0.5, "max_denoising_steps": 8},
    "linear": {"schedule": "linear", "max_denoising_steps": 8},
    "cosine": {"schedule": "cosine", "rule": "quota", "max_denoising_steps": 8},
    "remask": {"remask_budget": 6, "max_denoising_steps": 8, "temperature": 0.5},
    "sampler": {"sampler": "ancestral", "remask_budget": 0, "temperature": 1.0, "max_denoising_steps": 8},
    "regex": {"regex": "[a-z ]{5,20}\\."},
}
OBJECTIVES: dict[str, str] = {
    "ar": "{kind: ar}",
    "mdlm": "{kind: mdlm}",
    "mdlm-cosine": "{kind: mdlm, schedule: cosine, clip: [0.1, 1.0]}",
    "mdlm-plain": "{kind: mdlm, weight: none, normaliser: masked}",
    "mdlm-cart": "{kind: mdlm, weight: cart}",
    "mdlm-complementary": "{kind: mdlm, weight: none, complementary: true}",
    "mdlm-grid": "{kind: mdlm, steps: 16}",
    "mdlm-shift": "{kind: mdlm, shift: true}",
    "bd3lm": "{kind: bd3lm, block_length: 8}",
    "bd3lm-shift": "{kind: bd3lm, block_length: 8, shift: true}",
    "sedd": "{kind: sedd}",
    "duo": "{kind: duo}",
}
NETWORK = "hidden_size: 32, num_layers: 2, num_heads: 2, intermediate_size: 64"
MODELS = {"ar": "layout: causal", "sedd": "time_condition_size: 16", "bd3lm": "layout: block_causal, block_length: 8"}


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def written(output: Any) -> dict[str, Any]:
    return {"text": output.text, "ids": output.token_ids}


def shown(output: Any) -> dict[str, Any]:
    frames = [frame.to_dict() for frame in output.frames]
    return {
        **written(output),
        "steps": output.steps,
        "frames": len(frames),
        "hash": digest(frames),
    }


def default() -> Iterator[tuple[str, Any]]:
    lm = DiffusionLM.from_pretrained("default")
    for mode in ("ar", "diffusion", "verify"):
        for temperature in (0.0, 0.8):
            for schema in (None, SCHEMA):
                for number, question in enumerate(CHATS):
                    asked = [{"role": "user", "content": question}]
                    out = lm.generate(asked, 40, mode=mode, temperature=temperature, json_schema=schema, seed=number)
                    name = f"{mode} {temperature} {'schema ' if schema else ''}{number}"
                    if mode == "diffusion":
                        yield name, {**shown(out), "accepted": list(out.accepted)}
                    else:  # the steps are what pays on this machine
                        yield name, written(out)
    exact = DiffusionLM.from_pretrained("default", dtype="float32")
    for mode in ("ar", "diffusion", "verify"):
        out = exact.generate([{"role": "user", "content": CHATS[0]}], 16, mode=mode)
        yield f"float32 {mode}", written(out) if mode == "verify" else shown(out)


def austen() -> Iterator[tuple[str, Any]]:
    lm = DiffusionLM.from_pretrained("austen", dtype="float32")
    twin = DiffusionLM.from_pretrained("austen-ar", dtype="float32")
    for name, options in CANVAS.items():
        yield name, shown(lm.generate("It is a truth", 32, seed=3, **options))
    for temperature in (0.0, 0.8):
        yield f"ar {temperature}", shown(twin.generate("It is a truth", 32, temperature=temperature, seed=3))
    yield (
        "batch",
        [
            shown(out)
            for out in lm.generate(["Emma was", "She had been three weeks"], 24, seed=5, max_denoising_steps=6)
        ],
    )
    filled = lm.fill("Mr. Darcy was [[mask:2-4]], and Elizabeth [[mask:3]].", seed=1)
    yield "fill", [filled.text, list(filled.gaps)]
    texts = ["It is a truth universally acknowledged.", "She was very fond of walking."]
    yield "nelbo", [[s.nats, s.tokens, s.std_error] for s in lm.likelihood(texts, samples=16, seed=0)]
    yield "exact", [[s.nats, s.tokens] for s in twin.likelihood(texts)]
    for each in (lm, twin):
        logits = each.logits([[5, 300, 17, 1, 1, 42, 900, 2]])
        yield f"logits {each.name}", {"close": [round(float(x), 6) for x in logits[0, :, ::257].flatten()]}
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}
        yield "saved", {name: files[name] for name in ("model.safetensors", "tokenizer.json")}
        again = DiffusionLM.from_pretrained(folder, dtype="float32")
        yield "loaded again", shown(again.generate("It is a truth", 16, seed=3))


def training() -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        for name, objective in OBJECTIVES.items():
            own = MODELS.get(name.split("-")[0], "layout: bidirectional")
            recipe = Path(folder, f"{name}.yaml")
            recipe.write_text(f"""
name: {name}
seed: 1
objective: {objective}
model: {{{NETWORK}, {own}}}
data: {{files: [{ROOT}/data/austen/emma.txt], validation: [{ROOT}/data/austen/persuasion.txt], tokenizer: bpe, vocab_size: 400, length: 64}}
training: {{steps: 20, batch_size: 4, learning_rate: 1.0e-3, warmup_steps: 5, threads: 1, validate_every: 10, validation_rows: 8}}
""")
            run = Path(folder, name)
            command = [sys.executable, "-m", "unmask", "train", str(recipe), "--output", str(run)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                yield name, done.stderr.splitlines()[-1:]
                continue
            curve = [json.loads(line) for line in (run / "model" / "curve.jsonl").read_text().splitlines()]
            kept = [[record["loss"], record["grad_norm"], record.get("validation")] for record in curve]
            yield (
                name,
                {
                    "curve": kept,
                    "weights": hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest(),
                },
            )


def ask(port: int, path: str, body: Any) -> Any:
    data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


VOLATILE = ("id", "created", "system_fingerprint", "warning")


def settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: settled(v) for k, v in value.items() if k not in VOLATILE}
    return [settled(v) for v in value] if isinstance(value, list) else value


def served() -> Iterator[tuple[str, Any]]:
    port = 18437
    chat = {
        "model": "default",
        "messages": [{"role": "user", "content": "Name a colour."}],
        "max_tokens": 12,
        "temperature": 0,
        "seed": 1,
    }
    text = {"model": "austen", "prompt": "It is a truth", "max_tokens": 12, "temperature": 0, "seed": 1}
    asked: list[tuple[str, Any]] = [
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "mode": "ar"}),
        ("/v1/chat/completions", {**chat, "mode": "verify", "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", {**chat, "stream": True}),
        (
            "/v1/chat/completions",
            {
                **chat,
                "max_tokens": 40,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
            },
        ),
        ("/v1/completions", text),
        ("/v1/completions", {**text, "suffix": " of a wife."}),
        ("/v1/completions", {**text, "stream": True, "diffusing": True}),
        ("/v1/infill", {"model": "austen", "segments": ["She was ", {"mask": 3}, "."], "seed": 1}),
        ("/v1/completions", {**text, "prompt": 5}),
        ("/v1/completions", {**text, "model": "nobody"}),
        ("/v1/completions", {**text, "max_tokens": 0}),
        ("/v1/completions", {**text, "threshold": 2}),
        ("/v1/chat/completions", {**chat, "messages": []}),
        ("/v1/chat/completions", b"{"),
        ("/v1/nothing", {}),
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "unmask", "serve", "default", "austen", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            try:
                if ask(port, "/health", None)[0] == 200:
                    break
            except OSError:
                time.sleep(0.5)
        for number, (path, body) in enumerate(asked):
            status, answer = ask(port, path, body)
            events = [line.removeprefix("data: ") for line in answer.splitlines() if line.strip()]
            parsed = [
                settled(json.loads(e)) if e[:1] == "{" else e for e in ([answer] if answer[:1] == "{" else events)
            ]
            yield f"{number} {path}", [status, parsed]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


SECTIONS: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "default": default,
    "austen": austen,
    "training": training,
    "served": served,
}


def differences(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict) and "close" in one:
        return len(one["close"]) != len(other["close"]) or any(
            abs(a - b) > 1e-5 for a, b in zip(one["close"], other["close"], strict=True)
        )
    return bool(one != other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", choices=list(SECTIONS))
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.action == "record":
        found: dict[str, Any] = json.loads(given.files[0].read_text()) if given.files[0].is_file() else {}
        for section, items in SECTIONS.items():
            if given.only in (None, section):
                found[section] = {}
                for name, value in items():
                    found[section][name] = value
                    print(section, name, file=sys.stderr)
                given.files[0].write_text(json.dumps(found, indent=1))
        return
    before, after = (json.loads(path.read_text()) for path in given.files)
    different = [
        f"{section}: {name}"
        for section, items in before.items()
        for name, value in items.items()
        if section in after and differences(value, after[section].get(name))
    ]
    compared = sum(len(items) for section, items in before.items() if section in after)
    print("\n".join([*different, f"{compared} compared, {len(different)} differ"]))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
