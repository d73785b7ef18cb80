"""Uploaded files, named by their content, so that the same bytes are never uploaded twice.

Knows nothing of what stands in a file.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

from msgspec import Struct

from semievol_providers.openai.sdk import Sdk

Purpose: TypeAlias = Literal["fine-tune", "batch"]

_WHAT = "files"
_UNUSABLE = frozenset({"error", "deleted", "deleting", "failed"})


class RemoteFile(Struct):
    """One file at the vendor."""

    id: str
    filename: str | None = None
    bytes: int | None = None
    status: str | None = None


class Files:
    """Upload, find and download."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk

    async def upload_once(self, content: bytes, name: str, purpose: Purpose) -> str:
        """The id of a file with this name and size, uploaded now unless it is already there."""
        for there in await self.named(name, purpose):
            if there.bytes in (None, len(content)):
                return there.id
        uploaded = await self._sdk.ask_for(
            RemoteFile,
            _WHAT,
            lambda client: client.files.with_raw_response.create(file=(name, content), purpose=purpose),
        )
        return uploaded.id

    async def named(self, start: str, purpose: Purpose) -> list[RemoteFile]:
        """The usable files whose names begin so."""
        found = self._sdk.items(
            RemoteFile,
            _WHAT,
            lambda client, paging: client.files.with_raw_response.list(purpose=purpose, **paging),
        )
        return [
            file async for file in found if (file.filename or "").startswith(start) and file.status not in _UNUSABLE
        ]

    async def download(self, file_id: str) -> bytes:
        """The content."""
        return await self._sdk.ask("files/content", lambda client: client.files.with_raw_response.content(file_id))


def content_name(content: bytes) -> str:
    """A file name made from the content: equal bytes, equal name."""
    return f"semievol-{hashlib.sha256(content).hexdigest()[:20]}.jsonl"


def short_key(run_key: str) -> str:
    """Eight hex digits that stand for a run key where there is little room."""
    return hashlib.sha256(run_key.encode()).hexdigest()[:8]
