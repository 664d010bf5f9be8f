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
from unmask.serving.api.decisions import DecisionReply, DecisionRequest
from unmask.serving.api.errors import error_model
from unmask.serving.api.replies import Detokenized, Health, ModelCard, ModelList, Tags, Tokenized, Version
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
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:auto;padding:1rem;color:#17212b;background:#f4f6f8}
code,pre{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.87em;overflow-wrap:anywhere}a{color:#1f5fae}
pre{overflow:auto;max-height:24rem;margin:0;background:#8881;border:1px solid #8884;border-radius:8px;padding:.7rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1rem}.pair>div{min-width:0}
h2{margin:2.5rem 0 .2rem;font-size:1.15rem;overflow-wrap:anywhere}h3{margin:.6rem 0 .3rem;font-size:.9rem}
nav a{display:inline-block;margin:.1rem 1.2rem .1rem 0}p{margin:.2rem 0}details{margin-top:.7rem;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}summary{cursor:pointer}
td,th{border-bottom:1px solid #8884;padding:.3rem .5rem;text-align:left;vertical-align:top}
@media(prefers-color-scheme:dark){body{background:#10151a;color:#e4eaf0}a{color:#7db5f5}}
"""


EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/decisions": {
        "input": "Where is my parcel?",
        "questions": [
            {"type": "choice", "name": "team", "choices": [{"value": "billing"}, {"value": "shipping"}]},
            {"type": "predicate", "name": "angry", "instructions": "The customer is angry."},
            {"type": "score", "name": "urgency", "instructions": "How urgent is it?", "range": [1, 5]},
        ],
    },
    "/tokenize": {"prompt": "Emma was"},
    "/detokenize": {"tokens": [72, 104]},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Why is the sky blue?"}]},
}
OTHERS: tuple[tuple[str, str, type[BaseModel] | None, type[BaseModel] | None], ...] = (  # without a body: GET
    ("/v1/decisions", "Distributions over the answers to questions", DecisionRequest, DecisionReply),
    ("/tokenize", "Token ids of a text or a dialogue", TokenizeRequest, Tokenized),
    ("/detokenize", "The text of token ids", DetokenizeRequest, Detokenized),
    ("/v1/messages/count_tokens", "Tokens of a dialogue, as Anthropic's API", CountRequest, TokenCount),
    ("/api/tags", "The models that are served, as Ollama's API", None, Tags),
    ("/api/version", "The version of the package, as Ollama's API", None, Version),
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
        what = add(*other)
        if other[0] in EXAMPLES:
            what["requestBody"]["content"]["application/json"]["example"] = EXAMPLES[other[0]]
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    paths["/health"]["get"]["responses"]["503"] = {"description": WRONG[503], "content": content(Health)}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    about = {"title": "unmask", "description": "Diffusion language models.", "version": unmask.__version__}
    return {"openapi": "3.1.0", "info": about, "paths": paths, "components": {"schemas": schemas["$defs"]}}


def page(api: dict[str, Any]) -> str:
    """HTML: every address with an example, its answer's shape, and the fields of its body."""
    schemas = api["components"]["schemas"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>unmask API</title><style>{STYLE}</style>",
        "<meta name=viewport content='width=device-width,initial-scale=1'><link rel=icon href=playground/icon.svg>",
        '<h1>unmask API</h1><p>The same as <a href="/openapi.json">openapi.json</a>; the <a href="/">playground</a>',
        "shows its own requests. A wrong request is answered with a status of 4xx and",
        f"<pre>{escape(json.dumps(shape(error_model('/v1'), schemas)))}</pre><nav>",
    ]
    parts += [f'<a href="#{escape(path)}"><code>{escape(path)}</code></a>' for path in api["paths"]]
    parts.append("</nav>")
    for path, methods in api["paths"].items():
        for method, what in methods.items():
            parts.append(f'<h2 id="{escape(path)}"><code>{method.upper()} {escape(path)}</code></h2>')
            parts.append(f"<p>{escape(what['summary'])}</p><div class=pair>")
            sent = what.get("requestBody", {}).get("content", {}).get("application/json", {})
            example = f"\n\n{json.dumps(sent['example'], indent=2)}" if sent else ""
            parts.append(f"<div><h3>Example</h3><pre tabindex=0>{method.upper()} {escape(path + example)}</pre></div>")
            answered = what["responses"]["200"].get("content", {}).get("application/json", {}).get("schema", {})
            text = json.dumps(shape(answered, schemas), indent=2) if answered else "text"
            parts.append(f"<div><h3>Answer</h3><pre tabindex=0>{escape(text)}</pre></div></div>")
            parts.append(_fields(sent, schemas))
    return "\n".join(parts)


def shape(schema: dict[str, Any] | type[BaseModel], schemas: dict[str, Any]) -> Any:
    """What an answer looks like: the type's name stands for each value."""
    if not isinstance(schema, dict):
        return shape(schemas[schema.__name__], schemas)
    if "$ref" in schema:
        return shape(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
        made = shape(kinds[0], schemas)
        return f"{made} or null" if isinstance(made, str) and len(kinds) < len(schema["anyOf"]) else made
    if "properties" in schema:
        return {name: shape(field, schemas) for name, field in schema["properties"].items()}
    if schema.get("type") == "array":
        return [shape(schema.get("items", {}), schemas)]
    return {} if schema.get("type") == "object" else _type(schema)


def _fields(content: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A table of the fields of a body; nothing for none."""
    schema = schemas.get(str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2], {})
    rows = [
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    ]
    head = f"<details><summary>{len(rows)} fields</summary><table><tr><th>field<th>type<th>"
    return head + "".join(rows) + "</table></details>" if rows else ""


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
