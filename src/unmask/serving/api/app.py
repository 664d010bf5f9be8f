"""The HTTP surface: every address, and how a request goes from its body to its answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

import unmask
from unmask.errors import UnmaskError
from unmask.serving.api import decisions, errors, execution, openapi, playground
from unmask.serving.api.access import AccessControl, note
from unmask.serving.api.answers import Answer
from unmask.serving.api.anthropic import CountRequest
from unmask.serving.api.dialect import Dialect
from unmask.serving.api.endpoints import ENDPOINTS, Endpoint
from unmask.serving.api.errors import INVALID, MISSING, APIError
from unmask.serving.api.planner import Models, Planner, can_chat, can_fill, tokenizer_of
from unmask.serving.api.schema import DetokenizeRequest, Steering, StreamOptions, TokenizeRequest
from unmask.serving.api.settings import Settings
from unmask.serving.api.streaming import Stream
from unmask.serving.api.strict_json import parse
from unmask.serving.api.structure import Compiler, Structure
from unmask.serving.api.work import Workers
from unmask.serving.engine import Engine, Refused
from unmask.serving.metrics import CONTENT_TYPE, Metrics

Body = TypeVar("Body", bound=BaseModel)
Handler = Callable[[Request], Response | Awaitable[Response]]


def create_app(models: Models, engine: Engine, settings: Settings | None = None) -> ASGIApp:
    """The application; the caller closes the engine."""
    chosen = settings or Settings()
    metrics = Metrics()
    service = Service(models, engine, chosen, metrics)
    routes = service.routes()
    metrics.paths |= {route.path for route in routes if isinstance(route, Route)}
    app = Starlette(routes=[*routes, *playground.routes()])
    app.router.redirect_slashes = False
    metrics.paths.add("/")
    for kind in (APIError, UnmaskError, ValidationError, Refused, TimeoutError, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)
    return AccessControl.around(app, chosen, metrics)


def read_body(raw: bytes, kind: type[Body]) -> Body:
    """A body that holds to a schema; raises APIError that says what is wrong with it."""
    value = parse(raw)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise errors.invalid(error, value) from None


class Service:
    """The endpoints of one server."""

    def __init__(self, models: Models, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.models = models
        self.engine = engine
        self.settings = settings
        self.metrics = metrics
        self.planner = Planner(models, settings)
        self.began = int(time.time())
        self.compiler = Compiler(settings)
        self.workers = Workers()
        self.cards: dict[str, dict[str, Any]] = {}  # by model; made when first asked for

    def routes(self) -> list[BaseRoute]:
        """All addresses."""
        api = openapi.describe(ENDPOINTS)
        described = JSONResponse(api)
        docs = HTMLResponse(openapi.page(api))
        reads: dict[str, Handler] = {
            "/v1/models": self._list_models,
            "/v1/models/{name:path}": self._one_model,
            "/health": self._health,
            "/metrics": self._metrics,
            "/version": self._version,
            "/api/version": self._version,
            "/api/tags": self._tags,
            "/openapi.json": lambda request: described,
            "/docs": lambda request: docs,
        }
        posts: dict[str, Any] = {
            **{endpoint.path: partial(self.answer, endpoint=endpoint) for endpoint in ENDPOINTS},
            "/v1/decisions": self._decide,
            "/tokenize": partial(self._counted, kind=TokenizeRequest, answer=self._tokens),
            "/detokenize": partial(self._counted, kind=DetokenizeRequest, answer=self._text),
            "/v1/messages/count_tokens": partial(self._counted, kind=CountRequest, answer=self._count),
        }
        return [
            *(Route(path, handler, methods=["GET"]) for path, handler in reads.items()),
            *(Route(path, handler, methods=["POST"]) for path, handler in posts.items()),
        ]

    async def answer(self, request: Request, endpoint: Endpoint) -> Response:
        """Plans, runs and answers one request."""
        raw = await request.body()
        async with asyncio.timeout(self.settings.seconds):
            dialect, body, structure = await self.workers.do(partial(self._read, raw, endpoint), len(raw))
            if structure is not None:
                await self.compiler.ready(structure, self.models.find(body.model)[1])
            plan = await self.workers.do(partial(endpoint.plan, self.planner, body), len(raw))
        note(request.scope, model=plan.name, prompt=plan.prompt_tokens)
        if body.user is not None:
            note(request.scope, user=json.dumps(body.user))
        if self.settings.log_prompts:
            note(request.scope, body=json.dumps(body.model_dump(mode="json", exclude_none=True)))
        answer = Answer(endpoint.format, plan)
        async with asyncio.timeout(self.settings.seconds):
            if body.stream:
                return await self._streamed(request, dialect, body, answer)
            whole = await execution.unless_gone(request, self._whole(answer))
        self._used(request, plan.name, whole["usage"])
        return JSONResponse(dialect.whole(whole))

    async def _decide(self, request: Request) -> Response:
        """Reads distributions over answers."""
        raw = await request.body()
        async with asyncio.timeout(self.settings.seconds):
            plan = await self.workers.do(
                lambda: decisions.plan(self.planner, read_body(raw, decisions.DecisionRequest)), len(raw)
            )
            note(request.scope, model=plan.name, prompt=plan.prompt_tokens)
            reply = await execution.unless_gone(request, decisions.run(self.engine, self.workers, plan))
        usage = {"prompt_tokens": plan.prompt_tokens, "completion_tokens": 0, "steps": reply["usage"]["canvases"]}
        self._used(request, plan.name, usage)
        return JSONResponse(reply)

    def _read(self, raw: bytes, endpoint: Endpoint) -> tuple[Dialect, Any, Structure | None]:
        """How a request is answered, its body as it is planned, and the structure of its text."""
        dialect = endpoint.dialect(read_body(raw, endpoint.body))
        body = dialect.request()
        if body.stream and body is not dialect.sent:  # other APIs tell the usage of every stream
            body = body.model_copy(update={"stream_options": StreamOptions(include_usage=True)})
        return dialect, body, self.planner.structure(body)

    async def _whole(self, answer: Answer) -> dict[str, Any]:
        await execution.settle(self.engine, answer.plan)
        writers = execution.writers(answer.plan)
        return answer.whole(await execution.collect(self.engine, answer.plan, writers), writers)

    async def _streamed(self, request: Request, dialect: Dialect, body: Steering, answer: Answer) -> Response:
        began = time.perf_counter()
        plan = answer.plan
        if plan.filling is not None:
            await execution.unless_gone(request, execution.settle(self.engine, plan))
        return Stream(
            answer,
            body,
            dialect,
            execution.Execution(self.engine, plan.name, plan.prepared, plan.taken),
            execution.writers(plan),
            self.settings.seconds,
            first_text=lambda: self.metrics.first_text.observe(time.perf_counter() - began),
            finished=lambda outcomes: self._used(request, plan.name, answer.usage(outcomes)),
        )

    def _used(self, request: Request, model: str, usage: dict[str, Any]) -> None:
        self.metrics.used(model, usage)
        note(request.scope, tokens=usage["completion_tokens"], steps=usage["steps"])

    def _list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.card(name) for name in self.models.models]})

    def _one_model(self, request: Request) -> Response:
        return JSONResponse(self.card(self.models.find(request.path_params["name"])[0]))

    async def _health(self, request: Request) -> Response:
        closing = self.engine.closing
        state = {"status": "closing" if closing else "ok", "models": list(self.models.models)}
        counts = {"running": self.engine.running, "waiting": self.engine.waiting}
        return JSONResponse({**state, **counts}, 503 if closing else 200)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(self.engine.metrics), media_type=CONTENT_TYPE)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": unmask.__version__})

    async def _tags(self, request: Request) -> Response:
        """The models, as Ollama's clients list them."""
        told = {"size": 0, "digest": "", "modified_at": datetime.fromtimestamp(self.began, UTC).isoformat()}
        found = [{"name": name, "model": name, **told, "details": {}} for name in self.models.models]
        return JSONResponse({"models": found})

    async def _counted(self, request: Request, kind: type[Body], answer: Callable[[Body], dict[str, Any]]) -> Response:
        """Answers a body that is only read into tokens, or tokens."""
        raw = await request.body()
        return JSONResponse(await self.workers.do(lambda: answer(read_body(raw, kind)), len(raw)))

    def _count(self, body: CountRequest) -> dict[str, Any]:
        chat = body.chat()
        return {"input_tokens": len(self.planner.prompt_of(chat, self.planner.structure(chat)))}

    def _tokens(self, body: TokenizeRequest) -> dict[str, Any]:
        _, lm = self.models.find(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise APIError(400, "a text is given by one of the fields prompt and messages", param="prompt")
        ids = self.planner.prompt_of(body) if body.prompt is None else self.planner.ids(body.prompt, lm)
        names = [tokenizer_of(lm).id_to_token(token) for token in ids] if body.return_token_strs else None
        return {"count": len(ids), "max_model_len": lm.config.max_length, "tokens": ids, "token_strs": names}

    def _text(self, body: DetokenizeRequest) -> dict[str, Any]:
        _, lm = self.models.find(body.model)
        if any(not 0 <= token < lm.config.vocab_size for token in body.tokens):
            message = f"tokens hold an id outside the vocabulary of {lm.config.vocab_size}"
            raise APIError(400, message, param="tokens")
        return {"prompt": tokenizer_of(lm).decode(body.tokens, skip_special_tokens=False)}

    def card(self, name: str) -> dict[str, Any]:
        """What clients are told of a model."""
        if name not in self.cards:
            lm = self.models.models[name]
            found = lm.capabilities()
            self.cards[name] = {
                "id": name,
                "object": "model",
                "created": self.began,
                "owned_by": "unmask",
                "layout": lm.config.layout,
                "modes": list(found["modes"]),
                "max_length": lm.config.max_length,
                "max_model_len": lm.config.max_length,
                "can_chat": can_chat(lm),
                "can_fill": can_fill(lm),
                "block_length": lm.defaults.block_length or lm.config.block_length or None,
                "grid": list(lm.config.grid) or None,
                "defaults": asdict(lm.defaults),
                "parameters": found["parameters"],
                "offers": _offers(found["modes"], can_fill(lm)),
            }
        return self.cards[name]


def _offers(modes: dict[str, list[dict[str, Any]]], fills: bool) -> list[dict[str, Any]]:
    """For each mode and rule, and for filling, the fields that a request may carry."""
    out = []
    for fill in (False, True)[: 1 + fills]:
        for mode, ways in modes.items():
            for way in ways:
                fields = [name for name in ("seed", *way["parameters"]) if not (fill and name == "block_length")]
                options = {name: value for name, value in way["options"].items() if name not in ("rule", "sampler")}
                if fill and options:  # of blocks, and a template is filled as a whole
                    continue
                told = {"rule": way["rule"], "sampler": way["sampler"], "options": options, "fields": fields}
                out.append({"fill": fill, "mode": None if fill else mode, **told})
    return out


async def _failed(request: Request, error: Exception) -> Response:
    path = request.url.path
    answer = errors.of(error)
    if isinstance(error, HTTPException):
        messages = {404: f"there is nothing at {path[:200]}", 405: "this address takes another method"}
        kind = MISSING if error.status_code == 404 else INVALID
        answer = APIError(error.status_code, messages.get(error.status_code, str(error)), kind)
    return answer.response(path)
