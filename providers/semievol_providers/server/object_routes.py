"""Routes of what the server keeps: files, fine-tuning jobs, batches and deployments.

Each is on disk before its creation is answered. A client's file name is kept as text and never used as a path. Knows
nothing of how jobs and batches run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError, json_response, whole_number
from semievol_providers.server.batches import UNFINISHED, BatchBody, new_batch
from semievol_providers.server.completions import parse
from semievol_providers.server.deletion import delete_expired
from semievol_providers.server.deletion import delete_file as delete_file_and_copies
from semievol_providers.server.deployments import DeploymentBody, DeploymentChange
from semievol_providers.server.job_events import JobBody, new_job
from semievol_providers.server.services import Services, cursor_of, metadata_filter, owner_of, services
from semievol_providers.server.state import FileRow, Page, Record, new_id

_PURPOSES = ("fine-tune", "batch", "assistants", "vision", "user_data", "evals")
_LISTED_AS = {"evals": "user_data"}
_MAX_FILES = 10_000


async def create_file(request: Request) -> Response:
    """POST /files"""
    served = services(request)
    delete_expired(served.state)
    try:
        async with request.form(max_files=1, max_fields=16) as form:
            purpose, upload = form.get("purpose"), form.get("file")
            if not isinstance(upload, UploadFile):
                raise ApiError("'file' is a required property", param="file")
            if purpose not in _PURPOSES:
                raise ApiError(f"{purpose!r} is not one of {list(_PURPOSES)} - 'purpose'", param="purpose")
            expires_after = _expires_after(form.get("expires_after[anchor]"), form.get("expires_after[seconds]"))
            file_id = new_id("file-")
            place = served.state.file_path(file_id)
            size = await asyncio.to_thread(served.state.disk.copy_in, upload.file, place)
            now = int(time.time())
            row = FileRow(
                id=file_id,
                filename=(upload.filename or "upload")[:255],
                purpose=_LISTED_AS.get(str(purpose), str(purpose)),
                bytes=size,
                created_at=now,
                expires_at=now + expires_after if expires_after is not None else None,
            )
    except MultiPartException as error:
        raise ApiError(f"The multipart body cannot be read: {error.message}") from error
    except OSError:
        await _read_rest(request)
        raise
    try:
        served.state.add_file(row, owner_of(request))
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return json_response(_file_object(row))


async def _read_rest(request: Request) -> None:
    """Read the rest of a body: a client that is still sending would not read the refusal."""
    with contextlib.suppress(RuntimeError, ClientDisconnect):  # there may be no rest, or nobody
        async for _ in request.stream():
            continue


def _expires_after(anchor: object, seconds: object) -> int | None:
    if anchor is None and seconds is None:
        return None
    lifetime_s = whole_number(seconds) if isinstance(seconds, str) else None
    if anchor != "created_at" or lifetime_s is None:
        raise ApiError("'expires_after' needs anchor 'created_at' and seconds.", param="expires_after")
    if not 3600 <= lifetime_s <= 2592000:
        raise ApiError("'expires_after.seconds' must be from 3600 to 2592000.", param="expires_after.seconds")
    return lifetime_s


async def list_files(request: Request) -> Response:
    """GET /files"""
    cursor = cursor_of(request, _MAX_FILES, _MAX_FILES)
    rows, has_more = services(request).state.list_files(owner_of(request), request.query_params.get("purpose"), cursor)
    return json_response(
        {
            "object": "list",
            "data": [_file_object(row) for row in rows],
            "first_id": rows[0].id if rows else "",
            "last_id": rows[-1].id if rows else "",
            "has_more": has_more,
        }
    )


async def retrieve_file(request: Request) -> Response:
    """GET /files/{file_id}"""
    return json_response(_file_object(_found_file(request)))


async def file_content(request: Request) -> Response:
    """GET /files/{file_id}/content"""
    row = _found_file(request)
    path = services(request).state.file_path(row.id)
    if path.is_symlink() or not path.is_file():  # somebody was in the state folder
        raise ApiError(f"The content of {row.id} is gone.", status=404, param="id", code="file_content_gone")
    return FileResponse(path, media_type="application/octet-stream", headers={"x-content-type-options": "nosniff"})


async def delete_file(request: Request) -> Response:
    """DELETE /files/{file_id}"""
    row = _found_file(request)
    delete_file_and_copies(services(request).state, row.id, owner_of(request))
    return json_response({"id": row.id, "object": "file", "deleted": True})


def _found_file(request: Request) -> FileRow:
    file_id = request.path_params["file_id"]
    row = services(request).state.find_file(file_id, owner_of(request))
    if row is None:
        raise ApiError(f"No such File object: {file_id}", status=404, param="id")
    return row


def _file_object(row: FileRow) -> dict[str, JsonValue]:
    """The API's file object."""
    shown: dict[str, JsonValue] = {
        "object": "file",
        "id": row.id,
        "purpose": row.purpose,
        "filename": row.filename,
        "bytes": row.bytes,
        "created_at": row.created_at,
        "status": "processed",
    }
    return shown if row.expires_at is None else shown | {"expires_at": row.expires_at}


_UNFINISHED = ("validating_files", "queued", "running", "paused")
_MAX_PAGE = 100
_MAX_EVENTS = 1000


async def create_job(request: Request) -> Response:
    """POST /fine_tuning/jobs"""
    served, owner = services(request), owner_of(request)
    body = parse(await request.body(), JobBody).checked()
    known = served.state.find_job_by_key(body.run_key, owner) if body.run_key else None
    if known is not None:
        return json_response(known)
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
        most = limits.queued_jobs
        raise _queue_full(f"Your queue of jobs is full: it holds {most}. Try again when one has ended, or cancel some.")
    if count("jobs", _UNFINISHED) >= limits.queued_jobs_all_keys:
        raise _queue_full("The server's queue of jobs is full. Try again later.")
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
    return json_response(record)


def _job_input(served: Services, owner: str, which: str, file_id: str) -> FileRow:
    row = served.state.find_file(file_id, owner)
    if row is None:
        raise ApiError(f"invalid {which}: {file_id}", param=which, code="file_not_found")
    if row.purpose != "fine-tune":
        raise ApiError(f"The file {file_id} has the purpose {row.purpose!r}; {which} needs 'fine-tune'.", param=which)
    return row


def _link_inputs(served: Services, folder: Path, rows: dict[str, FileRow]) -> None:
    """Give a job or a batch its own names of its files, so that deleting them does not touch it."""
    served.state.disk.make_folder(folder)
    for which, row in rows.items():
        served.state.disk.second_name(served.state.file_path(row.id), folder / which)


async def list_jobs(request: Request) -> Response:
    """GET /fine_tuning/jobs"""
    cursor = cursor_of(request, 20, _MAX_PAGE)
    page = services(request).state.list_jobs(owner_of(request), metadata_filter(request), cursor)
    return json_response(_listed(page))


async def retrieve_job(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job_id}"""
    return json_response(_found_job(request))


async def cancel_job(request: Request) -> Response:
    """POST /fine_tuning/jobs/{job_id}/cancel"""
    return await _change(request, ("validating_files", "queued", "running", "paused"), "cancelled")


async def pause_job(request: Request) -> Response:
    """POST /fine_tuning/jobs/{job_id}/pause"""
    return await _change(request, ("queued", "running"), "paused")


async def resume_job(request: Request) -> Response:
    """POST /fine_tuning/jobs/{job_id}/resume"""
    return await _change(request, ("paused",), "queued")


_EVENT_TEXTS = {
    "cancelled": "The job has been cancelled",
    "paused": "The job has been paused",
    "queued": "The job has been resumed",
}


async def _change(request: Request, allowed: tuple[str, ...], status: str) -> Response:
    served, record = services(request), _found_job(request)
    job_id, was = str(record["id"]), record["status"]
    if was not in allowed:
        verb = request.url.path.rsplit("/", 1)[-1]
        raise ApiError(f"Job {job_id} has the status '{was}': it cannot be changed by '{verb}'.", code="invalid_state")
    record = record | {"status": status, "estimated_finish": None}
    if status == "cancelled":
        record["finished_at"] = int(time.time())
    with served.state.transaction():
        served.state.save_job(record)
        served.state.add_event(job_id, f"{status}/{time.time_ns()}", _EVENT_TEXTS[status])
    served.jobs.wake()
    return json_response(record)


async def list_events(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job_id}/events"""
    record = _found_job(request)
    page = services(request).state.list_events(str(record["id"]), cursor_of(request, 20, _MAX_EVENTS))
    return json_response(_listed(page))


async def list_checkpoints(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job_id}/checkpoints"""
    record = _found_job(request)
    page = services(request).state.list_checkpoints(str(record["id"]), cursor_of(request, 10, _MAX_PAGE))
    return json_response(_page_with_ids(page))


def _page_with_ids(page: Page) -> dict[str, JsonValue]:
    """A list that names its first and last object."""
    ids: list[JsonValue] = [record["id"] for record in page.records]
    ends: dict[str, JsonValue] = {"first_id": ids[0], "last_id": ids[-1]} if ids else {}
    return _listed(page) | ends


def _found_job(request: Request) -> Record:
    job_id = request.path_params["job_id"]
    record = services(request).state.find_job(job_id, owner_of(request))
    if record is None:
        raise ApiError(f"Could not find fine tune: {job_id}", status=404, param="id", code="fine_tune_not_found")
    return record


def _listed(page: Page) -> dict[str, JsonValue]:
    return {"object": "list", "data": [*page.records], "has_more": page.has_more}


def _queue_full(message: str) -> ApiError:
    return ApiError(message, status=429, code="queue_full")


async def create_batch(request: Request) -> Response:
    """POST /batches"""
    served, owner = services(request), owner_of(request)
    body = parse(await request.body(), BatchBody).checked()
    row = served.state.find_file(body.input_file_id, owner)
    if row is None:
        raise ApiError(
            f"No such File object: {body.input_file_id}", param="input_file_id", code="file_not_found", status=404
        )
    if row.purpose != "batch":
        raise ApiError(
            f"The file {row.id} has the purpose {row.purpose!r}; a batch needs 'batch'.", param="input_file_id"
        )
    limits, count = served.settings.limits, served.state.count
    if count("batches", UNFINISHED, owner) >= limits.unfinished_batches:
        most = limits.unfinished_batches
        raise _queue_full(f"You have {most} batches under way, the most for one key. Try again later.")
    if count("batches", UNFINISHED) >= limits.unfinished_batches_all_keys:
        raise _queue_full("The server has too many batches under way. Try again later.")
    record = new_batch(body, limits)
    folder = served.state.batch_folder(str(record["id"]))
    kept = body.output_expires_after
    try:
        _link_inputs(served, folder, {"input": row})
        served.state.add_batch(record, owner, kept.seconds if kept is not None else None)
    except BaseException:
        served.state.disk.remove_folder(folder)
        raise
    served.batches.add(record, owner)
    return json_response(record)


async def list_batches(request: Request) -> Response:
    """GET /batches"""
    served = services(request)
    page = served.state.list_batches(owner_of(request), cursor_of(request, 20, _MAX_PAGE))
    records = [served.batches.current(record) for record in page.records]
    return json_response(_page_with_ids(Page(records, page.has_more)))


async def retrieve_batch(request: Request) -> Response:
    """GET /batches/{batch_id}"""
    return json_response(_found_batch(request))


async def cancel_batch(request: Request) -> Response:
    """POST /batches/{batch_id}/cancel"""
    record = _found_batch(request)
    if record["status"] not in ("validating", "in_progress", "cancelling"):
        raise ApiError(
            f"Batch {record['id']} has the status '{record['status']}': it cannot be cancelled.",
            code="invalid_state",
        )
    if record["status"] != "cancelling":
        services(request).batches.cancel(str(record["id"]))
    return json_response(_found_batch(request))


def _found_batch(request: Request) -> Record:
    batch_id, served = request.path_params["batch_id"], services(request)
    record = served.state.find_batch(batch_id, owner_of(request))
    if record is None:
        raise ApiError(f"No batch with id '{batch_id}'.", status=404, param="id", code="batch_not_found")
    return served.batches.current(record)


async def create_deployment(request: Request) -> Response:
    """POST /deployments"""
    served, owner = services(request), owner_of(request)
    body = parse(await request.body(), DeploymentBody)
    return json_response(served.deployments.create(body, owner))


async def list_deployments(request: Request) -> Response:
    """GET /deployments"""
    served, owner = services(request), owner_of(request)
    page = served.state.list_deployments(owner, metadata_filter(request), cursor_of(request, 20, _MAX_PAGE))
    data: list[JsonValue] = [served.deployments.current(record, owner) for record in page.records]
    return json_response({"object": "list", "data": data, "has_more": page.has_more})


async def retrieve_deployment(request: Request) -> Response:
    """GET /deployments/{deployment_id}"""
    return json_response(services(request).deployments.current(_found_deployment(request), owner_of(request)))


async def change_deployment(request: Request) -> Response:
    """PATCH /deployments/{deployment_id}"""
    record, body = _found_deployment(request), parse(await request.body(), DeploymentChange)
    return json_response(services(request).deployments.change(record, body, owner_of(request)))


async def delete_deployment(request: Request) -> Response:
    """DELETE /deployments/{deployment_id}"""
    record = _found_deployment(request)
    services(request).deployments.delete(record)
    return json_response({"id": record["id"], "object": "deployment", "deleted": True})


def _found_deployment(request: Request) -> Record:
    deployment_id = request.path_params["deployment_id"]
    record = services(request).state.find_deployment(deployment_id, owner_of(request))
    if record is None:
        raise ApiError(f"No such deployment: {deployment_id}", status=404, param="id", code="deployment_not_found")
    return record
