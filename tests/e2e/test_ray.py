"""`[run] engine = "ray"` on two simulated nodes: the bytes of one process, and kills that cost nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mock import MockServer
from semievol_api import run
from semievol_api.annotate.annotators import JUDGE, Annotator, Crew
from semievol_api.annotate.collaboration import collaborate
from semievol_api.annotate.requests import Corpus, Student
from semievol_api.capabilities import Provider, ProviderSettings
from semievol_api.config.method import AnnotateSettings
from semievol_api.config.settings import Config, load_config
from semievol_api.data.schemas import as_evidence
from semievol_api.engine import Fleet, RequestEngine
from semievol_api.errors import BudgetError
from semievol_api.records import Example
from semievol_api.scale.worker import journals_of
from semievol_api.store.artifacts import EvidenceTable, Folds, Neighbours, Prepared
from semievol_api.tasks import load_task
from tests.e2e.conftest import Project, tree, write_rows

ROWS = 600
IN_FLIGHT = 8
ROOT = Path(__file__).resolve().parents[2]
MODEL = "gpt-4o-mini"
PER_MINUTE = 6_000
TOKENS = 316
"""What the mock server bills for a request."""


def test_a_local_run_imports_no_ray(project: Project, child_env: dict[str, str]) -> None:
    script = (
        "import sys; from semievol_api import run; from semievol_api import cli; "
        "run(sys.argv[1]); sys.exit('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(project.config)], env=child_env, check=False)
    assert done.returncode == 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without workers, and two nodes; one of them alone has room for both workers."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'providers'}"
    memory = 80 * 2**20
    try:
        found = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
        )
    except (OSError, RuntimeError, TimeoutError, ValueError) as error:
        pytest.skip(f"Ray starts no node on this machine: {error}")
    try:
        ray.init(address=found.address, log_to_driver=False, logging_level="error")  # while only the head is there
        found.add_node(num_cpus=2, object_store_memory=memory)
        found.add_node(num_cpus=2, object_store_memory=memory)
        yield found
    finally:
        ray.shutdown()
        for node in list(found.worker_nodes):
            found.remove_node(node, allow_graceful=False)
        found.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.mark.slow
def test_a_ray_of_this_machine_alone_gives_the_bytes_of_one_process(
    project: Project, child_env: dict[str, str]
) -> None:
    """In a process of its own: it has no address, whatever cluster other tests are connected to."""
    pytest.importorskip("ray")
    local = run(project.config)
    project.change(('folder = "out"', 'folder = "ray"\nengine = "ray"'), ('state = "server"', 'state = "server-2"'))
    project.change(("[train]", "[ray]\nworkers = 1\nshard_rows = 32\nobject_store_mb = 80\n[train]"))
    script = "import sys; from semievol_api import run; run(sys.argv[1])"
    command = [sys.executable, "-c", script, str(project.config)]
    done = subprocess.run(command, env=child_env, capture_output=True, text=True, check=False)
    if "Ray could not be started" in done.stderr:
        pytest.skip("Ray starts no node on this machine")
    assert done.returncode == 0, done.stderr[-2000:]
    spread = project.folder / "ray"
    assert len(journals_of(spread)) >= 2
    without = ("journal", "stamps", "config_key", ".lock", "jobs", "spend")
    assert tree(spread, without=without) == tree(local.folder, without=without)


@pytest.mark.slow
def test_two_nodes_give_the_bytes_of_one_process(cluster: Any, project: Project) -> None:
    write_rows(project.folder / "labeled.csv", 100)
    write_rows(project.folder / "unlabeled.csv", 150, start=100)
    write_rows(project.folder / "test.csv", 20, start=400)
    project.change(('mode = "paper"\nceiling = true', ""), ('state = "server"', 'state = "server"\nidentity = "here"'))
    local = run(project.config)
    project.change(('folder = "out"', 'folder = "ray"\nengine = "ray"'), ('state = "server"', 'state = "other"'))
    project.change(("[train]", "[ray]\nworkers = 2\nshard_rows = 64\n[train]"))
    spread = run(project.config)
    asked_of = ("collaborate", "justify", "retrieve")
    assert len(journals_of(spread.folder)) >= 4
    without = ("journal", "stamps", "config_key", ".lock", "jobs", "spend")
    assert tree(spread.folder, without=without) == tree(local.folder, without=without)
    bills = [{name: bill.asks for name, bill in r.ledger.stages.items() if name in asked_of} for r in (local, spread)]
    assert bills[0]["collaborate"] == bills[1]["collaborate"]
    again = run(project.change(('engine = "ray"', 'engine = "local"')))
    assert again.computed == ()


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_node_cost_no_more_than_was_in_flight(cluster: Any, tmp_path: Path) -> None:
    """The server counts: every question answered, few twice, the quota kept; and then the budget's cap."""
    with MockServer(latency=20, tokens=16, rpm=PER_MINUTE, burst=20) as server:
        config = _config(tmp_path, server.url, "killed", f"rpm = {PER_MINUTE}\nconcurrency = {IN_FLIGHT}")
        lost: list[int] = []
        killer = threading.Thread(target=lambda: lost.append(_kill(cluster, server)))
        killer.start()
        rows = asyncio.run(_collaborate(config))
        killer.join()
        counts, told = server.rows(ROWS), server.stats()
        assert {row.example_id for row in rows} == {f"row-{i:08d}" for i in range(ROWS)}
        assert not any(row.finish == "failed" for row in rows)
        assert min(counts) == 1
        assert sum(counts) - ROWS <= lost[0] * IN_FLIGHT
        assert told["total"] / told["span_s"] <= PER_MINUTE / 60 * 1.1
        assert told["r429"] <= 0.05 * ROWS

        server.configure(rpm=0, zero=1)
        most = 200 * TOKENS
        capped = _config(tmp_path, server.url, "capped", f"max_tokens = {most}\nconcurrency = {IN_FLIGHT}")
        with pytest.raises(BudgetError):
            asyncio.run(_collaborate(capped))
        paid = sum(server.rows(ROWS))
        assert 20 <= paid <= 200


def _kill(cluster: Any, server: MockServer) -> int:
    """A worker's process after 100 answers, a whole node after 300; how many workers that were."""
    import psutil  # type: ignore[import-untyped]

    def workers_under(pid: int) -> list[int]:
        below = psutil.Process(pid).children(recursive=True)
        return [p.pid for p in below if p.name().startswith("ray::MapWork")]

    _wait_for(server, 100)
    os.kill(workers_under(os.getpid())[0], signal.SIGKILL)
    _wait_for(server, 300)
    sizes = {node: len(workers_under(node.all_processes["raylet"][0].process.pid)) for node in cluster.worker_nodes}
    node = max(sizes, key=lambda node: sizes[node])
    cluster.remove_node(node, allow_graceful=False)
    return 1 + sizes[node]


def _wait_for(server: MockServer, total: int) -> None:
    deadline = time.monotonic() + 120
    while server.stats()["total"] < total and time.monotonic() < deadline:
        time.sleep(0.05)


def _config(folder: Path, url: str, name: str, limits: str) -> Config:
    path = folder / f"{name}.toml"
    path.write_text(
        f"""
        [run]
        folder = {json.dumps(name)}
        engine = "ray"
        [data]
        task = "arc"
        labeled = "none.csv"
        unlabeled = "none.csv"
        [providers.mock]
        kind = "openai"
        base_url = {json.dumps(url)}
        vendor = "openai"
        api_key_env = "PATH"
        [roles]
        student = {{ provider = "mock", model = "{MODEL}" }}
        [limits]
        {limits}
        [ray]
        workers = 2
        shard_rows = 40
        """,
        "utf-8",
    )
    return load_config(path)


async def _collaborate(config: Config) -> list[Any]:
    from semievol_api.scale.ray_executor import RayExecutor
    from semievol_providers.openai import connect

    options = dict(config.providers["mock"].options)
    provider: Provider = connect(ProviderSettings(name="mock", options=options, environ=os.environ))
    examples = tuple(
        Example(id=f"row-{i:08d}", question=f"row-{i:08d} which?", options=("a", "b", "c", "d")) for i in range(ROWS)
    )
    data = Prepared(labeled=(), unlabeled=examples, test=(), report={})
    corpus = Corpus(load_task("arc"), data, Folds((), (), (), tunable=True, note=""), Neighbours())
    crew = Crew((Annotator("base-0shot", "base", 0),), Annotator("justify", JUDGE, 0))
    folder = config.run.folder
    fleet = Fleet(journals=journals_of(folder))
    async with RequestEngine.open(folder / "journal.sqlite", config.limits, run=str(folder), fleet=fleet) as engine:
        student = Student(engine, provider, {"base": MODEL}, {"base": MODEL}, 0, executor=RayExecutor(config, engine))
        said: EvidenceTable = await collaborate(student, corpus, crew, AnnotateSettings(), "unlabeled")
        tables = [table async for table in said.source]  # type: ignore[union-attr]
    await provider.aclose()
    return [row for table in tables for row in as_evidence(table)]
