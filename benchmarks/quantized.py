"""How far a model with quantised weights is from the original on a probe text: best tokens that agree, divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from unmask.backends import QUANTIZED
from unmask.cli.options import Json, Served, text_of
from unmask.cli.report import report
from unmask.decoding.feed import Columns, Feed
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.lm import DiffusionLM

PROBE = """A library in a small town keeps its doors open until nine in the evening. Children read on the carpet, and an
old man looks for a map of the river that he knew as a boy. "It ran further east then," he says, and the librarian, who
has heard this before, brings him the atlas of 1931. Outside it has begun to rain. To compute the mean of a list of
numbers in Python, write sum(numbers) / len(numbers). Water boils at 100 degrees Celsius at sea level, and at lower
temperatures on a mountain, because the pressure of the air is less."""


def log_probabilities(lm: Any, ids: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Float64 [N, V] of the columns that are scored, of one text read whole."""
    backend = lm.backend
    layout = "causal" if lm.config.layout == "drafts" else lm.config.layout
    backend.open(Layout(layout, max(lm.config.block_length, 1)), 1, len(ids), True)
    place = np.arange(len(ids))
    feed = Feed.of([Columns(ids, place, np.full(len(ids), -1), scored, place[scored])], np.zeros(1, np.int64))
    made = backend.forward(feed)
    rows = made.text if hasattr(made, "text") else made.logits.cpu().numpy()
    logits = np.maximum(rows.astype(np.float64), -1e30)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def command(
    model: Served = "smollm2-135m-instruct",
    text: Annotated[Path | None, typer.Option(help="A probe text in place of the built-in one.")] = None,
    most: Annotated[int, typer.Option("--tokens", help="How many tokens of it are read.")] = 256,
    as_json: Json = False,
) -> None:
    """Argmax agreement and divergence (nats a token) of weights in 8 and in 4 bits, beside float32 torch, on a text.

    A model that fills masks has every second token masked, and those are scored.

    Example: `unmask bench quantized smollm2-135m-instruct`
    """
    original = DiffusionLM.from_pretrained(model, backend="torch")
    if original.tokenizer is None:
        raise UnmaskError(f"'{model}' has no tokenizer to read a probe text with")
    encoded = original.tokenizer.encode(PROBE if text is None else text_of(text), add_special_tokens=False)
    ids = np.array(encoded.ids[: min(most, original.config.max_length)])
    scored = np.arange(len(ids))
    if original.config.layout not in ("causal", "drafts"):
        scored = scored[1::2]
        ids[scored] = original.config.mask_token_id
    expected = log_probabilities(original, ids, scored)
    records, rows = [], []
    for quantize in QUANTIZED:
        lm = DiffusionLM.from_pretrained(model, quantize=quantize)
        found = log_probabilities(lm, ids, scored)
        size = int(sum(array.nbytes for array in lm.backend.network.weights.values()))
        agreement = float((found.argmax(-1) == expected.argmax(-1)).mean())
        divergence = float((np.exp(expected) * (expected - found)).sum(-1).mean())
        records.append({"quantize": quantize, "bytes": size, "agreement": agreement, "divergence": divergence})
        rows.append([quantize, f"{size / 1e6:.1f}", f"{agreement:.3f}", f"{divergence:.5f}"])
    columns = ["weights", "MB", "same best token", "KL, nats a token"]
    report(records, f"{original.name}: {len(scored)} tokens of a probe text", columns, rows, as_json)
