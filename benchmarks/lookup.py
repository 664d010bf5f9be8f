"""Copied drafts: tokens a step and a second with and without them, and how often a copied draft comes true."""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import typer
from benchmarks.speed import PROMPTS

from unmask.cli.options import Json, Tokens, load
from unmask.cli.report import report
from unmask.decoding.suffixes import LONGEST, Suffixes
from unmask.errors import UnmaskError
from unmask.evaluation.speed import chat

TEXT = (
    "The Harrow bridge was built in 1887 by Thomas Ellery for the Northern Railway. It is 214 metres long and has "
    "nine arches of red sandstone. In 1953 a flood damaged the third arch, which was rebuilt in concrete."
)
ASKED = ("Repeat this text exactly", "List the years in this text", "Rewrite in the past tense", "Correct the spelling")
COPYING = [f"{ask}: {TEXT}" for ask in ASKED]
WAYS = (("ar", None), ("verify", 0), ("verify", 3), ("verify", 5), ("diffusion", 0), ("diffusion", 5))


def command(
    model: Annotated[str, typer.Argument(help="A model with modes ar, verify and diffusion.")] = "default",
    max_new_tokens: Tokens = 64,
    rounds: Annotated[int, typer.Option(help="Rounds, the ways in turns; medians are printed.")] = 5,
    as_json: Json = False,
) -> None:
    """Tokens a step and tokens/s at batch 1 by `lookup`; which copies come true.

    Example: `unmask bench lookup`
    """
    lm = load(model, "cpu", None)
    records = list[dict[str, Any]]()
    for kind, texts in (("chat", PROMPTS[:6]), ("copying", COPYING)):
        prompts = [chat(lm, text) for text in texts]
        written: list[Any] = []
        seconds: list[list[float]] = [[] for _ in WAYS]
        for _ in range(rounds):
            written = []
            for (mode, lookup), times in zip(WAYS, seconds, strict=True):
                began = time.perf_counter()
                asked = {} if lookup is None else {"lookup": lookup}
                written.append([lm.generate(p, max_new_tokens, mode=mode, temperature=0.0, **asked) for p in prompts])
                times.append(time.perf_counter() - began)
        plain = [out.token_ids for out in written[0]]
        for (mode, lookup), outs, times in zip(WAYS, written, seconds, strict=True):
            if mode == "verify" and [out.token_ids for out in outs] != plain:
                raise UnmaskError(f"mode verify with lookup {lookup} wrote other tokens than mode ar")
            tokens = sum(len(out.token_ids) for out in outs)
            rates = {"tokens/step": round(tokens / sum(out.steps for out in outs), 2)}
            rates["tokens/s"] = round(tokens / statistics.median(times), 1)
            records.append({"prompts": kind, "mode": mode, "lookup": "-" if lookup is None else lookup, **rates})
    columns = list(records[0])
    rows = [[str(value) for value in record.values()] for record in records]
    shares = came_true(lm, max_new_tokens)
    report({"ways": records, "came_true": shares}, f"{lm.name}, {max_new_tokens} tokens", columns, rows, as_json)
    if not as_json:
        print("copies that came true, by tokens matched:", ", ".join(f"{n}: {share}" for n, share in shares.items()))


def came_true(lm: Any, max_new_tokens: int) -> dict[int, str]:
    """How often the token that followed the longest match came next in chats of mode ar, by the match's length."""
    counts = {size: [0, 0] for size in range(1, LONGEST + 1)}
    for text in PROMPTS:
        prompt = chat(lm, text)
        suffixes = Suffixes()
        suffixes.extend(lm.encode(prompt)[0])
        for token in lm.generate(prompt, max_new_tokens, mode="ar", temperature=0.0).token_ids:
            found, size = suffixes.follow(1)
            if found:
                counts[size][0] += found[0] == token
                counts[size][1] += 1
            suffixes.extend([token])
    return {size: f"{right} of {count}" for size, (right, count) in counts.items()}
