"""The command line: each command a thin layer over the library."""

from __future__ import annotations

import sys

import typer

from unmask.cli.batch import batch
from unmask.cli.bench import BenchGroup
from unmask.cli.cache import cache
from unmask.cli.chat import chat
from unmask.cli.eval import evaluate
from unmask.cli.fill import fill
from unmask.cli.generate import generate
from unmask.cli.models import export, models, pull
from unmask.cli.race import race
from unmask.cli.recipes import recipes
from unmask.cli.serve import serve
from unmask.cli.solve import solve
from unmask.cli.train import adapt, finetune, train
from unmask.errors import UnmaskError

TRAINING_PACKAGES = ("accelerate", "pyarrow", "matplotlib", "yaml", "tensorboard")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Diffusion language models that write text all at once.",
)
for command in (generate, chat, fill, solve, race, train, finetune, adapt, pull, serve, batch, export):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(models, name="models")
app.add_typer(recipes, name="recipes")
app.add_typer(cache, name="cache")
bench = typer.Typer(cls=BenchGroup, no_args_is_help=True, help="Measure this machine, in a checkout.")
app.add_typer(bench, name="bench")


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit status 2."""
    try:
        app()
    except UnmaskError as error:
        print(f"unmask: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        if error.name and error.name.split(".")[0] in TRAINING_PACKAGES:
            print(f"unmask: this command needs '{error.name}'; run: pip install 'unmask[train]'", file=sys.stderr)
            sys.exit(2)
        raise
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away; nothing to report
        sys.exit(1)
