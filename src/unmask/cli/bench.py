"""`unmask bench`: in a checkout every file of `benchmarks/` that has a `command` is a bench."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from unmask.errors import UnmaskError

OUR_BENCHES = Path(__file__).parents[3] / "benchmarks"  # in a checkout


class BenchGroup(TyperGroup):
    """The benches of a checkout."""

    def list_commands(self, ctx: Any) -> list[str]:
        paths = OUR_BENCHES.glob("*.py")
        return sorted(path.stem for path in paths if "def command(" in path.read_text(encoding="utf-8"))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if not OUR_BENCHES.is_dir():
            raise UnmaskError("benches are part of the repository and run in a checkout of it; see the README")
        if not (OUR_BENCHES / f"{cmd_name}.py").is_file():
            return None
        if str(OUR_BENCHES.parent) not in sys.path:
            sys.path.insert(0, str(OUR_BENCHES.parent))
        bench = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        bench.command(cmd_name)(import_module(f"benchmarks.{cmd_name}").command)
        return typer.main.get_command(bench)
