"""A page about the endpoints, made from the OpenAPI description: nothing is loaded from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
code{font-size:.9em}table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ccc;padding:.3rem .5rem;
text-align:left;vertical-align:top}h2{margin-top:2.5rem}@media(prefers-color-scheme:dark){body{background:#161616;
color:#eee}td,th{border-color:#444}a{color:#9bf}}
"""


def page(api: dict[str, Any]) -> str:
    """HTML: every endpoint with the fields of its body."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>unmask</title><style>{STYLE}</style>"]
    parts.append('<h1>unmask</h1><p>The same as <a href="/openapi.json">openapi.json</a>.')
    for path, methods in api["paths"].items():
        for method, what in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(what.get('summary', ''))}")
            schema = what.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            name = str(schema.get("$ref", "")).rpartition("/")[2]
            if name:
                parts.append(_fields(api["components"]["schemas"][name]))
    return "\n".join(parts)


def _fields(schema: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    ]
    return "<table><tr><th>field<th>type<th>" + "".join(rows) + "</table>"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(t for t in map(_type, field["anyOf"]) if t != "null")
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("const", field.get("type", "")))
