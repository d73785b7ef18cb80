"""A small server on this machine that speaks the OpenAI protocol with canned answers, and fails on request.

    async with LoopbackServer() as server:
        ...ask server.base_url...
        server.requests[-1].body

`server.faults` holds answers for the next requests, whatever they ask; `Cut` breaks the connection after the
request was carried out. `server.clients` closes, before the server, whatever a test opened. Knows nothing of
providers.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import warnings
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.conformance import ConformanceError, validate_request

VENDORS_OWN = ("continue_final_message", "add_generation_prompt", "chat_template_kwargs")
END = {"token": "<|eot_id|>", "logprob": -0.01, "bytes": None, "top_logprobs": []}


@dataclass(frozen=True)
class Fault:
    """An answer in place of the right one."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    on: str = ""


@dataclass(frozen=True)
class Cut:
    """The request is carried out, and its answer lost."""

    on: str = ""
    method: str = ""


@dataclass
class Hold:
    """The request is carried out, and its answer kept back until `released`."""

    on: str = ""
    method: str = ""
    released: bool = False


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


def error_body(message: str, code: str | None = None, kind: str = "invalid_request_error") -> bytes:
    """An error as OpenAI words it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


class LoopbackServer:
    """The protocol's files, jobs, batches, models, chat and embeddings, kept in memory."""

    prefix = "/v1"

    def __init__(self, *, keep_metadata: bool = True, headers: dict[str, str] | None = None, first_id: int = 1) -> None:
        self.requests: list[Seen] = []
        self.faults: list[Fault | Cut | Hold] = []
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.models: list[dict[str, Any]] = [
            {"id": "tiny", "object": "model", "created": 1, "owned_by": "me", "shutdown_date": "2027-01-14"}
        ]
        self.stall_s = 0.0
        self.violations: list[str] = []
        """Requests that the published specification does not allow; leaving the block fails on the first."""
        self.clients = AsyncExitStack()
        self._keep_metadata = keep_metadata
        self._headers = headers or {}
        self._ids = itertools.count(first_id)
        app = web.Application(middlewares=[self._watch], client_max_size=2**28)
        app.add_routes(self._routes())
        self._server = TestServer(app)

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/embeddings", self._embed),
            web.get("/v1/models", self._list_models),
            web.get("/v1/models/{id}", self._model),
            web.delete("/v1/models/{id}", self._delete),
            web.delete("/v1/files/{id}", self._delete),
            web.post("/v1/files", self._upload),
            web.get("/v1/files", self._list_files),
            web.get("/v1/files/{id}/content", self._download),
            web.post("/v1/fine_tuning/jobs", self._create_job),
            web.get("/v1/fine_tuning/jobs", self._list_jobs),
            web.get("/v1/fine_tuning/jobs/{id}", self._job),
            web.get("/v1/fine_tuning/jobs/{id}/events", self._events),
            web.post("/v1/fine_tuning/jobs/{id}/cancel", self._cancel_job),
            web.post("/v1/batches", self._create_batch),
            web.get("/v1/batches", self._list_batches),
            web.get("/v1/batches/{id}", self._batch),
            web.post("/v1/batches/{id}/cancel", self._cancel_batch),
        ]

    async def __aenter__(self) -> LoopbackServer:
        await self._server.start_server()
        return self

    async def __aexit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        await self.clients.aclose()
        await self._server.close()
        if kind is None:
            assert not self.violations, self.violations[0]

    @property
    def base_url(self) -> str:
        """Where to ask."""
        return str(self._server.make_url(self.prefix))

    def asked(self, path: str, method: str = "POST") -> list[Seen]:
        """The requests to one path."""
        return [seen for seen in self.requests if seen.path == f"{self.prefix}{path}" and seen.method == method]

    def asked_with(self, method: str) -> list[Seen]:
        """The requests with one method."""
        return [seen for seen in self.requests if seen.method == method]

    @staticmethod
    def _meets(fault: Fault | Cut | Hold, request: web.Request) -> bool:
        wanted = "" if isinstance(fault, Fault) else fault.method
        return fault.on in request.path and wanted in ("", request.method)

    @web.middleware
    async def _watch(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.json() if request.content_type == "application/json" and request.can_read_body else None
        self.requests.append(
            Seen(
                request.method,
                request.path,
                dict(request.query),
                body,
                {k.lower(): v for k, v in request.headers.items()},
            )
        )
        await self._check(request)
        await asyncio.sleep(self.stall_s)
        if self.faults and self._meets(self.faults[0], request):
            fault = self.faults.pop(0)
            if isinstance(fault, Fault):
                return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
            await handler(request)
            while isinstance(fault, Hold) and not fault.released:  # noqa: ASYNC110  # set by another thread
                await asyncio.sleep(0.02)
            if request.transport is not None:
                request.transport.close()
            return web.Response()
        answer: web.StreamResponse = await handler(request)
        answer.headers.update(self._headers)
        return answer

    async def _check(self, request: web.Request) -> None:
        """Hold the request to the published specification, but for what vendors are known to add."""
        body: Any = await request.read() if request.content_type == "application/json" else None
        if request.content_type.startswith("multipart/"):
            form = await request.post()
            body = {name: value if isinstance(value, str) else value.filename for name, value in form.items()}
        try:
            validate_request(request.method, unquote(request.path_qs), body, extensions=VENDORS_OWN)
        except ConformanceError as error:
            self.violations.append(str(error))

    # ------------------------------------------------------------------------------------- inference
    async def _chat(self, request: web.Request) -> web.Response:
        return web.json_response(self._completion(await request.json()))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        words = [("Answer", -0.125), (":", -0.25), (" B", -0.5)]
        if body.get("continue_final_message"):
            words = words[2:]
        limit = body.get("max_tokens", body.get("max_completion_tokens", 99))
        entries = [self._entry(token, logprob, body.get("top_logprobs", 0)) for token, logprob in words][:limit]
        finish = "stop" if limit > len(words) else "length"
        text = "".join(entry["token"] for entry in entries)
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": finish,
            "logprobs": {"content": entries + ([END] if finish == "stop" else [])} if body.get("logprobs") else None,
        }
        n = body.get("n", 1)
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": i, **choice} for i in reversed(range(n))],
            "usage": {
                "prompt_tokens": 7,
                "completion_tokens": len(entries) * n,
                "total_tokens": 7 + len(entries) * n,
                "prompt_tokens_details": {"cached_tokens": 3},
            },
        }

    @staticmethod
    def _entry(token: str, logprob: float, top: int) -> dict[str, Any]:
        others = [(token, logprob), (" A", -1.5), ("B", -3.0), (" C", -9999.0)] if token == " B" else [(token, logprob)]
        return {
            "token": token,
            "logprob": logprob,
            "bytes": list(token.encode()),
            "top_logprobs": [{"token": t, "logprob": p, "bytes": None} for t, p in others][:top],
        }

    async def _embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        rows = [np.array([len(text), 1.0, -0.5], dtype="<f4") for text in body["input"]]
        packed = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": base64.b64encode(row.tobytes()).decode() if packed else row.tolist(),
            }
            for i, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 2 * len(rows), "total_tokens": 2 * len(rows)}
        return web.json_response({"object": "list", "data": data[::-1], "model": body["model"], "usage": usage})

    async def _list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models})

    async def _model(self, request: web.Request) -> web.Response:
        found = [model for model in self.models if model["id"] == request.match_info["id"]]
        if not found:
            return _not_found("The model does not exist", "model_not_found")
        return web.json_response(found[0])

    async def _delete(self, request: web.Request) -> web.Response:
        self.files.pop(request.match_info["id"], None)
        return web.json_response({"id": request.match_info["id"], "deleted": True})

    # ----------------------------------------------------------------------------------------- files
    async def _upload(self, request: web.Request) -> web.Response:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp's own, where a chunk ends inside a boundary
            form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        return web.json_response(self._keep_file(file.file.read(), file.filename, str(form["purpose"])))

    def _keep_file(self, content: bytes, name: str, purpose: str) -> dict[str, Any]:
        id = f"file-{next(self._ids)}"
        self.contents[id] = content
        self.files[id] = {
            "id": id,
            "object": "file",
            "filename": name,
            "bytes": len(content),
            "purpose": purpose,
            "created_at": 1,
            "status": "processed",
        }
        return self.files[id]

    async def _list_files(self, request: web.Request) -> web.Response:
        wanted = request.query.get("purpose")
        return _page([file for file in self.files.values() if wanted in (None, file["purpose"])], request)

    async def _download(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if id not in self.contents:
            return _not_found(f"No such File object: {id}", None)
        return web.Response(body=self.contents[id])

    # ------------------------------------------------------------------------------------------ jobs
    async def _create_job(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["training_file"] not in self.files:
            return web.Response(status=400, body=error_body("invalid training_file"))
        id = f"ftjob-{next(self._ids)}"
        self.jobs[id] = {
            "id": id,
            "object": "fine_tuning.job",
            "created_at": next(self._ids),
            "model": body["model"],
            "status": "validating_files",
            "training_file": body["training_file"],
            "fine_tuned_model": None,
            "organization_id": None,
            "user_provided_suffix": body.get("suffix"),
            "metadata": body.get("metadata") if self._keep_metadata else None,
            "error": {},
            "trained_tokens": None,
        }
        return web.json_response(self.jobs[id])

    async def _list_jobs(self, request: web.Request) -> web.Response:
        wanted = {name[9:-1]: value for name, value in request.query.items() if name.startswith("metadata[")}
        jobs = [job for job in self.jobs.values() if not wanted or wanted.items() <= (job["metadata"] or {}).items()]
        return _page(jobs[::-1], request)

    async def _job(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return _not_found("Could not find fine tune", "fine_tune_not_found")
        answer = web.json_response(job)
        following = {"validating_files": "queued", "queued": "running", "running": "succeeded"}
        job["status"] = following.get(job["status"], job["status"])
        if job["status"] == "succeeded":
            job.update(fine_tuned_model=f"ft:{job['model']}:{job['user_provided_suffix']}:x", trained_tokens=99)
        return answer

    async def _events(self, request: web.Request) -> web.Response:
        events: list[dict[str, Any]] = [
            {
                "id": f"ftevent-{i}",
                "object": "fine_tuning.job.event",
                "created_at": 100 + i // 2,
                "level": "info",
                "message": f"Step {i}",
                "type": "metrics",
                "data": {"step": i, "train_loss": 1 / (i + 1), "done": False, "note": "x"},
            }
            for i in range(250)
        ]
        return _page(events[::-1], request)

    async def _cancel_job(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return web.Response(status=400, body=error_body("Job has already ended", "invalid_state"))
        job["status"] = "cancelled"
        return web.json_response(job)

    # --------------------------------------------------------------------------------------- batches
    async def _create_batch(self, request: web.Request) -> web.Response:
        body = await request.json()
        id = f"batch_{next(self._ids)}"
        lines = [json.loads(line) for line in self.contents[body["input_file_id"]].splitlines()]
        self.batches[id] = {
            "id": id,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "created_at": 1,
            "status": "validating",
            "metadata": body.get("metadata") if self._keep_metadata else None,
            "errors": None,
            "output_file_id": None,
            "error_file_id": None,
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        return web.json_response(self.batches[id])

    async def _list_batches(self, request: web.Request) -> web.Response:
        return _page(list(self.batches.values())[::-1], request)

    async def _batch(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        answer = web.json_response(batch)
        if batch["status"] == "validating":
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress":
            self._finish(batch)
        return answer

    def _finish(self, batch: dict[str, Any]) -> None:
        """Requests for the model `broken` go to the error file, everything else is answered, last first."""
        lines = [json.loads(line) for line in self.contents[batch["input_file_id"]].splitlines()]
        good = [line for line in lines if line["body"]["model"] != "broken"]
        bad = [line for line in lines if line["body"]["model"] == "broken"]
        answers = [_line(line, 200, self._completion(line["body"])) for line in good[::-1]]
        faults = [_line(line, 400, json.loads(error_body("no such model", "model_not_found"))) for line in bad]
        batch["status"] = "completed"
        batch["output_file_id"] = self._keep_file(b"\n".join(answers), "out.jsonl", "batch_output")["id"]
        if faults:
            batch["error_file_id"] = self._keep_file(b"\n".join(faults), "err.jsonl", "batch_output")["id"]
        batch["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(bad)}

    async def _cancel_batch(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        batch["status"] = "cancelled"
        return web.json_response(batch)


def _line(line: dict[str, Any], status: int, body: dict[str, Any]) -> bytes:
    response = {"status_code": status, "request_id": "r", "body": body}
    return json.dumps({"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}).encode()


def _not_found(message: str, code: str | None) -> web.Response:
    return web.Response(status=404, body=error_body(message, code), content_type="application/json")


def _page(items: list[dict[str, Any]], request: web.Request) -> web.Response:
    """One page of a list, after the cursor."""
    after, limit = request.query.get("after"), int(request.query.get("limit", "20"))
    ids = [item["id"] for item in items]
    start = ids.index(after) + 1 if after in ids else 0
    shown = items[start : start + limit]
    return web.json_response({"object": "list", "data": shown, "has_more": start + limit < len(items)})
