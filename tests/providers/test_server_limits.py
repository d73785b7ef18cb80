"""Who may do what, and how much: keys, foreign pages, rates, sizes, slow clients, hostile names, log lines."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from local_samples import training_lines
from server_running import RunningServer, wait_for_job

from semievol_providers.server.api_errors import ApiError
from semievol_providers.server.gate import RateLimits
from semievol_providers.server.settings import Limits

pytest_plugins = ("server_fixtures",)
LIMITS = """
body_pause_s = 0.6
body_bytes_per_s = 1000
idle_connection_s = 0.5
body_bytes = 20000
upload_bytes = 300000
samples = 4
completion_tokens = 50
embed_inputs = 3
prompts = 2
requests_per_minute = 500
tokens_per_minute = 100000
queued_jobs = 4
queued_jobs_all_keys = 6
unfinished_batches = 1
"""
MESSAGES: Any = [{"role": "user", "content": "a secret question"}]
LINE = {"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": "a"}}


@pytest.fixture(scope="module")
def strict(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two keys and small limits that logs requests."""
    folder = tmp_path_factory.mktemp("strict")
    (folder / "limits.toml").write_text(LIMITS)
    options = ("--api-key-env", "KEYS", "--limits", str(folder / "limits.toml"), "--log-requests")
    with RunningServer(tiny_model, folder, options, {"KEYS": "alpha-key,beta-key"}) as server:
        yield server


def _upload(client: openai.OpenAI, data: bytes, purpose: Any = "fine-tune", name: str = "t.jsonl") -> str:
    return client.files.create(file=(name, data), purpose=purpose).id


def test_no_route_shows_one_key_what_another_made(strict: RunningServer) -> None:
    alpha, beta = strict.client(api_key="alpha-key", max_retries=3), strict.client(api_key="beta-key")
    file = _upload(alpha, training_lines(12).encode())
    job = alpha.fine_tuning.jobs.create(model="tiny", training_file=file, hyperparameters={"n_epochs": 1})
    batch_input = _upload(alpha, json.dumps(LINE).encode(), "batch")
    batch = alpha.batches.create(input_file_id=batch_input, endpoint="/v1/embeddings", completion_window="24h")
    done = wait_for_job(alpha, job.id)
    model, name = done.fine_tuned_model, {"model": done.fine_tuned_model}
    hidden: list[tuple[str, str, dict[str, Any] | None]] = [
        ("GET", f"/files/{file}", None),
        ("GET", f"/files/{file}/content", None),
        ("DELETE", f"/files/{file}", None),
        ("GET", f"/files/{done.result_files[0]}/content", None),
        ("POST", "/fine_tuning/jobs", {"model": "tiny", "training_file": file}),
        ("POST", "/fine_tuning/jobs", {"model": "tiny", "training_file": "file-none", "validation_file": file}),
        *(("POST", f"/fine_tuning/jobs/{job.id}/{verb}", None) for verb in ("cancel", "pause", "resume")),
        *(("GET", f"/fine_tuning/jobs/{job.id}{part}", None) for part in ("", "/events", "/checkpoints")),
        ("GET", f"/batches/{batch.id}", None),
        ("POST", f"/batches/{batch.id}/cancel", None),
        ("POST", "/batches", {"input_file_id": batch_input, "endpoint": "/v1/embeddings", "completion_window": "24h"}),
        ("GET", f"/models/{model}", None),
        ("DELETE", f"/models/{model}", None),
        ("POST", "/chat/completions", name | {"messages": MESSAGES}),
        ("POST", "/completions", name | {"prompt": "x"}),
        ("POST", "/embeddings", name | {"input": "x"}),
        ("POST", "/fine_tuning/jobs", name | {"training_file": _upload(beta, training_lines(12).encode())}),
    ]  # fmt: skip
    for method, path, body in hidden:
        status, answer = _ask(strict, method, path, "beta-key", body)
        assert status in (400, 404), (method, path, answer)
        assert "training_lines" not in answer
        assert _ask(strict, method, path, "", body)[0] == 401
    lists = ("/files", "/fine_tuning/jobs", "/batches", "/models")
    beta_own = {"tiny", *(f.id for f in beta.files.list())}
    for path in lists:
        shown = json.loads(_ask(strict, "GET", path, "beta-key")[1])["data"]
        assert {row["id"] for row in shown} <= beta_own, path
        assert _ask(strict, "GET", path, "")[0] == 401
    assert alpha.models.retrieve(model).id == model and alpha.files.retrieve(file).id == file
    assert _ask(strict, "GET", "/../metrics", "")[0] == 401
    health = json.loads(_ask(strict, "GET", "/../healthz", "")[1])
    assert health == {"status": "ok"}


def _ask(server: RunningServer, method: str, path: str, key: str, body: Any = None) -> tuple[int, str]:
    url = server.url.removesuffix("/v1") + path.removeprefix("/..") if path.startswith("/..") else server.url + path
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), method=method)
    if key:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_answers_tell_what_is_left_of_the_rates(strict: RunningServer) -> None:
    client = strict.client(api_key="alpha-key", max_retries=3)
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, max_tokens=5)
    assert raw.headers["x-ratelimit-limit-requests"] == "500"
    # A slow machine refills what this one request took before it is answered.
    assert 0 < int(raw.headers["x-ratelimit-remaining-requests"]) <= 500
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) <= 100000
    assert float(raw.headers["x-ratelimit-reset-tokens"].removesuffix("s")) >= 0
    assert raw.headers["x-request-id"].startswith("req_")


def test_a_bucket_empties_refills_and_is_each_owners_own() -> None:
    clock = [0.0]
    rates = RateLimits(Limits(requests_per_minute=2, tokens_per_minute=60, requests_per_key=1), lambda: clock[0])
    rates.admit("a")
    rates.admit("a")
    with pytest.raises(ApiError, match="requests per minute") as raised:
        rates.admit("a")
    assert (raised.value.status, raised.value.headers["retry-after-ms"]) == (429, "30001")
    rates.admit("b")
    clock[0] = 30.0
    rates.charge("a", 100)
    with pytest.raises(ApiError, match="tokens per minute"):
        rates.admit("a")
    clock[0] = 72.0
    rates.admit("a")
    with rates.hold("a"), rates.hold("b"), pytest.raises(ApiError, match="at a time"), rates.hold("a"):
        pass
    with rates.hold("a"):
        pass


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/chat/completions", {"messages": MESSAGES, "n": 5}, "n"),
        ("/chat/completions", {"messages": MESSAGES, "max_tokens": 51}, "max_tokens"),
        ("/completions", {"prompt": ["a", "b", "c"]}, "prompt"),
        ("/embeddings", {"input": ["a", "b", "c", "d"]}, "input"),
    ],
)
def test_a_request_for_more_than_the_limits_is_refused(
    strict: RunningServer, path: str, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        strict.client(api_key="alpha-key", max_retries=3).post(path, body={"model": "tiny"} | body, cast_to=object)
    assert raised.value.param == param


def test_bodies_and_uploads_beyond_their_sizes_are_refused(strict: RunningServer) -> None:
    client = strict.client(api_key="alpha-key", max_retries=3)
    with pytest.raises(openai.APIStatusError) as raised:
        client.embeddings.create(model="tiny", input="x" * 20001)
    assert raised.value.status_code == 413
    with pytest.raises((openai.APIStatusError, openai.APIConnectionError)):
        _upload(client, b"x" * 400_000)
    assert len(_upload(client, b"x" * 290_000)) == 29
    assert not list((strict.folder / "state" / "files").glob("*.partial"))


def test_queues_are_bounded_for_each_key_and_for_all_together(strict: RunningServer) -> None:
    client, other = (strict.client(api_key=key, max_retries=1) for key in ("alpha-key", "beta-key"))
    file = _upload(client, training_lines(12).encode())
    made = []
    with pytest.raises(openai.RateLimitError, match="Your queue of jobs is full"):
        for _ in range(6):
            job = client.fine_tuning.jobs.create(model="tiny", training_file=file, hyperparameters={"n_epochs": 50})
            made.append(job.id)
    assert len(made) == 4
    others = []
    with pytest.raises(openai.RateLimitError, match="server's queue of jobs is full"):
        for _ in range(6):
            theirs = _upload(other, training_lines(12).encode())
            job = other.fine_tuning.jobs.create(model="tiny", training_file=theirs, hyperparameters={"n_epochs": 50})
            others.append(job.id)
    assert len(others) == 2
    for who, ids in ((client, made), (other, others)):
        for job_id in ids:
            who.fine_tuning.jobs.cancel(job_id)


def _talk(server: RunningServer, data: bytes, pieces: int = 0, pause_s: float = 0.0) -> bytes:
    """What the server says to this data, followed by single bytes with pauses."""
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        try:
            for _ in range(pieces):
                time.sleep(pause_s)
                connection.sendall(b"x")
        except OSError:
            pass
        said = b""
        while part := connection.recv(65536):
            said += part
        return said


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer alpha-key\r\n"


def test_bodies_that_stop_or_trickle_are_given_up(strict: RunningServer) -> None:
    for pieces, pause_s in ((0, 0.0), (30, 0.1)):
        since = time.monotonic()
        said = _talk(strict, HEAD + b"Content-Length: 5000\r\n\r\n{", pieces, pause_s)
        assert said.startswith(b"HTTP/1.1 408 "), said
        assert time.monotonic() - since < 6


def test_heads_that_never_end_are_given_up(strict: RunningServer) -> None:
    since = time.monotonic()
    assert _talk(strict, HEAD, pieces=20, pause_s=0.1) == b""
    assert time.monotonic() - since < 6


def test_an_upload_that_breaks_off_leaves_nothing(strict: RunningServer) -> None:
    form = b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 90000\r\n\r\n--b\r\n"
    part = b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\nabc'
    before = sorted((strict.folder / "state" / "files").iterdir())
    said = _talk(strict, HEAD.replace(b"/v1/embeddings", b"/v1/files") + form + part)
    assert said.startswith(b"HTTP/1.1 408 "), said
    assert sorted((strict.folder / "state" / "files").iterdir()) == before


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "..\\..\\x", "a\x00b", "x" * 5000, "state.sqlite"]
)
def test_a_hostile_file_name_stays_a_name(strict: RunningServer, name: str) -> None:
    client = strict.client(api_key="alpha-key", max_retries=3)
    try:
        file = client.files.create(file=(name, b"data"), purpose="user_data")
    except openai.BadRequestError:
        return
    assert client.files.content(file.id).read() == b"data"
    kept = strict.folder / "state" / "files" / file.id
    assert kept.read_bytes() == b"data" and len(file.filename) <= 255


@pytest.mark.parametrize(
    "name", ["..%2F..%2Fstate.sqlite", "%2e%2e", "....//", "file-%00", "file-..%2Fx", "%F0%9F%98%80"]
)
def test_a_hostile_id_is_not_found(strict: RunningServer, name: str) -> None:
    for path in (f"/files/{name}", f"/files/{name}/content", f"/models/{name}", f"/fine_tuning/jobs/{name}"):
        status, answer = _ask(strict, "GET", path, "alpha-key")
        assert status in (404, 405), answer
        assert "SQLite" not in answer


def test_a_link_in_the_place_of_a_file_is_not_followed(strict: RunningServer, tmp_path: Path) -> None:
    client = strict.client(api_key="alpha-key", max_retries=3)
    file_id = _upload(client, b"data", "user_data")
    (tmp_path / "secret").write_text("secret")
    kept = strict.folder / "state" / "files" / file_id
    kept.unlink()
    kept.symlink_to(tmp_path / "secret")
    status, answer = _ask(strict, "GET", f"/files/{file_id}/content", "alpha-key")
    assert status == 404 and "secret" not in answer


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [("Origin", "https://evil.example", "foreign_origin"), ("Host", "evil.example", "unknown_host")],
)
def test_pages_of_other_sites_cannot_use_a_server_without_keys(
    server: RunningServer, header: str, value: str, code: str
) -> None:
    request = urllib.request.Request(server.url + "/models", headers={header: value})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request)
    assert raised.value.code == 403
    assert json.loads(raised.value.read())["error"]["code"] == code
    raised.value.close()


def test_log_lines_are_json_and_hold_no_prompt_key_or_path(strict: RunningServer) -> None:
    client = strict.client(api_key="alpha-key", max_retries=3)
    client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
    client.files.content(_upload(client, b"data", "user_data", "private-name.txt"))
    text = strict.log()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    asked = [line for line in lines if line["event"] == "request"]
    assert {"create_chat", "create_file", "file_content"} <= {line["route"] for line in asked}
    assert all(
        line["ms"] >= 0 and line["owner"] != "" for line in asked if line["status"] == 200 and line["route"] != "health"
    )
    for hidden in ("secret question", "alpha-key", "beta-key", "private-name", "/v1/files"):
        assert hidden not in text.split("\n", 1)[1]


def test_the_state_folder_holds_no_key(strict: RunningServer) -> None:
    strict.client(api_key="alpha-key", max_retries=3).models.list()
    for path in (strict.folder / "state").rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"alpha-key" not in path.read_bytes(), path
    assert (strict.folder / "state").stat().st_mode & 0o077 == 0
