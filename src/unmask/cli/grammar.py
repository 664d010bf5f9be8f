"""How commands read a schema or a regular expression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unmask.errors import UnmaskError

JsonSchema = Annotated[
    Path | None, typer.Option("--json-schema", help="File with a JSON schema that the text will be valid under.")
]


Regex = Annotated[str | None, typer.Option("--regex", help="Regular expression that the whole text will match.")]


def grammar_options(json_schema: Path | None, regex: str | None) -> dict[str, Any]:
    """Options of `generate`; a file that cannot be read raises UnmaskError."""
    if json_schema is None:
        return {} if regex is None else {"regex": regex}
    try:
        text = json_schema.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnmaskError(f"{json_schema} cannot be read as UTF-8 text ({error})") from None
    return {"json_schema": text, "regex": regex}
