"""What people and monitors read: the page at `/`, the metrics, the health.

The page is one file that asks the API like any client; nothing in it comes from elsewhere. Knows nothing of what
the numbers mean to anybody.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Literal

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from semievol_providers.server.api_errors import json_response
from semievol_providers.server.services import services

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
    troubles = parts.loops.troubles
    status = "degraded" if troubles else "ok"
    if not request.state.known:  # who has no key learns how the server is, no more
        return json_response({"status": status})
    running = parts.jobs.running
    return json_response(
        {
            "status": status,
            "reasons": [{"part": part, "reason": reason} for part, reason in troubles.items()],
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
    tables: tuple[Literal["jobs"], Literal["batches"]] = ("jobs", "batches")
    counted: dict[str, dict[str, float]] = {
        name: {f'status="{status}"': float(count) for status, count in parts.state.count_by_status(name).items()}
        for name in tables
    }
    text = parts.meter.text({**{name: {"": value} for name, value in single.items()}, **counted})
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")
