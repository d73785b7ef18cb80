"""Routes of the Batch API: create, list, retrieve, cancel. A batch is on disk before its creation is answered.

Knows nothing of how batches run.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from semievol_providers.server.api_errors import ApiError, json_response
from semievol_providers.server.batch_wire import UNFINISHED, BatchBody, new_batch
from semievol_providers.server.chat_wire import parse
from semievol_providers.server.job_routes import page_with_ids
from semievol_providers.server.services import cursor_of, owner_of, services
from semievol_providers.server.state import Page, Record

_MAX_PAGE = 100


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
        raise ApiError(
            f"You have {limits.unfinished_batches} batches under way, the most for one key. Try again later.",
            status=429,
            code="queue_full",
        )
    if count("batches", UNFINISHED) >= limits.unfinished_batches_all_keys:
        raise ApiError("The server has too many batches under way. Try again later.", status=429, code="queue_full")
    record = new_batch(body, limits)
    folder = served.state.batch_folder(str(record["id"]))
    kept = body.output_expires_after
    try:
        served.state.disk.make_folder(folder)
        served.state.disk.second_name(served.state.file_path(row.id), folder / "input")
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
    return json_response(page_with_ids(Page(records, page.has_more)))


async def retrieve_batch(request: Request) -> Response:
    """GET /batches/{batch_id}"""
    return json_response(_found(request))


async def cancel_batch(request: Request) -> Response:
    """POST /batches/{batch_id}/cancel"""
    record = _found(request)
    if record["status"] not in ("validating", "in_progress", "cancelling"):
        raise ApiError(
            f"Batch {record['id']} has the status '{record['status']}': it cannot be cancelled.",
            code="invalid_state",
        )
    if record["status"] != "cancelling":
        services(request).batches.cancel(str(record["id"]))
    return json_response(_found(request))


def _found(request: Request) -> Record:
    batch_id, served = request.path_params["batch_id"], services(request)
    record = served.state.find_batch(batch_id, owner_of(request))
    if record is None:
        raise ApiError(f"No batch with id '{batch_id}'.", status=404, param="id", code="batch_not_found")
    return served.batches.current(record)
