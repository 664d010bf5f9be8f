"""`unmask chat`: talk with a model."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from unmask.cli.options import Backend, Device, Dtype, Model, Quantize, Tokens, decodes, load
from unmask.errors import UnmaskError


@decodes("mode", "threshold", "block_length", "temperature", "top_p", "seed")
def chat(
    model: Model = "default",
    max_new_tokens: Tokens = 512,
    system: Annotated[str, typer.Option(help="A system prompt in place of the model's own.")] = "",
    dtype: Dtype = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    quantize: Quantize = None,
    **decoding: Any,
) -> None:
    """Talk with a model; an empty line or end of input ends it.

    Example: `unmask chat --mode verify`
    """
    lm = load(model, device, dtype, backend, quantize)
    if lm.chat_template is None:
        raise UnmaskError(f"model '{lm.name}' has no chat template; use `unmask generate -m {model}`")
    messages = [{"role": "system", "content": system}] if system else []
    while question := _ask():
        messages.append({"role": "user", "content": question})
        shown = ""
        began = time.perf_counter()
        run = lm.start(messages, max_new_tokens, **decoding)
        for _ in run.frames():  # only what is written from the left without a gap, and whole characters
            text = run.text_so_far()
            if text.startswith(shown) and len(text) > len(shown) and not text.endswith("\ufffd"):
                print(text[len(shown) :], end="", flush=True)
                shown = text
        output = run.outputs()[0]
        print(output.text[len(shown) :] if output.text.startswith(shown) else "\n" + output.text)
        messages.append({"role": "assistant", "content": output.text})
        count = len(output.token_ids)
        rate = count / (time.perf_counter() - began)
        print(f"({count} tokens in {output.steps} steps, {rate:.0f} tokens/s)", file=sys.stderr)


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
