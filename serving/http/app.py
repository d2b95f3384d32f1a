"""The web application: routes and errors. Runs under Serve, under any ASGI server, and in tests without."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from serving import replies
from serving.calls import Backend, ModelCard, Unavailable
from serving.http.endpoint import Endpoint, read_object
from serving.http.errors import ApiError, for_status
from serving.http.gate import EXPOSED, Gate
from serving.http.votes import Vote, VoteFile, as_pair
from serving.parsing import parse
from serving.protocol import ChatRequest, CompletionRequest
from serving.responses.protocol import ResponsesRequest
from serving.settings import GateSettings, ServingSettings

_PROBE_S = 5.0
_PAGE_POLICY = (
    "default-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "frame-ancestors 'none'"
)
_NOT_OFFERED = (
    "embeddings",
    "moderations",
    "conversations",
    "images/generations",
    "audio/speech",
    "audio/transcriptions",
)


def create_app(
    backend: Backend,
    settings: ServingSettings | None = None,
    *,
    gate: GateSettings | None = None,
    capacity: int = 128,
) -> FastAPI:
    """The endpoint over a backend. `capacity`: answers that run or wait; more are refused with 429."""
    settings = settings or ServingSettings()
    app = FastAPI(title="orpo-on-ray", version="1", redoc_url=None, redirect_slashes=False)
    endpoint = Endpoint(backend, settings, capacity=capacity)
    _add_generation(app, endpoint)
    _add_models(app, backend)
    _add_state(app, backend, endpoint)
    _add_page(app, settings)
    _add_errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.add_middleware(Gate, settings=gate or GateSettings.from_env(), origins=settings.cors_origins)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client for browsers sends many of its own
            expose_headers=EXPOSED,
        )
    return app


def _add_generation(app: FastAPI, endpoint: Endpoint) -> None:
    @app.post("/v1/chat/completions", openapi_extra=_body("ChatRequest"), responses=_RESPONSES)
    async def chat_completions(request: Request) -> Response:
        return await endpoint.chat(request)

    @app.post("/v1/completions", openapi_extra=_body("CompletionRequest"), responses=_RESPONSES)
    async def completions(request: Request) -> Response:
        return await endpoint.completion(request)

    @app.post("/v1/responses", openapi_extra=_body("ResponsesRequest"), responses=_RESPONSES)
    async def responses(request: Request) -> Response:
        return await endpoint.response(request)

    app.add_api_route(
        "/v1/responses/{path:path}",
        _not_stored,
        methods=["GET", "POST", "DELETE"],
        include_in_schema=False,
    )
    for path in _NOT_OFFERED:
        app.add_api_route(f"/v1/{path}", _not_offered, methods=["GET", "POST"], include_in_schema=False)


def _add_models(app: FastAPI, backend: Backend) -> None:
    async def cards() -> list[ModelCard]:
        async with asyncio.timeout(_PROBE_S):
            return await backend.models()

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse(replies.model_list(await cards()))

    @app.get("/v1/models/{name:path}", responses=_RESPONSES)
    async def model(name: str) -> Response:
        for card in await cards():
            if card.name == name:
                return JSONResponse(replies.model_object(card))
        raise ApiError(404, "there is no such model: see /v1/models", param="model", code="model_not_found")


def _add_state(app: FastAPI, backend: Backend, endpoint: Endpoint) -> None:
    @app.get("/health", responses=_RESPONSES)
    async def health() -> Response:
        async with asyncio.timeout(_PROBE_S):
            state = await backend.health()
        if not state.ready:
            raise ApiError(503, state.detail, code="unavailable", headers={"retry-after": "1"})
        return JSONResponse({"status": "ready", "model_sha256": state.model_sha256, "detail": state.detail})

    @app.get("/metrics")
    async def metrics() -> Response:
        async with asyncio.timeout(_PROBE_S):
            engine = await backend.metrics()
        text = endpoint.metrics.to_prometheus(endpoint.admission.num_inside) + engine
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI, settings: ServingSettings) -> None:
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    votes = VoteFile(settings.registry_path / "votes.jsonl")

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": _PAGE_POLICY})

    @app.post("/votes", include_in_schema=False)
    async def vote(request: Request) -> Response:
        pair = as_pair(parse(Vote, await read_object(request)))
        await asyncio.to_thread(votes.append, pair)
        return JSONResponse({"stored": True})


async def _not_offered() -> Response:
    raise ApiError(
        404,
        "this is not offered here: only chat completions, completions and responses are",
        code="not_offered",
    )


async def _not_stored() -> Response:
    raise ApiError(404, "responses are not stored here: send the whole conversation", code="not_offered")


# Errors.


def _add_errors(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(TimeoutError, _on_silence)
    app.add_exception_handler(Unavailable, _on_silence)
    app.add_exception_handler(Exception, _on_bug)


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _on_api_error(request, for_status(error.status_code, error.headers))


async def _on_silence(request: Request, _: Exception) -> Response:
    return await _on_api_error(request, for_status(503, {"retry-after": "1"}))


async def _on_bug(request: Request, _: Exception) -> Response:
    return await _on_api_error(request, for_status(500))


# The document at /openapi.json.

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "The request is at fault, or comes too soon",
        "content": {"application/json": {"schema": _ERROR}},
    },
    "5XX": {"description": "The server is at fault", "content": {"application/json": {"schema": _ERROR}}},
}


def _body(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        kinds = [
            (ChatRequest, "validation"),
            (CompletionRequest, "validation"),
            (ResponsesRequest, "validation"),
        ]
        _, defined = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        document.setdefault("components", {}).setdefault("schemas", {}).update(defined["$defs"])
        app.openapi_schema = document
    return app.openapi_schema
