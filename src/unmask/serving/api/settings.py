"""How a server treats requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Who may ask, and what one request may ask for. Bodies, schemas and prompts come from anybody: all are bounded."""

    keys: tuple[str, ...] = ()  # API keys; none: everybody may ask
    hosts: tuple[str, ...] = ()  # names a request may call the server by; none: any
    origins: tuple[str, ...] = ()  # of web pages that may ask from a browser
    log_prompts: bool = False
    seconds: float = 300.0  # that one request may take, waiting included
    body_bytes: int = 1 << 20
    n: int = 8  # texts
    prompt_tokens: int = 1 << 20  # the model's own length is a bound too
    candidates: int = 32  # lengths tried of one gap
    ranged_gaps: int = 64  # gaps of which several lengths are tried
    canvases: int = 64  # read at once for one request of decisions
    schema_characters: int = 1 << 16  # of a schema as JSON, all tools together, or of a regular expression
    schema_depth: int = 32  # of lists and objects in a schema
    schema_seconds: float = 5.0  # of compiling it
