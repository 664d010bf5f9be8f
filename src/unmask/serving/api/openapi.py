"""The description of all addresses, and a page made of it: nothing is loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import unmask
from unmask.serving.api.anthropic import CountRequest, TokenCount
from unmask.serving.api.errors import error_model
from unmask.serving.api.replies import Detokenized, Health, ModelCard, ModelList, Tokenized, Version
from unmask.serving.api.schema import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from unmask.serving.api.endpoints import Endpoint

REFERENCE = "#/components/schemas/{model}"
WRONG = {
    400: "A field is wrong, unknown or cannot be honoured.",
    401: "The API key is missing or unknown.",
    404: "No such model.",
    408: "It took too long.",
    413: "The body is too large.",
    415: "The body is not sent as JSON.",
    421: "Not a name of this server.",
    429: "All slots and the line are full.",
    500: "The model failed.",
    503: "The server is shutting down.",
}
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
code,pre{font-size:.9em}pre{overflow:auto;background:#8882;padding:.6rem}table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #ccc;padding:.3rem .5rem;text-align:left;vertical-align:top}h2{margin-top:2.5rem}
@media(prefers-color-scheme:dark){body{background:#161616;color:#eee}td,th{border-color:#444}a{color:#9bf}}
"""


OTHERS: tuple[tuple[str, str, type[BaseModel] | None, type[BaseModel] | None], ...] = (  # without a body: GET
    ("/tokenize", "Token ids of a text or a dialogue", TokenizeRequest, Tokenized),
    ("/detokenize", "The text of token ids", DetokenizeRequest, Detokenized),
    ("/v1/messages/count_tokens", "Tokens of a dialogue, as Anthropic's API", CountRequest, TokenCount),
    ("/v1/models", "The models that are served", None, ModelList),
    ("/v1/models/{name}", "One model and what it can be asked for", None, ModelCard),
    ("/health", "Whether requests are taken", None, Health),
    ("/version", "The version of the package", None, Version),
    ("/metrics", "Figures in Prometheus' format", None, None),
)


def describe(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1 of all addresses."""
    paths: dict[str, Any] = {}
    models: dict[type[BaseModel], None] = {}

    def content(model: type[BaseModel]) -> dict[str, Any]:
        models[model] = None
        return {"application/json": {"schema": {"$ref": REFERENCE.format(model=model.__name__)}}}

    def add(path: str, summary: str, body: type[BaseModel] | None, reply: type[BaseModel] | None) -> dict[str, Any]:
        codes = (401, 404, 421) if body is None else tuple(WRONG)
        answers: dict[str, Any] = {"200": {"description": "The answer."}}
        if reply is not None:
            answers["200"]["content"] = content(reply)
        answers |= {str(code): {"description": WRONG[code], "content": content(error_model(path))} for code in codes}
        what: dict[str, Any] = {"summary": summary, "responses": answers}
        if body is not None:
            what["requestBody"] = {"required": True, "content": content(body)}
        paths[path] = {"get" if body is None else "post": what}
        return what

    for endpoint in endpoints:
        what = add(endpoint.path, endpoint.summary, endpoint.body, endpoint.reply)
        what["requestBody"]["content"]["application/json"]["example"] = endpoint.example
        what["responses"]["200"]["content"].setdefault(endpoint.dialect.media_type, {"schema": {"type": "string"}})
    for other in OTHERS:
        add(*other)
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    paths["/health"]["get"]["responses"]["503"] = {"description": WRONG[503], "content": content(Health)}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    about = {"title": "unmask", "description": "Diffusion language models.", "version": unmask.__version__}
    return {"openapi": "3.1.0", "info": about, "paths": paths, "components": {"schemas": schemas["$defs"]}}


def page(api: dict[str, Any]) -> str:
    """HTML: every address with an example, the fields of its body, and those of its answer."""
    schemas = api["components"]["schemas"]
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>unmask</title><style>{STYLE}</style>"]
    parts.append('<h1>unmask</h1><p>The same as <a href="/openapi.json">openapi.json</a>.')
    for path, methods in api["paths"].items():
        for method, what in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(what.get('summary', ''))}")
            sent = what.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in sent:
                parts.append(f"<pre>{escape(json.dumps(sent['example'], indent=1))}</pre>")
            parts.append(_fields("field", sent, schemas))
            answered = what["responses"]["200"].get("content", {}).get("application/json", {})
            parts.append(_fields("of the answer", answered, schemas))
    return "\n".join(parts)


def _fields(title: str, content: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A table of the fields of a body; nothing for none."""
    schema = schemas.get(str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2], {})
    rows = [
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table><tr><th>{title}<th>type<th>" + "".join(rows) + "</table>" if rows else ""


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
