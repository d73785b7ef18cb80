"""Fixtures with a running server on the tiny model, and a check of answers against the API's specification."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from local_samples import training_lines
from server_running import Deploying, RunningServer, wait_for_job

from tests.conformance import SPECIFICATION
from tests.openai_types import check_answer

pytest_plugins = ("local_fixtures",)


@pytest.fixture(scope="session")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server that many tests ask."""
    folder = tmp_path_factory.mktemp("server")
    with RunningServer(tiny_model, folder, ("--alias", "gpt-4o-mini-2024-07-18=tiny")) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> openai.OpenAI:
    """The unmodified SDK on that server."""
    return server.client()


@pytest.fixture(scope="session")
def tools_server(tools_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server on a model that calls functions, of each family."""
    with RunningServer(tools_model, tmp_path_factory.mktemp("tools-server")) as running:
        yield running


@pytest.fixture(scope="session")
def deploying(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploying]:
    folder = tmp_path_factory.mktemp("deploying")
    (folder / "limits.toml").write_text("deployment_start_s = 1.0\ndeployment_usd_per_hour = 3.99\n")
    options = (
        "--deployments", "--api-key-env", "KEYS", "--limits", str(folder / "limits.toml"),
    )  # fmt: skip
    with RunningServer(tiny_model, folder, options, {"KEYS": "mine,theirs"}) as server:
        client = server.client(api_key="mine")
        file = client.files.create(file=("t.jsonl", training_lines(12).encode()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
        model = wait_for_job(client, job.id).fine_tuned_model
        yield Deploying(server, model)


@pytest.fixture
def conforms() -> Callable[[object, str], None]:
    """`conforms(answer, "FineTuningJob")` fails where an answer breaks the specification or the package's types."""
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    document = json.loads(SPECIFICATION.read_text("utf-8"))
    registry: Registry[object] = Registry().with_resource("urn:spec", Resource(document, DRAFT202012))

    def check(answer: object, schema: str) -> None:
        reference = {"$ref": f"urn:spec#/components/schemas/{schema}"}
        Draft202012Validator(reference, registry=registry).validate(answer)
        check_answer(schema, answer)

    return check
