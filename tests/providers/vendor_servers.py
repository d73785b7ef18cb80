"""Loopback servers that are like one vendor: Azure, replayed from recorded bodies; one that ignores settings.

    async with AzureServer() as server:
        connect(azure_settings(server))

Azure's bodies lie in tests/data/azure, a cassette whose manifest says where they come from: there is no recording of
Azure itself. A slot names the situation, such as `jobs/running`; the server plays it, and fills in only what is the
request's own: ids, names, sizes, vectors. A tuned model answers only at a deployment. Knows nothing of providers'
insides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from semievol_api.capabilities import ProviderSettings
from semievol_api.cassettes.exchange import Response, load
from tests.conformance import ConformanceError, validate_request
from tests.providers.openai_loopback import VENDORS_OWN, Fault, LoopbackServer

AZURE = Path(__file__).resolve().parents[1] / "data" / "azure"
AZURE_KEY = "0123456789abcdef0123456789abcdef"
AZURE_VERSION = "2024-10-21"
AZURE_TOKEN = "eyJ0eXAiOiJKV1QifQ.planted.token"
AZURE_ACCOUNT = "/subscriptions/sub/resourceGroups/group/providers/Microsoft.CognitiveServices/accounts/acme"
KNOWN_JOB_FIELDS = {"model", "training_file", "validation_file", "hyperparameters", "suffix", "seed"}
NEXT_STATE = {"pending": "running", "running": "succeeded"}


def azure_recording() -> Mapping[str, Response]:
    """What was recorded, by situation."""
    return {one.slot: one.response for one in load(AZURE).exchanges.values()}


class IgnorantServer(LoopbackServer):
    """A vendor that takes `logprobs` and `seed` and does nothing about them."""

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        return super()._completion({k: v for k, v in body.items() if k not in ("logprobs", "top_logprobs", "seed")})


def _arm_error(status: int, code: str, message: str) -> web.Response:
    """An error as Azure's control plane words it."""
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


class AzureServer(LoopbackServer):
    """Azure OpenAI with classic paths. `deployments` are the models that answer.

    `chat` and `events` name the recorded answers that are played to everyone.
    """

    prefix = "/openai"

    def __init__(self, *, shows_suffix: bool = True) -> None:
        super().__init__()
        self.recorded = azure_recording()
        self.deployments = {"tiny"}
        self.events = "newest first"
        self.chat = "answer"
        self.controlled: dict[str, list[str]] = {}
        self.deployed_models: dict[str, str] = {}
        self.outcome = "Succeeded"
        self.quota = 10
        self._shows_suffix = shows_suffix
        self._own: dict[str, dict[str, Any]] = {}

    # ---------------------------------------------------------------------------------------- replay
    def body(self, situation: str) -> dict[str, Any]:
        """A recorded body, a fresh copy each time."""
        found: dict[str, Any] = json.loads(self.recorded[situation].body.to_bytes())
        return found

    def fail(self, situation: str, on: str = "") -> None:
        """Answer the next request (below `on`) with a recorded error."""
        self.faults.append(self._fault(situation, on))

    def move(self, job: str, situation: str) -> None:
        """Bring a job into a recorded state."""
        own = self._own[job]
        self.jobs[job] = {**self.body(f"jobs/{situation}"), **own}
        if situation == "succeeded":
            self.jobs[job]["fine_tuned_model"] = f"{own['model']}.ft-{job.removeprefix('ftjob-')}"

    def _fault(self, situation: str, on: str = "") -> Fault:
        answer = self.recorded[situation].to_http()
        return Fault(answer.status, answer.body, dict(answer.headers), on)

    def _play(self, situation: str, body: Mapping[str, Any] | None = None) -> web.Response:
        answer = self.recorded[situation].to_http()
        content = answer.body if body is None else json.dumps(body).encode()
        return web.Response(status=answer.status, body=content, headers=answer.headers)

    # ---------------------------------------------------------------------------------------- routes
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
            web.route("*", f"{AZURE_ACCOUNT}/deployments/{{name}}", self._control),
        ]

    # --------------------------------------------------------------------------------- control plane
    async def _control(self, request: web.Request) -> web.Response:
        """Deployments as Microsoft's reference of 2024-10-01 describes them; each is Accepted, Creating, then done."""
        if request.query.get("api-version") != "2024-10-01":
            return _arm_error(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        if request.headers.get("authorization") != f"Bearer {AZURE_TOKEN}":
            return _arm_error(401, "InvalidAuthenticationToken", "The access token is invalid.")
        name = request.match_info["name"]
        if request.method == "PUT":
            if self.quota <= len(self.controlled):
                return _arm_error(400, "InsufficientQuota", "This operation requires 1 new capacity in quota Tokens.")
            body = await request.json()
            made = name not in self.controlled
            self.controlled.setdefault(name, ["Accepted", "Creating", self.outcome])
            self.deployed_models[name] = body["properties"]["model"]["name"]
            return web.json_response(self._controlled(name), status=201 if made else 200)
        if name not in self.controlled:
            return _arm_error(404, "DeploymentNotFound", f"The deployment {name} was not found.")
        if request.method == "DELETE":
            del self.controlled[name]
            self.deployments.discard(name)
            return web.Response(status=202)
        states = self.controlled[name]
        if len(states) > 1:
            states.pop(0)
        if states[0] == "Succeeded":
            self.deployments.add(name)
        return web.json_response(self._controlled(name))

    def _controlled(self, name: str) -> dict[str, Any]:
        model = {"format": "OpenAI", "name": self.deployed_models[name], "version": "1"}
        properties = {"model": model, "provisioningState": self.controlled[name][0]}
        identity = {"id": f"{AZURE_ACCOUNT}/deployments/{name}", "name": name}
        return {**identity, "sku": {"name": "Standard", "capacity": 1}, "properties": properties}

    async def _check(self, request: web.Request) -> None:
        """Hold inference to OpenAI's specification, which Azure's bodies follow; version and key to Azure's."""
        if request.path.startswith(AZURE_ACCOUNT):
            return
        if request.query.get("api-version") != AZURE_VERSION:
            self.faults.insert(0, self._fault("errors/other api-version"))
        elif request.headers.get("api-key") != AZURE_KEY or "authorization" in request.headers:
            self.faults.insert(0, self._fault("errors/wrong key"))
        path = unquote(request.path)
        if not path.startswith("/openai/deployments/"):
            return
        published = "/v1/" + path.split("/", 4)[4]
        try:
            validate_request(request.method, published, await request.json(), extensions=VENDORS_OWN)
        except ConformanceError as error:
            self.violations.append(str(error))

    # ------------------------------------------------------------------------------------- inference
    async def _deployed_chat(self, request: web.Request) -> web.Response:
        if request.match_info["deployment"] not in self.deployments:
            return self._play("errors/not deployed")
        return self._play(f"chat/{self.chat}", self._cut(self.body(f"chat/{self.chat}"), await request.json()))

    @staticmethod
    def _cut(recorded: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """The recorded answer, with as many choices, tokens and alternatives as were asked for."""
        (choice,), usage = recorded["choices"], recorded["usage"]
        if choice["logprobs"]:
            entries = choice["logprobs"]["content"][: asked["max_tokens"]]
            if asked["max_tokens"] <= usage["completion_tokens"]:
                choice["finish_reason"] = "length"
            choice["message"]["content"] = "".join(entry["token"] for entry in entries)
            for entry in entries:
                entry["top_logprobs"] = entry["top_logprobs"][: asked.get("top_logprobs", 0)]
            choice["logprobs"] = {**choice["logprobs"], "content": entries} if asked.get("logprobs") else None
            usage["completion_tokens"] = len(entries)
        usage["completion_tokens"] *= asked.get("n", 1)
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        return {**recorded, "choices": [{**choice, "index": i} for i in range(asked.get("n", 1))]}

    async def _deployed_embed(self, request: web.Request) -> web.Response:
        if request.match_info["deployment"] not in self.deployments:
            return self._play("errors/not deployed")
        own: dict[str, Any] = json.loads((await self._embed(request)).text or "")
        frame = self.body("embeddings/vectors")
        data = [{**frame["data"][0], **item} for item in own["data"]]
        return self._play("embeddings/vectors", {**frame, "data": data, "usage": own["usage"]})

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != "tiny":
            return self._play("errors/no such model")
        return self._play("models/base")

    # -------------------------------------------------------------------------------- files and jobs
    async def _upload_pending(self, request: web.Request) -> web.Response:
        await self._upload(request)
        newest = next(reversed(self.files.values()))
        own = {name: newest[name] for name in ("id", "filename", "purpose")}
        return self._play("files/uploaded", {**self.body("files/uploaded"), **own})

    async def _list_files(self, request: web.Request) -> web.Response:
        wanted = [file for file in self.files.values() if file["purpose"] == request.query.get("purpose")]
        return self._play("files/list", {**self.body("files/list"), "data": wanted})

    async def _delete(self, request: web.Request) -> web.Response:
        await super()._delete(request)
        return self._play("files/deleted", {**self.body("files/deleted"), "id": request.match_info["id"]})

    async def _create_job(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if set(asked) - KNOWN_JOB_FIELDS:
            return self._play("errors/unknown field")
        accepted = self.body("jobs/accepted")
        number = next(self._ids)
        id = f"ftjob-{number:032x}"
        own = {name: value for name, value in asked.items() if name != "suffix" or self._shows_suffix}
        hyperparameters = accepted["hyperparameters"] | asked.get("hyperparameters", {})
        self._own[id] = {**own, "id": id, "created_at": number, "hyperparameters": hyperparameters}
        self.jobs[id] = {**accepted, **self._own[id]}
        return self._play("jobs/accepted", self.jobs[id])

    async def _list_jobs(self, request: web.Request) -> web.Response:
        return self._play("jobs/list", {**self.body("jobs/list"), "data": list(self.jobs.values())[::-1]})

    async def _job(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return self._play("errors/no such job")
        if job["status"] in NEXT_STATE:
            self.move(job["id"], NEXT_STATE[job["status"]])
        return web.json_response(job)

    async def _events(self, request: web.Request) -> web.Response:
        return self._play(f"events/{self.events}")

    async def _cancel_job(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if self.jobs[id]["status"] not in ("pending", "running"):
            return self._play("errors/has ended")
        self.move(id, "cancelled by request")
        return self._play("jobs/cancelled by request", self.jobs[id])


def azure_settings(server: AzureServer, **options: object) -> ProviderSettings:
    """A provider at it."""
    options = {"vendor": "azure", "base_url": server.base_url, **options}
    return ProviderSettings(
        name="azure",
        options=options,
        environ={
            "AZURE_OPENAI_API_KEY": AZURE_KEY,
            "AZURE_MANAGEMENT_TOKEN": AZURE_TOKEN,
        },
    )
