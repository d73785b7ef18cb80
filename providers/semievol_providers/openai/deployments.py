"""Deployments at `semievol serve --deployments` and at Azure: tuned models there answer only while they are deployed.

The vendor's states become ours here; nothing is waited for or tried again. Azure's control plane was never called: its
requests follow Microsoft's reference of 2024-10-01. Knows nothing of runs and of what a deployment is for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from semievol_api.capabilities import DeploymentState, DeploymentStatus, DeployRequest, ModelName
from semievol_api.errors import RefusedError
from semievol_providers.openai.chat import HotPath
from semievol_providers.openai.errors import invalid_answer
from semievol_providers.openai.finetuner import RUN_KEY
from semievol_providers.openai.settings import AzureResource

_PAGE = 100
_ShapeT = TypeVar("_ShapeT")


def is_tuned(model: ModelName) -> bool:
    """Whether a name is a tuned model's: `ft:...`, or Azure's `BASE.ft-...`."""
    return model.startswith("ft:") or ".ft-" in model


class _Record(Struct):
    """One deployment as `semievol serve` tells it."""

    id: str
    status: str
    name: str
    reason: str | None = None
    metadata: dict[str, str] = {}


class _Records(Struct):
    data: list[_Record]
    has_more: bool = False


class ServerDeployer:
    """`Deployer` at `semievol serve --deployments`."""

    tokens_are_free = True

    usd_per_hour: float | None = None
    """Whoever runs the server knows; `[deploy] usd_per_hour` says it."""

    def __init__(self, path: HotPath) -> None:
        self._path = path

    def needs(self, model: ModelName) -> bool:
        """Tuned models do, the base does not."""
        return is_tuned(model)

    async def deploy(self, request: DeployRequest) -> str:
        """Make a deployment of one replica; the server gives the same one for the same run key."""
        body = {"model": request.model, "metadata": {RUN_KEY: request.run_key}}
        return (await self._ask(_Record, "POST", "", body)).id

    async def find(self, request: DeployRequest) -> str | None:
        """The deployment with this run key."""
        async for record in self._with_key(request.run_key):
            if record.status != "failed":
                return record.id
        return None

    async def poll(self, deployment_id: str) -> DeploymentState:
        """Where it stands."""
        try:
            found = await self._ask(_Record, "GET", f"/{deployment_id}")
        except RefusedError as error:
            return _gone(error)
        status: DeploymentStatus = _SERVER_STATUSES.get(found.status, "unknown")
        return DeploymentState(status=status, raw_status=found.status, asked_as=found.name, reason=found.reason)

    async def wake(self, deployment_id: str) -> None:
        """One replica."""
        await self._ask(_Record, "PATCH", f"/{deployment_id}", {"min_replicas": 1})

    async def sleep(self, deployment_id: str) -> None:
        """No replica."""
        await self._ask(_Record, "PATCH", f"/{deployment_id}", {"min_replicas": 0})

    async def delete(self, deployment_id: str) -> None:
        """Delete it."""
        try:
            await self._path.ask("DELETE", f"/deployments/{quote(deployment_id, safe='')}")
        except RefusedError as error:
            _gone(error)

    async def _with_key(self, run_key: str) -> AsyncIterator[_Record]:
        query: dict[str, str | int] = {f"metadata[{RUN_KEY}]": run_key, "limit": _PAGE}
        while True:
            page = await self._ask(_Records, "GET", f"?{urlencode(query)}")
            for record in page.data:
                yield record
            if not page.has_more or not page.data:
                return
            query["after"] = page.data[-1].id

    async def _ask(
        self, shape: type[_ShapeT], method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> _ShapeT:
        return _decoded(shape, self._path, (await self._path.ask(method, f"/deployments{path}", body)).body)


_SERVER_STATUSES: Mapping[str, DeploymentStatus] = {
    "starting": "starting",
    "ready": "ready",
    "asleep": "asleep",
    "failed": "failed",
}


class _AzureModel(Struct):
    name: str | None = None


class _AzureProperties(Struct, rename="camel"):
    provisioning_state: str = ""
    model: _AzureModel | None = None


class _AzureDeployment(Struct):
    name: str
    properties: _AzureProperties


class AzureDeployer:
    """`Deployer` at Azure OpenAI: a deployment has a name of our choice, so making it twice makes it once.

    Azure bills the hosting by the hour and the tokens besides; it cannot scale to zero, so a deployment is deleted.
    """

    tokens_are_free = False

    usd_per_hour: float | None = None
    """The fee for hosting depends on region and kind; `[deploy] usd_per_hour` says it."""

    def __init__(self, path: HotPath, resource: AzureResource) -> None:
        self._path = path
        self._resource = resource

    def needs(self, model: ModelName) -> bool:
        """Tuned models do; a base is deployed by hand, under the name that the config gives it."""
        return is_tuned(model)

    async def deploy(self, request: DeployRequest) -> str:
        """Make the deployment of this name."""
        name, resource = _azure_name(request), self._resource
        model = {"format": "OpenAI", "name": request.model, "version": "1"}
        body = {"sku": {"name": resource.sku, "capacity": resource.capacity}, "properties": {"model": model}}
        await self._ask("PUT", name, body)
        return name

    async def find(self, request: DeployRequest) -> str | None:
        """The deployment of this name, unless it failed."""
        state = await self.poll(_azure_name(request))
        return None if state.status in ("deleted", "failed") else _azure_name(request)

    async def poll(self, deployment_id: str) -> DeploymentState:
        """Where it stands."""
        try:
            answer = await self._ask("GET", deployment_id)
        except RefusedError as error:
            return _gone(error)
        raw = _decoded(_AzureDeployment, self._path, answer).properties.provisioning_state
        status: DeploymentStatus = _AZURE_STATUSES.get(raw.lower(), "unknown")
        return DeploymentState(status=status, raw_status=raw, asked_as=deployment_id)

    async def wake(self, deployment_id: str) -> None:
        """Azure has no sleep, and so no awakening."""

    async def sleep(self, deployment_id: str) -> None:
        """Refused.

        Raises:
            RefusedError: always; delete it instead.
        """
        raise RefusedError(f"Azure cannot scale the deployment {deployment_id!r} to zero; delete it instead.")

    async def delete(self, deployment_id: str) -> None:
        """Delete it; the model stays and can be deployed again."""
        try:
            await self._ask("DELETE", deployment_id)
        except RefusedError as error:
            _gone(error)

    async def _ask(self, method: str, name: str, body: Mapping[str, Any] | None = None) -> bytes:
        url = f"{self._resource.url}/deployments/{quote(name, safe='')}?api-version={_AZURE_VERSION}"
        headers = {"authorization": f"Bearer {self._resource.token}", "content-type": "application/json"}
        return (await self._path.ask(method, url, body, headers)).body


_AZURE_VERSION = "2024-10-01"
_AZURE_STATUSES: Mapping[str, DeploymentStatus] = {
    **dict.fromkeys(("accepted", "creating", "updating", "moving"), "starting"),
    "succeeded": "ready",
    **dict.fromkeys(("failed", "disabled", "canceled"), "failed"),
    "deleting": "deleted",
}


def _azure_name(request: DeployRequest) -> str:
    return f"semievol-{request.run_key[:20]}"


def _gone(error: RefusedError) -> DeploymentState:
    """The state of what is not there.

    Raises:
        RefusedError: the error means something else.
    """
    if error.status != 404:
        raise error
    return DeploymentState(status="deleted", raw_status=error.code or "not found")


def _decoded(shape: type[_ShapeT], path: HotPath, body: bytes) -> _ShapeT:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as error:
        raise invalid_answer("deployments", body, path.connection) from error
