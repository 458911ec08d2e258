"""The server: one FastAPI application over everything that answers requests."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from gpt_keras import __version__
from gpt_keras.serving import answer_json
from gpt_keras.serving.metrics import Metrics
from gpt_keras.serving.openai_api import APIError, OpenAIAPI, ServedModel
from gpt_keras.serving.openai_schema import ChatRequest, CompletionRequest
from gpt_keras.serving.servables import SavedModels
from gpt_keras.serving.tf_serving_api import TFServingAPI

chat_page = files("gpt_keras.serving") / "chat.html"
LOGGER = logging.getLogger("gpt_keras.serving")
_OPEN = ("/healthz", "/readyz", "/")
"""Answered without a key: who asks is a machine that looks whether this one lives, or a page that will ask for one."""
_METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD")


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take.

    Attributes:
        body_bytes: Of a request.
        body_seconds: For a request's body to arrive.
        seconds: For its answer.
        threads: Requests that are answered at a time.
        queue: Requests that wait for a thread; more are told to come again.
        new_tokens: Of a text that an engine writes.
    """

    body_bytes: int = 16 << 20
    body_seconds: float = 30.0
    seconds: float = 120.0
    threads: int = 8
    queue: int = 64
    new_tokens: int = 4096


class LimitError(Exception):
    """A request that goes beyond the limits.

    Args:
        status: The HTTP status of its answer.
        message: The answer.
        retry_after: Seconds after which it may be sent again.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


class Workers:
    """Threads that answer requests, and the queue before them.

    Args:
        limits: How many there are, and how many may wait.
        metrics: Told about it.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._threads = ThreadPoolExecutor(limits.threads, "request")
        self._pending = 0

    async def run(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, done in one of the threads.

        Raises:
            LimitError: The queue is full, or it takes too long; a thread that has begun goes on, for no graph of
                TensorFlow can be stopped.
        """
        if self._pending >= self._limits.threads + self._limits.queue:
            raise LimitError(429, "too many requests are waiting: try again", retry_after=1)
        self._pending += 1
        self._show()
        loop, job = asyncio.get_running_loop(), self._threads.submit(work)
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(job)), self._limits.seconds)
        except TimeoutError as error:
            job.cancel()  # where it has not begun
            raise LimitError(504, f"the answer took more than {self._limits.seconds:g} seconds") from error

    def _done(self) -> None:
        self._pending -= 1
        self._show()

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    def _show(self) -> None:
        running = min(self._pending, self._limits.threads)
        self._metrics.running.set(running)
        self._metrics.waiting.set(self._pending - running)


class Watch:
    """Around every request: asks for the key, counts and logs, and keeps what went wrong to itself.

    Args:
        app: What answers.
        metrics: Where requests are counted.
        api_key: The key, or `None`.
    """

    def __init__(self, app: Any, metrics: Metrics, api_key: str | None) -> None:
        self._app, self._metrics, self._key = app, metrics, api_key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        endpoint = _endpoint(scope["path"])
        try:
            if self._key is not None and endpoint not in _OPEN and not _has_key(Request(scope), self._key):
                error = APIError(401, "this server asks for a key: Authorization: Bearer KEY", "invalid_api_key")
                await _refusal(endpoint, error)(scope, receive, watched)
            else:
                await self._app(scope, receive, watched)
        except ClientDisconnect:
            status = status or 499  # it hung up before it had said what it wants
        except Exception:
            LOGGER.exception("a request failed")
            if not status:
                error = APIError(500, "the server failed on this request; its log says how")
                await _refusal(endpoint, error)(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, endpoint, status).inc()
            self._metrics.seconds.labels(endpoint).observe(seconds)
            client = scope["client"][0] if scope.get("client") else None
            entry = {"method": scope["method"], "path": scope["path"][:200], "status": status}
            LOGGER.info(json.dumps({**entry, "seconds": round(seconds, 4), "client": client}))


def make_app(
    models: SavedModels,
    text_models: dict[str, ServedModel],
    metrics: Metrics,
    limits: Limits = Limits(),
    api_key: str | None = None,
    cors_origins: list[str] | None = None,
) -> FastAPI:
    """The application.

    Args:
        models: SavedModels, by TF Serving's REST API.
        text_models: Model folders, by OpenAI's API.
        metrics: Shown at /metrics; the engines' are there too.
        limits: On requests.
        api_key: Asked for as `Authorization: Bearer KEY`, unless `None`.
        cors_origins: Web pages from these origins may ask, too.
    """
    workers = Workers(limits, metrics)
    openai = OpenAIAPI(text_models, limits.seconds, limits.new_tokens)
    tf_serving = TFServingAPI(models)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        models.start()
        yield
        for model in text_models.values():
            await asyncio.to_thread(model.engine.close)
        workers.close()
        models.close()

    app = FastAPI(title="gpt_keras", version=__version__, lifespan=lifespan)
    app.add_middleware(Watch, metrics=metrics, api_key=api_key)
    if cors_origins:  # outside of everything: a browser asks whether it may without any key
        app.add_middleware(
            CORSMiddleware, allow_origins=cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )

    @app.exception_handler(LimitError)
    async def refuse(request: Request, error: LimitError) -> Response:
        return _refusal(_endpoint(request.url.path), APIError(error.status, error.message))

    @app.exception_handler(APIError)
    async def refuse_as_openai(_: Request, error: APIError) -> Response:
        return error.response

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(chat_page.read_text("utf-8"), headers=_PAGE_HEADERS)

    @app.get("/healthz", response_class=PlainTextResponse, summary="Whether the server lives")
    async def healthz() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get(
        "/readyz",
        response_class=PlainTextResponse,
        summary="Whether models are loaded",
        responses={503: {"description": "Not yet"}},
    )
    async def readyz() -> Response:
        if not models.looked or not all(model.engine.ready.is_set() for model in text_models.values()):
            return Response("loading\n", 503, media_type="text/plain")
        names = [*models.names(), *text_models]
        return Response(
            f"{len(names)} models\n" if names else "no model\n", 200 if names else 503, media_type="text/plain"
        )

    @app.get("/metrics", response_class=PlainTextResponse, summary="Figures for Prometheus")
    async def figures() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/chat/completions", summary="OpenAI: a conversation's next turn", **_openai_body(ChatRequest))
    async def chat(request: Request) -> Response:
        return await openai.chat(request, await _body(request, limits))

    @app.post("/v1/completions", summary="OpenAI: continue texts", **_openai_body(CompletionRequest))
    async def complete(request: Request) -> Response:
        return await openai.complete(request, await _body(request, limits))

    async def only_post(request: Request) -> Response:
        response = APIError(405, f"{request.url.path} takes POST requests").response
        response.headers["Allow"] = "POST"
        return response

    async def answer(request: Request) -> Response:
        if request.method == "GET" and text_models and (found := _openai_models(request.url.path)) is not None:
            return found
        body = await _body(request, limits)
        raw = request.scope.get("raw_path") or request.url.path.encode()
        path = raw.split(b"?")[0].decode("ascii", "backslashreplace")
        status, content = await workers.run(lambda: tf_serving.answer(request.method, path, body))
        return _json(status, content)

    def _openai_models(path: str) -> Response | None:
        """The list of models that OpenAI's API runs, or one of them; other paths are TF Serving's."""
        name = path.removeprefix("/v1/models").removeprefix("/")
        if path == "/v1/models":
            return JSONResponse(openai.list_models())
        return JSONResponse(text_models[name].description) if name in text_models else None

    for method, path, summary in _TF_SERVING:
        extra = _PREDICT if path.endswith(":predict") else _EXAMPLES if method == "POST" else {}
        extra = {**extra, "parameters": [_parameter(name) for name in re.findall(r"{(\w+)}", path)]}
        app.add_api_route(path, answer, methods=[method], summary=summary, openapi_extra=extra, responses=_ERRORS)
    others = [method for method in _METHODS if method != "POST"]
    for path in _OPENAI:
        app.add_api_route(path, only_post, methods=others, include_in_schema=False)
    app.add_api_route("/v1/{rest:path}", answer, methods=list(_METHODS), include_in_schema=False)
    return app


_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_OPENAI = ("/v1/chat/completions", "/v1/completions")
_TF_SERVING = [
    ("GET", "/v1/models", "OpenAI: the models, where any are served by it"),
    *(
        ("POST", f"/v1/models/{{model}}{which}:{method}", f"TF Serving: {method}")
        for which in ("", "/versions/{version}", "/labels/{label}")
        for method in ("predict", "classify", "regress")
    ),
    ("GET", "/v1/models/{model}", "TF Serving: state of a model's versions"),
    ("GET", "/v1/models/{model}/versions/{version}", "TF Serving: state of a version"),
    ("GET", "/v1/models/{model}/metadata", "TF Serving: signatures"),
    ("GET", "/v1/models/{model}/versions/{version}/metadata", "TF Serving: signatures of a version"),
    ("GET", "/v1/models/{model}/labels/{label}/metadata", "TF Serving: signatures of a label's version"),
]
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A malformed request"},
    401: {"description": "No key"},
    404: {"description": "No such model"},
    408: {"description": "The body did not arrive"},
    413: {"description": "Too large a body"},
    429: {"description": "Too many requests; Retry-After says when to come again"},
    504: {"description": "It took too long"},
}


def _refusal(endpoint: str, error: APIError) -> Response:
    """The error in the form of the API that was asked."""
    if endpoint in _OPENAI:
        return error.response
    response = _json(error.status, answer_json.error(error.message))
    response.headers.update(
        {k: v for k, v in error.response.headers.items() if k in ("retry-after", "www-authenticate")}
    )
    return response


def _openai_body(kind: Any) -> dict[str, Any]:
    """What a route of OpenAI's API says of itself in the document of the API."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined(parts[value["$ref"].rpartition("/")[2]])
            return {key: inlined(inner) for key, inner in value.items()}
        return [inlined(inner) for inner in value] if isinstance(value, list) else value

    body = {"required": True, "content": {"application/json": {"schema": inlined(schema)}}}
    return {"openapi_extra": {"requestBody": body}, "responses": {**_ERRORS, 503: {"description": "The server ends"}}}


def _parameter(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer", "minimum": 0} if name == "version" else {"type": "string"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _body_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object", "properties": properties}}},
        }
    }


_PREDICT = _body_schema(
    {
        "signature_name": {"type": "string"},
        "instances": {"type": "array", "items": {}},
        "inputs": {},
    }
)
_EXAMPLES = _body_schema(
    {
        "signature_name": {"type": "string"},
        "context": {"type": "object"},
        "examples": {"type": "array", "items": {"type": "object"}},
    }
)


async def _body(request: Request, limits: Limits) -> bytes:
    """The request's body.

    Raises:
        LimitError: It is too large, or does not arrive.
    """
    too_large = LimitError(413, f"the body is larger than the {limits.body_bytes:,} bytes that this server takes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError as error:
        raise LimitError(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from error
    return b"".join(parts)


def _has_key(request: Request, key: str) -> bool:
    """Whether a request has the key, in UTF-8 or as HTTP's own Latin-1."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    sent = given.encode("latin-1").strip(b" \t")  # as text, other bytes would be blanks, too
    forms = [key.encode(), *([key.encode("latin-1")] if max(map(ord, key)) < 256 else [])]
    return scheme.lower() == "bearer" and any(hmac.compare_digest(sent, form) for form in forms)


def _endpoint(path: str) -> str:
    """The kind of a path: of these there are few, whatever is asked for."""
    if path in (*_OPEN, *_OPENAI, "/metrics", "/openapi.json", "/docs"):
        return path
    if path.lower().startswith("/v1/models"):
        return (
            f"/v1/models:{path.rpartition(':')[2]}"
            if path.endswith((":predict", ":classify", ":regress"))
            else "/v1/models"
        )
    return "other"


def _json(status: int, content: bytes) -> Response:
    return Response(content, status, media_type="application/json")
