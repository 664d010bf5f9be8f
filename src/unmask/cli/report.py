"""How commands print: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from typing import Any

WIDE = 140  # columns of a table that goes to a file or a pipe, so that no heading is cut


def print_record(record: Any) -> None:
    """One line of JSON; with --csv on the command line, which stands in for --json, a CSV table."""
    if "--csv" not in sys.argv:
        print(json.dumps(record))
        return
    rows = table_rows(record)
    writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def table_rows(record: Any, lists: int = 2) -> list[dict[str, Any]]:
    """A record as rows of one table: one for each record of its first list of records, what stands beside that list
    repeated; names of nested values joined by dots, other lists as JSON.

    lists: how many that are one in another become rows.
    """

    def holds_records(value: Any) -> bool:
        return lists > 0 and isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)

    if holds_records(record):
        return [row for one in record for row in table_rows(one, lists - 1)]
    if not isinstance(record, dict):
        return [{"value": json.dumps(record)}]
    flat: dict[str, Any] = {}
    rows: list[dict[str, Any]] | None = None
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": held for inner, held in table_rows(value, 0)[0].items()}
        elif rows is None and holds_records(value):
            rows = [row for one in value for row in table_rows(one, lists - 1)]
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return [{**row, **flat} for row in rows or [{}]]


def report(record: Any, title: str, columns: list[str], rows: list[list[str]], as_json: bool) -> None:
    """Prints a table, or with as_json the record and nothing else."""
    if as_json:
        print_record(record)
        return
    from rich.console import Console

    from unmask.cli.terminal import table

    Console(width=None if sys.stdout.isatty() else WIDE).print(table(title, columns, rows))


def print_output(output: Any, seconds: float, as_json: bool, drawn: bool, extra: dict[str, Any]) -> None:
    """Text on standard output (unless it was drawn); figures on standard error, or all as JSON."""
    tokens = len(output.token_ids)
    figures = {"tokens": tokens, "steps": output.steps, "seconds": round(seconds, 3), "seed": output.seed}
    figures |= {"tokens_per_step": round(output.tokens_per_step, 2), "tokens_per_second": round(tokens / seconds, 1)}
    if as_json:
        print_record({**extra, "token_ids": output.token_ids, **figures})
        return
    if not drawn:
        print(output.text)
    print(
        f"{tokens} tokens in {output.steps} steps ({figures['tokens_per_step']} a step), {seconds:.2f} s, "
        f"{figures['tokens_per_second']} tokens/s, seed {output.seed}",
        file=sys.stderr,
    )
