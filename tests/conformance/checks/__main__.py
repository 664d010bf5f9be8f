"""`python -m conformance.checks FIXTURES`: recorded runs of the public references, made again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from unmask.cli.options import Json
from unmask.errors import UnmaskError


def conformance(
    path: Annotated[Path, typer.Argument(help="A folder of fixtures, or one of them.")],
    family: Annotated[str | None, typer.Option(help="Only this folder, or this family's.")] = None,
    as_json: Json = False,
) -> None:
    """Check this installation against recorded numbers of the public reference implementations.

    Forward passes, checkpoints read and written, generations step by step, rules and losses. The exit status
    is 1 if anything differs. docs/conformance.md says what a fixture is.

    Example: `make conformance FIXTURES=tests/conformance`
    """
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from conformance.checks.run import run
    from conformance.checks.table import render

    torch.set_num_threads(1)  # the networks are tiny: threads only wait for one another

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=as_json or not errors.is_terminal) as progress:
        task = progress.add_task("reading", total=1.0)
        report = run(path, family, lambda name, share: progress.update(task, description=name, completed=share))
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        console = Console()
        console = console if console.is_terminal else Console(width=max(100, console.width))
        console.print(render(report))
    if not report.holds:
        raise typer.Exit(1)


def main() -> None:
    """Runs the check; bad input is one line on standard error and exit status 2."""
    try:
        typer.run(conformance)
    except UnmaskError as error:
        print(f"conformance: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
