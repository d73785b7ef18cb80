"""The ASGI application: routes, error shapes, start and stop of all parts.

Knows nothing of what single routes do, nor of the command line.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from semievol_providers.local.children import ChildProcesses
from semievol_providers.server import chat_routes, object_routes
from semievol_providers.server.api_errors import ApiError, json_response
from semievol_providers.server.background import BackgroundTasks
from semievol_providers.server.batches import BatchRunner
from semievol_providers.server.completions import Answers
from semievol_providers.server.deletion import delete_model, sweep
from semievol_providers.server.deployments import DeploymentTable
from semievol_providers.server.disk import Disk, disk_full, is_full, unwritable
from semievol_providers.server.engine_client import EngineClient
from semievol_providers.server.gate import MEDIA_TYPE, Gate, Meter, RateLimits
from semievol_providers.server.job_runner import JobRunner
from semievol_providers.server.services import Services, owner_of, services
from semievol_providers.server.settings import ServerSettings
from semievol_providers.server.state import ModelTable, State, model_object

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


async def page(_request: Request) -> Response:
    """GET /"""
    html = files("semievol_providers.server").joinpath("page.html").read_text(encoding="utf-8")
    hashes = {kind: _hash(text) for kind, text in _INLINE.findall(html)}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(html, headers=headers, media_type="text/html")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def health(request: Request) -> Response:
    """GET /healthz"""
    parts = services(request)
    problems = parts.background.problems
    status = "degraded" if problems else "ok"
    if not request.state.known:  # who has no key learns how the server is, no more
        return json_response({"status": status})
    running = parts.jobs.running
    return json_response(
        {
            "status": status,
            "reasons": [{"part": part, "reason": reason} for part, reason in problems.items()],
            "engine_ready": parts.engine.ready.is_set(),
            "engine_pid": parts.engine.pid,
            "engine_restarts": parts.engine.restarts,
            "requests_in_flight": parts.engine.in_flight,
            "training": {"job": running[0], "pid": running[1]} if running else None,
        }
    )


async def metrics(request: Request) -> Response:
    """GET /metrics"""
    parts = services(request)
    single = {
        "engine_ready": float(parts.engine.ready.is_set()),
        "engine_restarts": float(parts.engine.restarts),
        "engine_requests_in_flight": float(parts.engine.in_flight),
    }
    by_status = {
        "jobs": {status: float(count) for status, count in parts.state.count_by_status("jobs").items()},
        "batches": {status: float(count) for status, count in parts.state.count_by_status("batches").items()},
    }
    return PlainTextResponse(parts.meter.text(single, by_status), media_type=MEDIA_TYPE)


_log = logging.getLogger(__name__)


class Application(Gate):
    """The whole server as one ASGI application; its parts start with its lifespan."""

    def __init__(self, app: Starlette, settings: ServerSettings, rates: RateLimits, meter: Meter) -> None:
        super().__init__(app, settings, rates, meter)
        self._starlette = app

    def stop_soon(self) -> None:
        """The server was asked to stop: refuse requests that still wait for the engine."""
        parts = self._starlette.state.services
        assert isinstance(parts, Services)
        parts.engine.refuse_waiting()


def build_app(settings: ServerSettings, disk: Disk | None = None) -> Application:
    """The server for these settings; `disk` is how it writes."""
    rates, meter = RateLimits(settings.limits), Meter()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        children = ChildProcesses(forks=settings.device == "cpu")
        state = State(settings.state, disk)
        sweep(state)
        parts = app.state.services = _services(settings, state, children, rates, meter)
        parts.jobs.start()
        parts.batches.start()
        try:
            yield
        finally:
            parts.background.close()
            await parts.batches.close()
            await asyncio.gather(parts.jobs.close(), parts.engine.close())
            children.close()
            state.close()

    app = Starlette(
        routes=_routes(),
        lifespan=lifespan,
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            OSError: _storage_error,
            sqlite3.Error: _storage_error,
            Exception: _bug,
        },
    )
    return Application(app, settings, rates, meter)


def _services(
    settings: ServerSettings, state: State, children: ChildProcesses, rates: RateLimits, meter: Meter
) -> Services:
    """The parts of the server; nothing runs yet."""
    models, background = ModelTable(settings, state), BackgroundTasks(settings.limits.retry_s)
    engine = EngineClient(settings, background, children)
    deployments = DeploymentTable(settings, state, models)
    answers = Answers(engine, deployments, settings.limits)
    return Services(
        settings=settings,
        state=state,
        models=models,
        engine=engine,
        jobs=JobRunner(settings, state, models, background, children),
        answers=answers,
        deployments=deployments,
        batches=BatchRunner(state, answers, background),
        background=background,
        rates=rates,
        meter=meter,
    )


def _routes() -> list[Route]:
    jobs = "/v1/fine_tuning/jobs"
    return [
        Route("/", page),
        Route("/healthz", health),
        Route("/metrics", metrics),
        Route("/v1/models", _list_models),
        Route("/v1/models/{model:path}", _retrieve_model, methods=["GET"]),
        Route("/v1/models/{model:path}", _delete_model, methods=["DELETE"]),
        Route("/v1/chat/completions", chat_routes.create_chat, methods=["POST"]),
        Route("/v1/chat/completions", chat_routes.list_chats, methods=["GET"]),
        Route("/v1/responses", chat_routes.create_response, methods=["POST"]),
        Route("/v1/completions", chat_routes.create_completion, methods=["POST"]),
        Route("/v1/embeddings", chat_routes.create_embedding, methods=["POST"]),
        Route("/v1/files", object_routes.create_file, methods=["POST"]),
        Route("/v1/files", object_routes.list_files, methods=["GET"]),
        Route("/v1/files/{file_id}", object_routes.retrieve_file, methods=["GET"]),
        Route("/v1/files/{file_id}", object_routes.delete_file, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", object_routes.file_content, methods=["GET"]),
        Route("/v1/batches", object_routes.create_batch, methods=["POST"]),
        Route("/v1/batches", object_routes.list_batches, methods=["GET"]),
        Route("/v1/batches/{batch_id}", object_routes.retrieve_batch, methods=["GET"]),
        Route("/v1/batches/{batch_id}/cancel", object_routes.cancel_batch, methods=["POST"]),
        Route("/v1/deployments", object_routes.create_deployment, methods=["POST"]),
        Route("/v1/deployments", object_routes.list_deployments, methods=["GET"]),
        Route("/v1/deployments/{deployment_id}", object_routes.retrieve_deployment, methods=["GET"]),
        Route("/v1/deployments/{deployment_id}", object_routes.change_deployment, methods=["PATCH"]),
        Route("/v1/deployments/{deployment_id}", object_routes.delete_deployment, methods=["DELETE"]),
        Route(jobs, object_routes.create_job, methods=["POST"]),
        Route(jobs, object_routes.list_jobs, methods=["GET"]),
        Route(jobs + "/{job_id}", object_routes.retrieve_job, methods=["GET"]),
        Route(jobs + "/{job_id}/cancel", object_routes.cancel_job, methods=["POST"]),
        Route(jobs + "/{job_id}/pause", object_routes.pause_job, methods=["POST"]),
        Route(jobs + "/{job_id}/resume", object_routes.resume_job, methods=["POST"]),
        Route(jobs + "/{job_id}/events", object_routes.list_events, methods=["GET"]),
        Route(jobs + "/{job_id}/checkpoints", object_routes.list_checkpoints, methods=["GET"]),
    ]


async def _list_models(request: Request) -> Response:
    return json_response({"object": "list", "data": services(request).models.list(owner_of(request))})


async def _retrieve_model(request: Request) -> Response:
    found = services(request).models.find(request.path_params["model"], owner_of(request))
    return json_response(model_object(found.name, found.created_at))


async def _delete_model(request: Request) -> Response:
    name, served = request.path_params["model"], services(request)
    await served.jobs.let_ended_process_go()
    delete_model(served, name, owner_of(request))
    return json_response({"id": name, "object": "model", "deleted": True})


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"Unknown request URL: {request.method} {request.url.path}."
        return ApiError(message, status=404, code="unknown_url").response()
    return ApiError(error.detail, status=error.status_code).response()


async def _storage_error(request: Request, error: Exception) -> Response:
    if is_full(error):
        _log.error("%s %s found no room on the disk", request.method, request.url.path)
        return disk_full().response()
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return unwritable().response()


async def _bug(_request: Request, error: Exception) -> Response:
    return ApiError(f"The server had an error: {type(error).__name__}.", status=500, code="internal").response()
