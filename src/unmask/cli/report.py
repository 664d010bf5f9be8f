"""How commands print: a table for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any


def report(record: Any, title: str, columns: list[str], rows: list[list[str]], as_json: bool) -> None:
    """Prints a table, or with as_json the record as one line of JSON and nothing else."""
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from unmask.cli.terminal import table

    Console().print(table(title, columns, rows))


def print_output(output: Any, seconds: float, as_json: bool, drawn: bool, extra: dict[str, Any]) -> None:
    """Text on standard output (unless it was drawn); figures on standard error, or all as JSON."""
    tokens = len(output.token_ids)
    figures = {"tokens": tokens, "steps": output.steps, "seconds": round(seconds, 3), "seed": output.seed}
    figures |= {"tokens_per_step": round(output.tokens_per_step, 2), "tokens_per_second": round(tokens / seconds, 1)}
    if as_json:
        print(json.dumps({**extra, "token_ids": output.token_ids, **figures}))
        return
    if not drawn:
        print(output.text)
    print(
        f"{tokens} tokens in {output.steps} steps ({figures['tokens_per_step']} a step), {seconds:.2f} s, "
        f"{figures['tokens_per_second']} tokens/s, seed {output.seed}",
        file=sys.stderr,
    )
