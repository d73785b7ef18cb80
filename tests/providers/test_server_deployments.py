"""Deployments of `semievol serve --deployments`: tuned models answer only while they are deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_samples import training_lines
from server_running import MESSAGES, Deploying, RunningServer, wait_for_job

pytest_plugins = ("server_fixtures",)


def test_a_tuned_model_answers_only_while_it_is_deployed(deploying: Deploying) -> None:
    for left in deploying.ask("GET")[1]["data"]:  # by other tests of this server
        deploying.ask("DELETE", f"/{left['id']}")
    assert deploying.answer() == "model_not_deployed"
    deploying.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)  # the base always does
    status, made = deploying.ask("POST", body={"model": deploying.model})
    assert (status, made["status"], made["usd_per_hour"]) == (200, "starting", 3.99)
    assert deploying.answer() == "deployment_not_ready"
    assert deploying.until(made["id"], "ready")["name"] == deploying.model
    assert deploying.answer() == "answered"
    assert deploying.ask("PATCH", f"/{made['id']}", {"min_replicas": 0})[1]["status"] == "asleep"
    assert deploying.answer() == "deployment_not_ready"
    assert deploying.ask("PATCH", f"/{made['id']}", {"min_replicas": 1})[1]["status"] == "starting"
    deploying.until(made["id"], "ready")
    assert deploying.answer() == "answered"
    assert deploying.ask("DELETE", f"/{made['id']}")[1]["deleted"]
    assert deploying.ask("GET", f"/{made['id']}")[1]["code"] == "deployment_not_found"
    assert deploying.answer() == "model_not_deployed"


def test_one_run_key_is_one_deployment_and_finds_it(deploying: Deploying) -> None:
    body = {"model": deploying.model, "metadata": {"semievol_run_key": "k1"}, "min_replicas": 0}
    first, second = (deploying.ask("POST", body=body)[1]["id"] for _ in range(2))
    assert first == second
    listed = deploying.ask("GET", "?metadata[semievol_run_key]=k1")[1]["data"]
    assert [found["id"] for found in listed] == [first]
    assert deploying.ask("GET", "?metadata[semievol_run_key]=k2")[1]["data"] == []
    deploying.ask("DELETE", f"/{first}")


def test_another_key_neither_sees_nor_changes_a_deployment(deploying: Deploying) -> None:
    made = deploying.ask("POST", body={"model": deploying.model, "min_replicas": 0})[1]["id"]
    assert deploying.ask("GET", key="theirs")[1]["data"] == []
    for method, body in (("GET", None), ("PATCH", {"min_replicas": 1}), ("DELETE", None)):
        assert deploying.ask(method, f"/{made}", body, "theirs")[0] == 404
    status, error = deploying.ask("POST", body={"model": deploying.model}, key="theirs")
    assert status == 404 and error["code"] == "model_not_found"
    deploying.ask("DELETE", f"/{made}")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"model": "tiny"}, "base model"),
        ({"model": "nobody"}, "nobody"),
        ({"model": "tiny", "replicas": 3}, "replicas"),
        ({"model": "tiny", "min_replicas": 2}, "min_replicas"),
        ({"model": "tiny", "metadata": {"a": "x" * 600}}, "metadata"),
    ],
)
def test_what_cannot_be_deployed_is_refused_by_name(deploying: Deploying, body: dict[str, Any], part: str) -> None:
    if part == "metadata":
        body = body | {"model": deploying.model}
    status, error = deploying.ask("POST", body=body)
    assert 400 <= status < 500 and part in f"{error['message']} {error['param']}"


def test_an_idle_deployment_falls_asleep_and_a_deleted_model_fails(deploying: Deploying) -> None:
    made = deploying.ask("POST", body={"model": deploying.model, "idle_timeout_s": 1})[1]["id"]
    deploying.until(made, "ready")
    assert "1 s" in deploying.until(made, "asleep")["reason"]
    deploying.ask("DELETE", f"/{made}")


def test_deployments_outlive_the_server_and_fail_when_their_model_is_deleted(tiny_model: Path, tmp_path: Path) -> None:
    server = RunningServer(tiny_model, tmp_path, ("--deployments",))
    with server:
        client = server.client()
        file = client.files.create(file=("t.jsonl", training_lines(12).encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": 1})
        here = Deploying(server, wait_for_job(client, job.id).fine_tuned_model)
        made = here.ask("POST", body={"model": here.model})[1]["id"]
        assert here.answer() == "answered"
        server.kill()
    with server:
        assert here.answer() == "answered"
        server.client().models.delete(here.model)
        failed = here.ask("GET", f"/{made}")[1]
        assert failed["status"] == "failed" and here.model in failed["reason"]


def test_a_server_without_deployments_says_that_none_are_needed(server: RunningServer) -> None:
    status, error = Deploying(server, "tiny").ask("POST", body={"model": "tiny"})
    assert status == 404 and "--deployments" in error["message"]
