"""A loopback server of Fireworks' shape: bodies are held to the types of its SDK, answers are made from them.

    async with FireworksServer() as server:
        connect(fireworks_settings(server))

Fireworks itself was never called: states and errors are those that the SDK (1.2.30) types and public reports describe.
Knows nothing of providers' insides.
"""

from __future__ import annotations

import datetime
from typing import Any, Literal, get_args, get_origin, get_type_hints

from aiohttp import web
from fireworks._utils import PropertyInfo
from fireworks.types import (
    Dataset,
    Deployment,
    SupervisedFineTuningJob,
    dataset_create_params,
    deployment_create_params,
    deployment_scale_params,
    supervised_fine_tuning_job_create_params,
)

from semievol_api.capabilities import ProviderSettings
from tests.providers.openai_loopback import LoopbackServer, error_body

ACCOUNT = "acme"
KEY = "fw_planted0123456789abcdef"
BASE = "accounts/fireworks/models/qwen3-8b"
NEXT_JOB = {
    "JOB_STATE_CREATING": "JOB_STATE_VALIDATING",
    "JOB_STATE_VALIDATING": "JOB_STATE_PENDING",
    "JOB_STATE_PENDING": "JOB_STATE_RUNNING",
    "JOB_STATE_RUNNING": "JOB_STATE_WRITING_RESULTS",
}
_NOW = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC).isoformat()


def wire_names(params: type) -> dict[str, Any]:
    """What a body of these parameters may hold: the names on the wire, and their types."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(params, include_extras=True).items():
        marks = [hint]
        while marks and get_origin(marks[0]) is not None and get_origin(marks[0]) is not Literal:
            marks = [*get_args(marks[0]), *marks[1:]] if get_args(marks[0]) else marks[1:]
            if get_origin(marks[0]) in (list, dict):
                break
        alias = next((mark.alias for mark in marks if isinstance(mark, PropertyInfo) and mark.alias), name)
        found[alias] = marks[0]
    return found


def status_body(code: int, message: str) -> dict[str, Any]:
    """An error as Google's gateway words it."""
    return {"code": code, "message": message, "details": []}


class FireworksServer(LoopbackServer):
    """Datasets, supervised jobs, models and deployments of one account, and inference over the OpenAI protocol."""

    prefix = "/inference/v1"

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.tunings: dict[str, dict[str, Any]] = {}
        self.own_models: set[str] = set()
        self.deployed: dict[str, dict[str, Any]] = {}
        self.outcome = "JOB_STATE_COMPLETED"
        self.deployment_outcome = "READY"
        self.quota = 10

    @property
    def url(self) -> str:
        """The control plane's address."""
        return str(self._server.make_url("")).rstrip("/")

    def _routes(self) -> list[web.RouteDef]:
        account = f"/v1/accounts/{ACCOUNT}"
        jobs = f"{account}/supervisedFineTuningJobs"
        return [
            web.post("/inference/v1/chat/completions", self._asked),
            web.post("/inference/v1/embeddings", self._embed),
            web.post(f"{account}/datasets", self._create_dataset),
            web.get(f"{account}/datasets/{{id}}", self._dataset),
            web.delete(f"{account}/datasets/{{id}}", self._drop_dataset),
            web.post(f"{account}/datasets/{{id}}:upload", self._upload_dataset),
            web.post(jobs, self._create_tuning),
            web.get(f"{jobs}/{{id}}", self._tuning),
            web.post(f"{jobs}/{{id}}:cancel", self._cancel_tuning),
            web.get("/v1/accounts/{account}/models/{id}", self._own_model),
            web.delete(f"{account}/models/{{id}}", self._drop_model),
            web.post(f"{account}/deployments", self._create_deployment),
            web.get(f"{account}/deployments/{{id}}", self._deployment),
            web.delete(f"{account}/deployments/{{id}}", self._drop_deployment),
            web.patch(f"{account}/deployments/{{id}}:scale", self._scale),
            web.post(f"{account}/deployments/{{id}}:undelete", self._undelete),
        ]

    async def _check(self, request: web.Request) -> None:
        """Hold inference to OpenAI's specification, which Fireworks follows; the key must be there."""
        assert request.headers.get("authorization") == f"Bearer {KEY}"
        if request.path.startswith("/v1/accounts"):
            return

    def _hold_to(self, params: type, body: dict[str, Any], *, path_only: tuple[str, ...] = ()) -> None:
        """Note what the SDK's type does not allow."""
        known = wire_names(params)
        for name, value in body.items():
            if name not in known or name in path_only:
                self.violations.append(f"{params.__name__} has no {name!r}")
            elif get_origin(known[name]) is Literal and value not in get_args(known[name]):
                self.violations.append(f"{params.__name__}.{name} cannot be {value!r}")

    # ------------------------------------------------------------------------------------- inference
    async def _asked(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, _, deployment = body["model"].partition("#")
        there = self.deployed.get(deployment.rpartition("/")[2])
        awake = there is not None and there["replicaStats"]["readyReplicaCount"] > 0
        if name != BASE and not (name in self.own_models and awake):
            message = "Model not found, inaccessible, and/or not deployed"
            return web.Response(status=404, body=error_body(message, "NOT_FOUND"), content_type="application/json")
        if body.get("top_logprobs", 0) > 5:
            return web.Response(status=400, body=error_body("top_logprobs must be between 0 and 5"))
        return web.json_response(self._completion(body))

    # -------------------------------------------------------------------------------------- datasets
    async def _create_dataset(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._hold_to(dataset_create_params.DatasetCreateParams, body)
        id = body["datasetId"]
        if id in self.datasets:
            return web.json_response(status_body(6, f"dataset {id} already exists"), status=409)
        made = {"name": f"accounts/{ACCOUNT}/datasets/{id}", "state": "UPLOADING", **body["dataset"]}
        self.datasets[id] = Dataset.model_validate(made).model_dump(mode="json", by_alias=True, exclude_none=True)
        return web.json_response(self.datasets[id])

    async def _upload_dataset(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        self.uploads[id] = file.file.read()
        self.datasets[id]["uploaded"] = True
        return web.json_response({})

    async def _dataset(self, request: web.Request) -> web.Response:
        there = self.datasets.get(request.match_info["id"])
        if there is None:
            return web.json_response(status_body(5, "dataset not found"), status=404)
        answer = {name: value for name, value in there.items() if name != "uploaded"}
        if there.get("uploaded"):
            answer["state"] = there["state"] = "READY"
        return web.json_response(answer)

    async def _drop_dataset(self, request: web.Request) -> web.Response:
        if self.datasets.pop(request.match_info["id"], None) is None:
            return web.json_response(status_body(5, "dataset not found"), status=404)
        return web.json_response({})

    # ------------------------------------------------------------------------------------------ jobs
    async def _create_tuning(self, request: web.Request) -> web.Response:
        body, id = await request.json(), request.query["supervisedFineTuningJobId"]
        self._hold_to(supervised_fine_tuning_job_create_params.SupervisedFineTuningJobCreateParams, body)
        if id in self.tunings:
            return web.json_response(status_body(6, f"job {id} already exists"), status=409)
        if self.datasets[body["dataset"].rpartition("/")[2]]["state"] != "READY":
            return web.json_response(status_body(9, "dataset is not ready"), status=400)
        made = {
            "name": f"accounts/{ACCOUNT}/supervisedFineTuningJobs/{id}",
            "state": "JOB_STATE_CREATING",
            "createTime": _NOW,
            **body,
        }
        shown = SupervisedFineTuningJob.model_validate(made)
        self.tunings[id] = shown.model_dump(mode="json", by_alias=True, exclude_none=True)
        return web.json_response(self.tunings[id])

    async def _tuning(self, request: web.Request) -> web.Response:
        there = self.tunings.get(request.match_info["id"])
        if there is None:
            return web.json_response(status_body(5, "job not found"), status=404)
        answer = web.json_response(there)
        if there["state"] == "JOB_STATE_WRITING_RESULTS":
            there["state"] = self.outcome
            if self.outcome == "JOB_STATE_FAILED":
                there["status"] = {"code": "INVALID_ARGUMENT", "message": "row 3: no assistant turn"}
            else:
                self.own_models.add(there["outputModel"])
        there["state"] = NEXT_JOB.get(there["state"], there["state"])
        return answer

    async def _cancel_tuning(self, request: web.Request) -> web.Response:
        self.tunings[request.match_info["id"]]["state"] = "JOB_STATE_CANCELLED"
        return web.json_response({})

    # ---------------------------------------------------------------------------------------- models
    async def _own_model(self, request: web.Request) -> web.Response:
        name = f"accounts/{request.match_info['account']}/models/{request.match_info['id']}"
        if name != BASE and name not in self.own_models:
            return web.json_response(status_body(5, "model not found"), status=404)
        return web.json_response({"name": name, "state": "READY"})

    async def _drop_model(self, request: web.Request) -> web.Response:
        self.own_models.discard(f"accounts/{ACCOUNT}/models/{request.match_info['id']}")
        return web.json_response({})

    # ----------------------------------------------------------------------------------- deployments
    async def _create_deployment(self, request: web.Request) -> web.Response:
        body, id = await request.json(), request.query["deploymentId"]
        self._hold_to(deployment_create_params.DeploymentCreateParams, body)
        if id in self.deployed:
            return web.json_response(status_body(6, f"deployment {id} already exists"), status=409)
        if self._awake_count() >= self.quota:
            return web.json_response(status_body(8, "accelerator quota exceeded for NVIDIA_H100_80GB"), status=400)
        made = {
            "name": f"accounts/{ACCOUNT}/deployments/{id}",
            "state": "CREATING",
            "desiredReplicaCount": 1,
            "replicaStats": {"readyReplicaCount": 0},
            **body,
        }
        shown = Deployment.model_validate(made)
        self.deployed[id] = shown.model_dump(mode="json", by_alias=True, exclude_none=True)
        return web.json_response(self.deployed[id])

    def _awake_count(self) -> int:
        return sum(1 for one in self.deployed.values() if one["desiredReplicaCount"] and one["state"] != "DELETED")

    async def _deployment(self, request: web.Request) -> web.Response:
        there = self.deployed.get(request.match_info["id"])
        if there is None:
            return web.json_response(status_body(5, "deployment not found"), status=404)
        answer = web.json_response(there)
        if there["state"] == "CREATING":
            there["state"] = self.deployment_outcome
        elif there["state"] == "READY":
            there["replicaStats"] = {"readyReplicaCount": there["desiredReplicaCount"]}
        return answer

    async def _scale(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._hold_to(deployment_scale_params.DeploymentScaleParams, body)
        there = self.deployed[request.match_info["id"]]
        there["desiredReplicaCount"] = body["replicaCount"]
        there["replicaStats"] = {"readyReplicaCount": 0}
        return web.json_response({})

    async def _drop_deployment(self, request: web.Request) -> web.Response:
        there = self.deployed.get(request.match_info["id"])
        if there is None or there["state"] == "DELETED":
            return web.json_response(status_body(5, "deployment not found"), status=404)
        there |= {"state": "DELETED", "desiredReplicaCount": 0, "replicaStats": {"readyReplicaCount": 0}}
        return web.json_response({})

    async def _undelete(self, request: web.Request) -> web.Response:
        there = self.deployed[request.match_info["id"]]
        there["state"] = "CREATING"
        return web.json_response(there)


def fireworks_settings(server: FireworksServer, **options: object) -> ProviderSettings:
    """A provider at it."""
    options = {"account": ACCOUNT, "base_url": server.url, **options}
    return ProviderSettings(name="fireworks", options=options, environ={"FIREWORKS_API_KEY": KEY})
