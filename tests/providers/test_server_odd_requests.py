"""Requests that no client of ours sends: numbers without end, a thousand filters, one run key at the same moment."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server_running import RunningServer

pytest_plugins = ("server_fixtures",)
LINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def asked(server: RunningServer, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and JSON of one request."""
    sent = {"content-type": "application/json", **(headers or {})}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, data, sent)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize("path", ["/files", "/fine_tuning/jobs", "/batches"])
@pytest.mark.parametrize("limit", ["9" * 5000, "0", "-1", "²", "1e3", ""])
def test_a_limit_that_is_no_small_number_is_refused(server: RunningServer, path: str, limit: str) -> None:
    status, body = asked(server, f"{path}?limit={urllib.parse.quote(limit)}")
    assert (status, body["error"]["param"]) == (400, "limit")


def test_more_filters_than_metadata_can_hold_are_refused(server: RunningServer) -> None:
    query = "&".join(f"metadata[k{i}]=v" for i in range(1200))
    status, body = asked(server, f"/fine_tuning/jobs?{query}")
    assert (status, body["error"]["param"]) == (400, "metadata")
    assert asked(server, "/fine_tuning/jobs?" + "&".join(f"metadata[k{i}]=v" for i in range(16)))[0] == 200


def test_an_origin_that_is_no_address_is_refused(server: RunningServer) -> None:
    status, body = asked(server, "/models", headers={"Origin": "http://["})
    assert (status, body["error"]["code"]) == (400, "invalid_origin")


def test_a_lifetime_of_five_thousand_digits_is_refused(server: RunningServer) -> None:
    with pytest.raises(Exception, match="expires_after"):
        server.client().files.create(
            file=("a.jsonl", b"{}"),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": "9" * 5000},  # type: ignore[typeddict-item]
        )


def test_sixty_creations_with_one_run_key_at_the_same_moment_make_one_job(server: RunningServer) -> None:
    rows = "".join(json.dumps(LINE) + "\n" for _ in range(10)).encode()
    file = server.client().files.create(file=("t.jsonl", rows), purpose="fine-tune")
    body = {"model": "tiny", "training_file": file.id, "metadata": {"semievol_run_key": "sixty at once"}}
    with ThreadPoolExecutor(60) as threads:
        made = list(threads.map(lambda _: asked(server, "/fine_tuning/jobs", body), range(60)))
    assert {status for status, _ in made} == {200}
    assert len({job["id"] for _, job in made}) == 1
    server.client().fine_tuning.jobs.cancel(made[0][1]["id"])
