"""Routes of the Files API.

A client's file name is kept as text and never used as a path. Knows nothing of what is in a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from semievol_api.records import JsonValue
from semievol_providers.server.api_errors import ApiError, json_response
from semievol_providers.server.deletion import delete_expired
from semievol_providers.server.deletion import delete_file as delete_file_and_copies
from semievol_providers.server.services import cursor_of, owner_of, services
from semievol_providers.server.state import FileRow, new_id

PURPOSES = ("fine-tune", "batch", "assistants", "vision", "user_data", "evals")
_LISTED_AS = {"evals": "user_data"}
_MAX_PAGE = 10_000


async def create_file(request: Request) -> Response:
    """POST /files"""
    served = services(request)
    delete_expired(served.state)
    try:
        async with request.form(max_files=1, max_fields=16) as form:
            purpose, upload = form.get("purpose"), form.get("file")
            if not isinstance(upload, UploadFile):
                raise ApiError("'file' is a required property", param="file")
            if purpose not in PURPOSES:
                raise ApiError(f"{purpose!r} is not one of {list(PURPOSES)} - 'purpose'", param="purpose")
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
        await _hear_out(request)
        raise
    try:
        served.state.add_file(row, owner_of(request))
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return json_response(file_object(row))


async def _hear_out(request: Request) -> None:
    """Read the rest of a body: who is still sending would not read the refusal."""
    with contextlib.suppress(RuntimeError, ClientDisconnect):  # there may be no rest, or nobody
        async for _ in request.stream():
            continue


def _expires_after(anchor: object, seconds: object) -> int | None:
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at" or not isinstance(seconds, str) or not seconds.isdigit():
        raise ApiError("'expires_after' needs anchor 'created_at' and seconds.", param="expires_after")
    if not 3600 <= int(seconds) <= 2592000:
        raise ApiError("'expires_after.seconds' must be from 3600 to 2592000.", param="expires_after.seconds")
    return int(seconds)


async def list_files(request: Request) -> Response:
    """GET /files"""
    cursor = cursor_of(request, _MAX_PAGE, _MAX_PAGE)
    rows, has_more = services(request).state.list_files(owner_of(request), request.query_params.get("purpose"), cursor)
    return json_response(
        {
            "object": "list",
            "data": [file_object(row) for row in rows],
            "first_id": rows[0].id if rows else "",
            "last_id": rows[-1].id if rows else "",
            "has_more": has_more,
        }
    )


async def retrieve_file(request: Request) -> Response:
    """GET /files/{file_id}"""
    return json_response(file_object(_found(request)))


async def file_content(request: Request) -> Response:
    """GET /files/{file_id}/content"""
    row = _found(request)
    path = services(request).state.file_path(row.id)
    if path.is_symlink() or not path.is_file():  # somebody was in the state folder
        raise ApiError(f"The content of {row.id} is gone.", status=404, param="id", code="file_content_gone")
    return FileResponse(path, media_type="application/octet-stream", headers={"x-content-type-options": "nosniff"})


async def delete_file(request: Request) -> Response:
    """DELETE /files/{file_id}"""
    row = _found(request)
    delete_file_and_copies(services(request).state, row.id, owner_of(request))
    return json_response({"id": row.id, "object": "file", "deleted": True})


def _found(request: Request) -> FileRow:
    file_id = request.path_params["file_id"]
    row = services(request).state.find_file(file_id, owner_of(request))
    if row is None:
        raise ApiError(f"No such File object: {file_id}", status=404, param="id")
    return row


def file_object(row: FileRow) -> dict[str, JsonValue]:
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
