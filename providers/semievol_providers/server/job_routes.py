"""Routes of the fine-tuning API: create, list, retrieve, cancel, pause, resume, events, checkpoints.

A job is on disk before its creation is answered. Knows nothing of how jobs run.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError, json_response
from semievol_providers.server.chat_wire import parse
from semievol_providers.server.job_events import JobBody, new_job
from semievol_providers.server.services import Services, cursor_of, owner_of, services
from semievol_providers.server.state import FileRow, Page, Record

_METADATA_KEY = re.compile(r"^metadata\[(.+)\]$")
_UNFINISHED = ("validating_files", "queued", "running", "paused")
_MAX_PAGE = 100
_MAX_EVENTS = 1000


async def create_job(request: Request) -> Response:
    """POST /fine_tuning/jobs"""
    served, owner = services(request), owner_of(request)
    body = parse(await request.body(), JobBody).checked()
    known = served.state.find_job_by_key(body.run_key, owner) if body.run_key else None
    if known is not None:
        return json_response(shown(known))
    try:
        served.models.find(body.model, owner)
    except ApiError as error:
        raise ApiError(
            f"Model {body.model} is not available for fine-tuning or does not exist.",
            code="model_not_available",
            param="model",
        ) from error
    files = {"training_file": body.training_file, "validation_file": body.validation_file}
    rows = {which: _job_input(served, owner, which, name) for which, name in files.items() if name}
    limits, count = served.settings.limits, served.state.count
    if count("jobs", _UNFINISHED, owner) >= limits.queued_jobs:
        raise ApiError(
            f"Your queue of jobs is full: it holds {limits.queued_jobs}. Try again when one has ended, or cancel some.",
            status=429,
            code="queue_full",
        )
    if count("jobs", _UNFINISHED) >= limits.queued_jobs_all_keys:
        raise ApiError("The server's queue of jobs is full. Try again later.", status=429, code="queue_full")
    record = new_job(body)
    job_id = str(record["id"])
    folder = served.state.folder / "jobs" / job_id
    try:
        _link_inputs(served, folder, rows)
        with served.state.transaction():
            served.state.add_job(record, owner, body.run_key)
            served.state.add_event(job_id, "created", f"Created fine-tuning job: {job_id}")
            served.state.add_event(job_id, "validating", f"Validating training file: {body.training_file}")
    except BaseException:
        served.state.disk.remove_folder(folder)
        raise
    served.jobs.wake()
    return json_response(shown(record))


def _job_input(served: Services, owner: str, which: str, file_id: str) -> FileRow:
    row = served.state.find_file(file_id, owner)
    if row is None:
        raise ApiError(f"invalid {which}: {file_id}", param=which, code="file_not_found")
    if row.purpose != "fine-tune":
        raise ApiError(f"The file {file_id} has the purpose {row.purpose!r}; {which} needs 'fine-tune'.", param=which)
    return row


def _link_inputs(served: Services, folder: Path, rows: dict[str, FileRow]) -> None:
    """Give the job its own names of its files, so that deleting them does not touch it."""
    served.state.disk.make_folder(folder)
    for which, row in rows.items():
        served.state.disk.second_name(served.state.file_path(row.id), folder / which)


async def list_jobs(request: Request) -> Response:
    """GET /fine_tuning/jobs"""
    metadata: dict[str, str] = {}
    for name, value in request.query_params.items():
        matched = _METADATA_KEY.match(name)
        if matched:
            metadata[matched.group(1)] = value
    page = services(request).state.list_jobs(owner_of(request), metadata, cursor_of(request, 20, _MAX_PAGE))
    return json_response(_listed([shown(record) for record in page.records], page.has_more))


async def retrieve_job(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job_id}"""
    return json_response(shown(_found(request)))


async def cancel_job(request: Request) -> Response:
    """POST /fine_tuning/jobs/{job_id}/cancel"""
    return await _change(request, ("validating_files", "queued", "running", "paused"), "cancelled")


async def pause_job(request: Request) -> Response:
    """POST /fine_tuning/jobs/{job_id}/pause"""
    return await _change(request, ("queued", "running"), "paused")


async def resume_job(request: Request) -> Response:
    """POST /fine_tuning/jobs/{job_id}/resume"""
    return await _change(request, ("paused",), "queued")


_SAYS = {
    "cancelled": "The job has been cancelled",
    "paused": "The job has been paused",
    "queued": "The job has been resumed",
}


async def _change(request: Request, allowed: tuple[str, ...], status: str) -> Response:
    served, record = services(request), _found(request)
    job_id, was = str(record["id"]), record["status"]
    if was not in allowed:
        verb = request.url.path.rsplit("/", 1)[-1]
        raise ApiError(f"Job {job_id} has the status '{was}': it cannot be changed by '{verb}'.", code="invalid_state")
    record = record | {"status": status, "estimated_finish": None}
    if status == "cancelled":
        record["finished_at"] = int(time.time())
    with served.state.transaction():
        served.state.save_job(record)
        served.state.add_event(job_id, f"{status}/{time.time_ns()}", _SAYS[status])
    served.jobs.wake()
    return json_response(shown(record))


async def list_events(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job_id}/events"""
    record = _found(request)
    page = services(request).state.list_events(str(record["id"]), cursor_of(request, 20, _MAX_EVENTS))
    return json_response(_listed(list(page.records), page.has_more))


async def list_checkpoints(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job_id}/checkpoints"""
    record = _found(request)
    page = services(request).state.list_checkpoints(str(record["id"]), cursor_of(request, 10, _MAX_PAGE))
    return json_response(page_with_ids(page))


def page_with_ids(page: Page) -> dict[str, JsonValue]:
    """A list that names its first and last object."""
    ids: list[JsonValue] = [record["id"] for record in page.records]
    ends: dict[str, JsonValue] = {"first_id": ids[0], "last_id": ids[-1]} if ids else {}
    return _listed(list(page.records), page.has_more) | ends


def _found(request: Request) -> Record:
    job_id = request.path_params["job_id"]
    record = services(request).state.find_job(job_id, owner_of(request))
    if record is None:
        raise ApiError(f"Could not find fine tune: {job_id}", status=404, param="id", code="fine_tune_not_found")
    return record


def _listed(records: list[Record], has_more: bool) -> dict[str, JsonValue]:
    return {"object": "list", "data": [*records], "has_more": has_more}


def shown(record: Record) -> Record:
    """The job object as the API gives it."""
    return record
