"""Deployments at Fireworks: a tuned model on accelerators of one's own, scaled to zero when nothing asks.

Its id is of our choice, so making it twice makes it once. Shapes and states are the SDK's. Knows nothing of runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semievol_api.capabilities import DeploymentState, DeployRequest, ModelName
from semievol_providers.fireworks.account import Account, Hardware

if TYPE_CHECKING:
    from fireworks.types import Deployment

_SCALE_TO_ZERO = "300s"
"""The shortest time without requests that Fireworks scales down after, for what a killed run leaves awake."""
_KEY_CHARS = 24


class FireworksDeployer:
    """`Deployer` at one account; the hours are the whole price."""

    usd_per_hour: float | None = None
    tokens_are_free = True

    def __init__(self, account: Account, hardware: Hardware) -> None:
        self._account = account
        self._hardware = hardware

    def needs(self, model: ModelName) -> bool:
        """The account's own models do."""
        return model.startswith(f"accounts/{self._account.name}/")

    async def deploy(self, request: DeployRequest) -> str:
        """Make the deployment, or bring one back that was deleted a short time ago and still has the id."""
        name, hardware = _name(request), self._hardware
        there = await self._get(name)
        if there is not None and there.state in ("DELETED", "DELETING"):
            await self._account.ask("deployments", lambda client: client.deployments.undelete(name, body={}))
            await self.wake(name)
            return name
        on: dict[str, Any] = {"accelerator_type": hardware.accelerator, "accelerator_count": hardware.count}
        if hardware.shape is not None:
            on = {"deployment_shape": hardware.shape}
        await self._account.ask(
            "deployments",
            lambda client: client.deployments.create(
                deployment_id=name,
                base_model=request.model,
                min_replica_count=0,
                max_replica_count=1,
                autoscaling_policy={"scale_to_zero_window": _SCALE_TO_ZERO},
                **on,
            ),
        )
        return name

    async def find(self, request: DeployRequest) -> str | None:
        """The deployment of this run key."""
        there = await self._get(_name(request))
        return None if there is None or there.state in ("FAILED", "DELETED", "DELETING") else _name(request)

    async def poll(self, deployment_id: str) -> DeploymentState:
        """Where it stands: ready only with a replica, asleep where none is wanted."""
        there = await self._get(deployment_id)
        if there is None or there.state in ("DELETED", "DELETING"):
            return DeploymentState(status="deleted", raw_status="not found" if there is None else str(there.state))
        reason = there.status.message if there.status is not None and there.status.message else None
        raw = there.state or "STATE_UNSPECIFIED"
        asked_as = f"{there.base_model}#{self._account.resource('deployments', deployment_id)}"
        if raw == "FAILED":
            return DeploymentState(status="failed", raw_status=raw, reason=reason)
        if raw == "READY" and _ready_replicas(there):
            return DeploymentState(status="ready", raw_status=raw, asked_as=asked_as)
        if raw == "READY" and not there.desired_replica_count:
            return DeploymentState(status="asleep", raw_status="READY without replicas", asked_as=asked_as)
        known = raw in ("CREATING", "UPDATING", "READY")
        return DeploymentState(status="starting" if known else "unknown", raw_status=raw, asked_as=asked_as)

    async def wake(self, deployment_id: str) -> None:
        """One replica."""
        await self._scale(deployment_id, 1)

    async def sleep(self, deployment_id: str) -> None:
        """No replica."""
        await self._scale(deployment_id, 0)

    async def delete(self, deployment_id: str) -> None:
        """Delete it; the model stays."""
        await self._account.look("deployments", lambda client: client.deployments.delete(deployment_id))

    async def _get(self, name: str) -> Deployment | None:
        return await self._account.look("deployments", lambda client: client.deployments.get(name))

    async def _scale(self, name: str, replicas: int) -> None:
        await self._account.ask("deployments", lambda client: client.deployments.scale(name, replica_count=replicas))


def _name(request: DeployRequest) -> str:
    return f"semievol-{request.run_key[:_KEY_CHARS]}"


def _ready_replicas(there: Deployment) -> int:
    stats = there.replica_stats
    return (stats.ready_replica_count or 0) if stats is not None else 0
