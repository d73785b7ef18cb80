"""Deployments, for a server whose tuned models answer only while they are deployed (`serve --deployments`).

    POST   /v1/deployments {"model": "ft:...", "min_replicas": 1, "metadata": {...}}
    GET    /v1/deployments, /v1/deployments/ID
    PATCH  /v1/deployments/ID {"min_replicas": 0}          # scale to zero; 1 wakes it
    DELETE /v1/deployments/ID

The life of a deployment follows from its record and the time, so it goes on over a restart: it starts for
`deployment_start_s`, is ready, and falls asleep when nothing has asked it for `idle_timeout_s`. Knows nothing of how a
model answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from semievol_providers.server.api_errors import ApiError, check_metadata
from semievol_providers.server.settings import ServerSettings
from semievol_providers.server.state import ModelTable, Record, ServedModel, State, new_id

_RUN_KEY = "semievol_run_key"
_Replicas = Annotated[int, Meta(ge=0, le=1)]


class DeploymentBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /deployments`. This server has one engine, so a deployment has one replica or none."""

    model: str
    min_replicas: _Replicas = 1
    max_replicas: Annotated[int, Meta(ge=1, le=1)] = 1
    idle_timeout_s: Annotated[int, Meta(ge=0)] = 0
    metadata: dict[str, str] | None = None


class DeploymentChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`PATCH /deployments/ID`."""

    min_replicas: _Replicas
    idle_timeout_s: Annotated[int, Meta(ge=0)] | None = None


class DeploymentTable:
    """The deployments of one server, and which models they let answer."""

    def __init__(
        self, settings: ServerSettings, state: State, models: ModelTable, now: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._state = state
        self._models = models
        self._now = now
        self._used: dict[str, float] = {}

    def create(self, body: DeploymentBody, owner: str) -> Record:
        """A new deployment, or the living one with the same run key.

        Raises:
            ApiError: deployments are off, or there is no such tuned model.
        """
        if not self._settings.deployments:
            raise ApiError(
                "This server answers with every model without a deployment; start it with --deployments.",
                status=404,
                code="deployments_off",
            )
        if self._models.find(body.model, owner).adapter is None:
            raise ApiError(f"'{body.model}' is the base model, which answers without a deployment.", param="model")
        check_metadata(body.metadata)
        run_key = (body.metadata or {}).get(_RUN_KEY)
        with self._state.transaction():
            known = self._state.find_deployment_by_key(run_key, owner) if run_key else None
            if known is not None and (living := self.current(known, owner))["status"] != "failed":
                return living
            now = self._now()
            record: Record = {
                "id": new_id("dep-"),
                "object": "deployment",
                "created_at": int(now),
                "model": self._models.target(body.model),
                "name": body.model,
                "min_replicas": body.min_replicas,
                "max_replicas": body.max_replicas,
                "idle_timeout_s": body.idle_timeout_s,
                "usd_per_hour": self._settings.limits.deployment_usd_per_hour,
                "awake_since": now if body.min_replicas else None,
                "metadata": {**(body.metadata or {})},
            }
            self._state.add_deployment(record, owner, run_key)
        return self.current(record, owner)

    def change(self, record: Record, body: DeploymentChange, owner: str) -> Record:
        """Scale to zero, or wake up."""
        asleep = self.current(record, owner)["status"] == "asleep"
        since = record["awake_since"] if body.min_replicas and not asleep else None
        changed = record | {
            "min_replicas": body.min_replicas,
            "awake_since": (since or self._now()) if body.min_replicas else None,
        }
        if body.idle_timeout_s is not None:
            changed["idle_timeout_s"] = body.idle_timeout_s
        self._state.save_deployment(changed)
        return self.current(changed, owner)

    def delete(self, record: Record) -> None:
        """Forget a deployment; its model stays."""
        self._state.delete_deployment(str(record["id"]))

    def current(self, record: Record, owner: str) -> Record:
        """The record with the status that it has now."""
        since, now = record["awake_since"], self._now()
        if since is None:
            return record | {"status": "asleep", "reason": None}
        began = float(str(since))
        ready_at = began + self._settings.limits.deployment_start_s
        if now < ready_at:
            return record | {"status": "starting", "reason": None}
        reason = self._missing(str(record["model"]), owner)
        if reason is not None:
            return record | {"status": "failed", "reason": reason}
        idle_s, used = int(str(record["idle_timeout_s"])), max(ready_at, self._used.get(str(record["id"]), 0.0))
        if idle_s and now - used > idle_s:
            return record | {"status": "asleep", "reason": f"nothing asked it for {idle_s} s"}
        return record | {"status": "ready", "reason": None}

    def find(self, name: str, owner: str) -> ServedModel:
        """A model that may answer: the base always, a tuned one while a deployment of it is ready.

        Raises:
            ApiError: there is no such model, or no deployment of it, or none that is ready.
        """
        model = self._models.find(name, owner)
        if model.adapter is None or not self._settings.deployments:
            return model
        name = self._models.target(name)
        seen = [self.current(record, owner) for record in self._state.deployments_of(name, owner)]
        ready = next((record for record in seen if record["status"] == "ready"), None)
        if ready is not None:
            self._used[str(ready["id"])] = self._now()
            return model
        if not seen:
            raise ApiError(
                f"The model '{name}' is not deployed. Create a deployment of it first: POST /v1/deployments.",
                status=404,
                param="model",
                code="model_not_deployed",
            )
        raise ApiError(
            f"The deployment {seen[0]['id']} of '{name}' is {seen[0]['status']}.",
            status=503,
            param="model",
            code="deployment_not_ready",
            headers={"retry-after": "1"},
        )

    def _missing(self, model: str, owner: str) -> str | None:
        """Why a deployment of a model cannot answer; None where it can."""
        found = self._state.find_model(model, owner)
        if found is None:
            return f"the model {model!r} has been deleted"
        return None if Path(found[0]).is_dir() else f"the weights of {model!r} are gone from the server's disk"
