"""The HTTP surface: OpenAI's endpoints, Mercury's, and /v1/infill."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from unmask.decoding.request import MODES
from unmask.serving.api import assets, errors, running
from unmask.serving.api.access import AccessControl, AccessRules, note
from unmask.serving.api.edits import plan_apply, plan_edit
from unmask.serving.api.errors import APIError, ErrorBody
from unmask.serving.api.offers import offers
from unmask.serving.api.planner import GAP_TOKENS, RequestLimits, Models, Plan, Planner, can_chat, can_fill
from unmask.serving.api.docs import page
from unmask.serving.api.responses import ChatReply, Health, InfillReply, ModelCard, ModelList, TextReply
from unmask.serving.api.schema import ChatRequest, CompletionRequest, EditRequest, InfillRequest, Steering
from unmask.serving.api.answers import APPLY, CHAT, EDIT, INFILL, TEXT, Answer, AnswerFormat
from unmask.serving.api.streaming import EventStream, Stream
from unmask.serving.api.strict_json import parse
from unmask.serving.api.structure import Compiler
from unmask.serving.engine import Engine
from unmask.serving.metrics import CONTENT_TYPE, Metrics

Handler = TypeVar("Handler", bound=Callable[..., Any])
LARGE = 1 << 14  # bytes of a body from which on it is read into tokens off the event loop
WRONG: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody, "description": text}
    for code, text in {
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
    }.items()
}


@dataclass(frozen=True)
class Settings:
    """How a server treats requests."""

    rules: AccessRules = field(default_factory=AccessRules)
    bounds: RequestLimits = field(default_factory=RequestLimits)
    seconds: float = 300.0  # that one request may take, waiting included
    origins: tuple[str, ...] = ()  # of web pages that may ask from a browser


class StrictRequest(Request):
    """Reads bodies with one meaning only."""

    async def json(self) -> Any:
        return parse(await self.body())


class StrictRoute(APIRoute):
    """Hands handlers a StrictRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            if request.method == "POST":
                parse(await strict.body())  # FastAPI would take our errors for its own
            return await handle(strict)

        return strictly


def create_app(models: Models, engine: Engine, settings: Settings | None = None) -> ASGIApp:
    """The application; the caller closes the engine."""
    chosen = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    app = FastAPI(
        title="unmask", docs_url=None, redoc_url=None, lifespan=lifespan, description="Diffusion language models."
    )
    errors.install(app)
    metrics = Metrics()
    service = Service(models, engine, chosen, metrics)
    app.include_router(service.router())
    metrics.paths |= {getattr(route, "path", "") for route in service.router().routes}
    app.include_router(assets.router())
    metrics.paths.add("/")
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        described = plain()
        for methods in described["paths"].values():
            for method in methods.values():
                method["responses"].pop("422", None)  # such errors are 400 here
        for name in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(name, None)
        return described

    app.openapi = openapi  # type: ignore[method-assign]
    if chosen.origins:
        app.add_middleware(CORSMiddleware, allow_origins=chosen.origins, allow_methods=["*"], allow_headers=["*"])
    app.state.service = service
    return AccessControl(app, chosen.rules, metrics)


class Service:
    """The endpoints of one server."""

    def __init__(self, models: Models, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.models, self.engine, self.settings, self.metrics = models, engine, settings, metrics
        self.planner, self.began = Planner(models, settings.bounds), int(time.time())
        self.compiling = Compiler(settings.bounds.rules)
        self.offers: dict[str, list[dict[str, Any]]] = {}  # by model; made when first asked for

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(route_class=StrictRoute)

        def post(path: str, reply: type, summary: str) -> Callable[[Handler], Handler]:
            events = {"text/event-stream": {"schema": {"type": "string"}}}
            good: dict[int | str, dict[str, Any]] = {200: {"model": reply, "content": events}}
            return router.post(path, response_model=None, responses={**good, **WRONG}, summary=summary)

        @post("/v1/chat/completions", ChatReply, "Answer a dialogue")
        async def chat(request: Request, body: ChatRequest) -> Response:
            return await self.answer(request, body, CHAT, lambda: self.planner.chat(body))

        @post("/v1/completions", TextReply, "Continue text, or fill the gap before a suffix")
        async def completions(request: Request, body: CompletionRequest) -> Response:
            return await self.answer(request, body, TEXT, lambda: self.planner.completion(body))

        @post("/v1/fim/completions", TextReply, "Fill in the middle, as Mercury's clients ask")
        async def fim(request: Request, body: CompletionRequest) -> Response:
            return await self.answer(request, body, TEXT, lambda: self.planner.completion(body, GAP_TOKENS))

        @post("/v1/infill", InfillReply, "Fill a template with any gaps")
        async def infill(request: Request, body: InfillRequest) -> Response:
            return await self.answer(request, body, INFILL, lambda: self.planner.infill(body))

        @post("/v1/edit/completions", ChatReply, "Rewrite the marked region of a file")
        async def edit(request: Request, body: EditRequest) -> Response:
            return await self.answer(request, body, EDIT, lambda: plan_edit(self.planner, body))

        @post("/v1/apply/completions", ChatReply, "Merge an update into a file")
        async def apply(request: Request, body: EditRequest) -> Response:
            return await self.answer(request, body, APPLY, lambda: plan_apply(self.planner, body))

        wrong: dict[int | str, dict[str, Any]] = {code: WRONG[code] for code in (401, 404, 421)}

        @router.get("/v1/models", response_model=ModelList, responses={401: wrong[401], 421: wrong[421]})
        async def models() -> Response:
            cards = [await asyncio.to_thread(self.card, name) for name in self.models.models]
            return JSONResponse({"object": "list", "data": cards})

        @router.get("/v1/models/{name:path}", response_model=ModelCard, responses=wrong)
        async def model(name: str) -> Response:
            return JSONResponse(await asyncio.to_thread(self.card, self.models.find(name)[0]))

        @router.get("/health", response_model=Health, responses={503: {"model": Health}, 421: wrong[421]})
        async def health() -> Response:
            closing, names = self.engine.closing, list(self.models.models)
            state = {"models": names, "running": self.engine.running, "waiting": self.engine.waiting}
            return JSONResponse({"status": "closing" if closing else "ok", **state}, 503 if closing else 200)

        @router.get("/metrics", response_class=PlainTextResponse, responses={401: wrong[401], 421: wrong[421]})
        async def metrics() -> Response:
            return Response(self.metrics.render(self.engine), media_type=CONTENT_TYPE)

        @router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
        async def docs(request: Request) -> Response:
            return HTMLResponse(page(request.app.openapi()))

        return router

    def card(self, name: str) -> dict[str, Any]:
        """What clients are told of a model."""
        lm = self.models.models[name]
        if name not in self.offers:
            self.offers[name] = offers(self.planner, name, lm)
        return {
            "id": name,
            "object": "model",
            "created": self.began,
            "owned_by": "unmask",
            "layout": lm.config.layout,
            "modes": list(MODES[lm.config.layout]),
            "max_length": lm.config.max_length,
            "can_chat": can_chat(lm),
            "can_fill": can_fill(lm),
            "block_length": lm.defaults.block_length or lm.config.block_length or None,
            "defaults": asdict(lm.defaults),
            "offers": self.offers[name],
        }

    async def answer(self, request: Request, body: Steering, shape: AnswerFormat, make: Callable[[], Plan]) -> Response:
        """Plans, runs and answers one request."""
        async with asyncio.timeout(self.settings.seconds):
            await self.compiling.ready(body, self.models.find(body.model)[1])
        large = len(await request.body()) > LARGE
        plan = await asyncio.to_thread(make) if large else make()
        user = None if body.user is None else json.dumps(body.user)
        note(request.scope, model=plan.name, prompt=plan.prompt_tokens, user=user)
        if self.settings.rules.log_prompts:
            note(request.scope, body=body.model_dump_json(exclude_none=True))
        answer = Answer(shape, plan)
        try:
            async with asyncio.timeout(self.settings.seconds):
                if body.stream:
                    return await self._streamed(request, body, answer)
                whole = asyncio.ensure_future(self._whole(answer))
                return JSONResponse(self._used(request, plan, await running.unless_gone(request, whole)))
        except running.ClientGone:
            return APIError(499, "the client has gone").response()

    async def _whole(self, answer: Answer) -> dict[str, Any]:
        await running.settle(self.engine, answer.plan)
        follow = running.writers(answer.plan)
        outcomes = await running.collect(running.launch(self.engine, answer.plan, quiet=True), follow)
        return answer.whole(outcomes, follow)

    async def _streamed(self, request: Request, body: Steering, answer: Answer) -> Response:
        began, plan = time.perf_counter(), answer.plan
        if plan.filling is not None:
            await running.unless_gone(request, asyncio.ensure_future(running.settle(self.engine, plan)))
        jobs = running.launch(self.engine, plan)
        stream = Stream(answer, body, jobs, running.writers(plan), self.settings.seconds)
        said = False

        def first_text() -> None:
            nonlocal said
            if not said:
                said = True
                self.metrics.first_text.add(time.perf_counter() - began)

        def over() -> None:
            if len(stream.outcomes) == len(stream.follow):
                outcomes = [stream.outcomes[i] for i in sorted(stream.outcomes)]
                self._used(request, plan, {"usage": answer.usage(outcomes)})

        stream.on_text = first_text
        return EventStream(jobs, stream.parts(), over)

    def _used(self, request: Request, plan: Plan, whole: dict[str, Any]) -> dict[str, Any]:
        usage = whole["usage"]
        self.metrics.used(plan.name, usage)
        note(request.scope, tokens=usage["completion_tokens"], steps=usage["steps"])
        return whole
