"""Loopback servers that are like one vendor: Azure's paths, login, states and bodies; one that ignores settings.

    async with AzureServer() as server:
        connect(azure_settings(server))

Azure's shapes follow its published REST description (authoring, api-version 2024-10-21; data plane alike) and its
examples: fields that have no value are left out, a new job is `pending`, a file is `pending` with 201, and a tuned
model answers only at a deployment. The exchanges are ours: there is no recording of Azure. Knows nothing of providers'
insides.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from aiohttp import web

from semievol_api.capabilities import ProviderSettings
from tests.conformance import ConformanceError, validate_request
from tests.providers.openai_loopback import VENDORS_OWN, LoopbackServer

AZURE_KEY = "0123456789abcdef0123456789abcdef"
AZURE_VERSION = "2024-10-21"
NOT_DEPLOYED = {
    "error": {
        "code": "DeploymentNotFound",
        "message": "The API deployment for this resource does not exist. If you created the deployment within the last "
        "5 minutes, please wait a moment and try again.",
    }
}
KNOWN_JOB_FIELDS = {"model", "training_file", "validation_file", "hyperparameters", "suffix", "seed"}


class IgnorantServer(LoopbackServer):
    """A vendor that takes `logprobs` and `seed` and does nothing about them."""

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        return super()._completion({k: v for k, v in body.items() if k not in ("logprobs", "top_logprobs", "seed")})


class AzureServer(LoopbackServer):
    """Azure OpenAI with classic paths. `deployments` are the models that answer."""

    prefix = "/openai"

    def __init__(self) -> None:
        super().__init__()
        self.deployments = {"tiny"}

    def _routes(self) -> list[web.RouteDef]:
        jobs = "/openai/fine_tuning/jobs"
        return [
            web.post("/openai/deployments/{deployment}/chat/completions", self._deployed_chat),
            web.post("/openai/deployments/{deployment}/embeddings", self._deployed_embed),
            web.get("/openai/models/{id}", self._model),
            web.post("/openai/files", self._upload_pending),
            web.get("/openai/files", self._list_files),
            web.delete("/openai/files/{id}", self._delete),
            web.post(jobs, self._create_job),
            web.get(jobs, self._list_jobs),
            web.get(f"{jobs}/{{id}}", self._job),
            web.get(f"{jobs}/{{id}}/events", self._events),
            web.post(f"{jobs}/{{id}}/cancel", self._cancel_job),
        ]

    async def _check(self, request: web.Request) -> None:
        """Hold inference to OpenAI's specification, which Azure's bodies follow; version and key to Azure's."""
        if request.query.get("api-version") != AZURE_VERSION:
            raise web.HTTPNotFound(text='{"error": {"code": "404", "message": "Resource not found"}}')
        if request.headers.get("api-key") != AZURE_KEY or "authorization" in request.headers:
            raise web.HTTPUnauthorized(text='{"error": {"code": "401", "message": "Access denied"}}')
        path = unquote(request.path)
        if not path.startswith("/openai/deployments/"):
            return
        published = "/v1/" + path.split("/", 4)[4]
        try:
            validate_request(request.method, published, await request.json(), extensions=VENDORS_OWN)
        except ConformanceError as error:
            self.violations.append(str(error))

    async def _deployed_chat(self, request: web.Request) -> web.Response:
        if request.match_info["deployment"] not in self.deployments:
            return web.json_response(NOT_DEPLOYED, status=404)
        answer = self._completion(await request.json())
        filters = {"hate": {"filtered": False, "severity": "safe"}}
        for choice in answer["choices"]:
            choice["content_filter_results"] = filters
        return web.json_response({**answer, "prompt_filter_results": [{"prompt_index": 0}], "system_fingerprint": None})

    async def _deployed_embed(self, request: web.Request) -> web.Response:
        if request.match_info["deployment"] not in self.deployments:
            return web.json_response(NOT_DEPLOYED, status=404)
        return await self._embed(request)

    async def _upload_pending(self, request: web.Request) -> web.Response:
        await self._upload(request)
        newest = next(reversed(self.files.values()))
        return web.json_response({**newest, "status": "pending"}, status=201)

    async def _create_job(self, request: web.Request) -> web.Response:
        body = await request.json()
        strange = set(body) - KNOWN_JOB_FIELDS
        if strange:
            message = f"Unknown fields: {', '.join(sorted(strange))}"
            return web.json_response({"error": {"code": "invalidPayload", "message": message}}, status=400)
        id = f"ftjob-{next(self._ids)}"
        self.jobs[id] = {"object": "fine_tuning.job", "id": id, "created_at": next(self._ids), **body}
        self.jobs[id]["status"] = "pending"
        return web.json_response(self.jobs[id], status=201)

    async def _list_jobs(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": list(self.jobs.values())[::-1], "has_more": False})

    async def _job(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        answer = web.json_response(job)
        job["status"] = {"pending": "running", "running": "succeeded"}.get(job["status"], job["status"])
        if job["status"] == "succeeded":
            job |= {"fine_tuned_model": f"{job['model']}.ft-{job['id']}-{job['suffix']}", "trained_tokens": 99}
        return answer


def azure_settings(server: AzureServer) -> ProviderSettings:
    """A provider at it."""
    options = {"vendor": "azure", "base_url": server.base_url}
    return ProviderSettings(name="azure", options=options, environ={"AZURE_OPENAI_API_KEY": AZURE_KEY})
