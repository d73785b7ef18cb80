"""One config at every vendor whose tuned models must be deployed: only `[providers]` and the models' names differ.

Each runs the whole method at a loopback server of its shape, is recorded, and is replayed with nobody there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pytest_socket import disable_socket, enable_socket

from semievol_api.cassettes.exchange import read_manifest
from semievol_api.training.deployments import deployments_under
from tests.e2e.conftest import Project, Semievol
from tests.e2e.threaded import serving
from tests.providers.openai_loopback import LoopbackServer
from tests.providers.vendor_servers import AZURE_KEY, AZURE_TOKEN, AzureServer
from tests.record_demo import artifact_hashes

NOBODY = "http://192.0.2.1:9"


@dataclass(frozen=True)
class Vendor:
    """How one vendor's server comes up, what a config says of it, and what ran there."""

    server: Callable[[], LoopbackServer]
    table: Callable[[Any], str]
    model: str
    keys: dict[str, str]
    trained: Callable[[Any], int]
    running: Callable[[Any], int]


def _azure_table(server: AzureServer) -> str:
    parts = urlsplit(server.base_url)
    where = f'subscription = "sub", resource_group = "group", account = "acme", management_url = "{parts.scheme}://'
    return (
        f'kind = "openai"\nvendor = "azure"\nbase_url = "{server.base_url}"\nidentity = "azure"\n'
        f'deployments = {{ {where}{parts.netloc}" }}'
    )


def _azure() -> Vendor:
    return Vendor(
        AzureServer,
        _azure_table,
        "tiny",
        {"AZURE_OPENAI_API_KEY": AZURE_KEY, "AZURE_MANAGEMENT_TOKEN": AZURE_TOKEN},
        lambda server: len(server.jobs),
        lambda server: len(server.controlled),
    )


def _fireworks() -> Vendor:
    pytest.importorskip("fireworks", reason="needs the extra fireworks")
    from tests.providers.fireworks_server import ACCOUNT, BASE, KEY, FireworksServer

    return Vendor(
        FireworksServer,
        lambda server: f'kind = "fireworks"\naccount = "{ACCOUNT}"\nbase_url = "{server.url}"\nidentity = "fireworks"',
        BASE,
        {"FIREWORKS_API_KEY": KEY},
        lambda server: len(server.tunings),
        lambda server: sum(one["desiredReplicaCount"] for one in server.deployed.values()),
    )


VENDORS = {"azure": _azure, "fireworks": _fireworks}


@pytest.fixture
def network() -> Iterator[Callable[[], None]]:
    """A way to cut off even this machine's own addresses until the test ends."""
    yield partial(disable_socket, allow_unix_socket=True)
    enable_socket()


@pytest.mark.parametrize("name", sorted(VENDORS))
def test_a_whole_run_deploys_what_it_asks_and_is_replayed_with_nobody_there(
    name: str, project: Project, semievol: Semievol, monkeypatch: pytest.MonkeyPatch, network: Callable[[], None]
) -> None:
    vendor, made = VENDORS[name](), project.folder
    for key, value in vendor.keys.items():
        monkeypatch.setenv(key, value)
    at_vendor = vendor.server()
    with serving(at_vendor) as server:
        table = vendor.table(server)
        project.change(
            ('kind = "scripted"\nstate = "server"', table),
            (
                'student = { provider = "mine", model = "tiny" }',
                f'student = {{ provider = "mine", model = "{vendor.model}" }}',
            ),
            ('embedder = { provider = "mine", model = "tiny" }\n', ""),
            ("[train]", '[retrieve]\nmethod = "bm25"\n\n[deploy]\npoll_s = 0.05\n\n[train]'),
            ("near_duplicates = false", "near_duplicates = false\nmax_unlabeled = 12\nmax_test = 4"),
        )
        done = semievol("run", project.config, "--cassette", made / "tape", "--cassette-mode", "record", "--yes")
        assert done.code == 0, done.err
        records = [record for _, record in deployments_under(made / "out")]
        assert len(records) == vendor.trained(server) >= 2, "each tuned model once"
        assert not any(record.costs for record in records) and vendor.running(server) == 0
        for address in {server.base_url, getattr(server, "url", server.base_url), _origin(server.base_url)}:
            text = project.config.read_text("utf-8")
            project.config.write_text(text.replace(address, f"{NOBODY}{urlsplit(address).path}"), "utf-8")
    manifest = read_manifest(made / "tape")
    assert "no evidence about any vendor" in manifest.recorded_against
    project.change(('folder = "out"', 'folder = "replayed"'))
    for key in vendor.keys:
        monkeypatch.delenv(key)
    network()
    replayed = semievol("run", project.config, "--cassette", made / "tape", "--yes")
    assert replayed.code == 0, replayed.err
    first, second = _artifacts(made / "out"), _artifacts(made / "replayed")
    assert {"evolve/train.jsonl", "verdict/verdict.json"} <= set(first) and first == second


def _artifacts(folder: Path) -> dict[str, str]:
    """What was made; the hours of deployments are no artifacts."""
    return {name: found for name, found in artifact_hashes(folder).items() if not name.startswith("deployments/")}


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
