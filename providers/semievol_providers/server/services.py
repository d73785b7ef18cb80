"""What every route needs: settings, state, models, engine, jobs, and who is asking.

Knows nothing of single routes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.requests import Request

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError, check_metadata, whole_number
from semievol_providers.server.background import BackgroundTasks
from semievol_providers.server.batches import BatchRunner
from semievol_providers.server.completions import Answers
from semievol_providers.server.deployments import DeploymentTable
from semievol_providers.server.engine_client import EngineClient
from semievol_providers.server.gate import Meter, RateLimits
from semievol_providers.server.job_runner import JobRunner
from semievol_providers.server.settings import ServerSettings
from semievol_providers.server.state import Cursor, ModelTable, State

_METADATA_KEY = re.compile(r"^metadata\[(.+)\]$")


@dataclass(frozen=True, slots=True)
class Services:
    """The running parts of one server."""

    settings: ServerSettings
    state: State
    models: ModelTable
    engine: EngineClient
    jobs: JobRunner
    answers: Answers
    deployments: DeploymentTable
    batches: BatchRunner
    background: BackgroundTasks
    rates: RateLimits
    meter: Meter

    def charge(self, owner: str, usage: JsonValue) -> None:
        """Count the tokens of one answer's `usage`."""
        assert isinstance(usage, dict)
        total, prompt = int(str(usage["total_tokens"])), int(str(usage["prompt_tokens"]))
        self.rates.charge(owner, total)
        self.meter.count_tokens(prompt, total - prompt)


def services(request: Request) -> Services:
    """The parts of the server that this request came to."""
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


def owner_of(request: Request) -> str:
    """The owner that the key check found for this request."""
    owner = request.state.owner
    assert isinstance(owner, str)
    return owner


def metadata_filter(request: Request) -> dict[str, str]:
    """The pairs of a list request's `metadata[KEY]=VALUE`.

    Raises:
        ApiError: there are too many, or too long ones.
    """
    matches = ((_METADATA_KEY.match(name), value) for name, value in request.query_params.items())
    metadata = {found.group(1): value for found, value in matches if found}
    check_metadata(metadata)
    return metadata


def cursor_of(request: Request, default_limit: int, most: int) -> Cursor:
    """`limit`, `after` and `order` of a list request.

    Raises:
        ApiError: one of them cannot be used.
    """
    limit = whole_number(request.query_params.get("limit", str(default_limit)))
    if limit is None or not 1 <= limit <= most:
        raise ApiError(f"'limit' must be a number from 1 to {most}.", param="limit")
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError("'order' must be 'asc' or 'desc'.", param="order")
    return Cursor(limit, request.query_params.get("after") or None, order == "asc")
