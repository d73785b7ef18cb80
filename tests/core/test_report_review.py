"""The review's rows and its server: what is worth asking, who may ask, what is refused."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from semievol_api.errors import RunFolderError
from semievol_api.report.labels import AUDIT_EVERY, read_decisions, read_label_table, review_queue
from semievol_api.report.review_server import PostedDecision, ReviewSession, open_review_server
from tests.synthetic_run import synthetic_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("review") / "run", rows=60, tests=20)


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    (run / "review.jsonl").unlink(missing_ok=True)
    with open_review_server(run) as (server, url):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield url
        server.stop()
        thread.join()


def _ask(
    url: str, method: str, path: str, body: object = None, host: str | None = None, origin: str | None = None
) -> tuple[int, dict[str, object]]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=10)
    headers = {name: value for name, value in (("Host", host), ("Origin", origin)) if value}
    connection.request(method, parts.path + path, json.dumps(body) if body is not None else None, headers)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, json.loads(text) if reply.getheader("Content-Type") == "application/json" else {}


def test_the_queue_holds_every_row_once_and_the_least_agreed_ones_first(run: Path) -> None:
    labels = read_label_table(run)
    queue = review_queue(labels)
    assert sorted(r.place for r in queue) == list(range(len(labels)))
    agreement = [float(np.nan_to_num(labels.agreement())[r.place]) for r in queue if not r.audit]
    assert agreement == sorted(agreement)


def test_one_row_in_seven_is_drawn_uniformly_for_the_audit(run: Path) -> None:
    queue = review_queue(read_label_table(run), limit=42)
    assert [r.audit for r in queue] == [(i + 1) % AUDIT_EVERY == 0 for i in range(42)]


def test_a_decision_is_written_as_what_it_is(run: Path, address: str) -> None:
    _, state = _ask(address, "GET", "rows.json")
    rows = state["rows"]
    assert isinstance(rows, list)
    row = next(r for r in rows if r["answer"] == "A")
    status, made = _ask(address, "POST", "decide", {"example_id": row["id"], "action": "correct", "answer": "A"})
    assert (status, made["action"]) == (200, "accept")
    _ask(address, "POST", "decide", {"example_id": row["id"], "action": "accept", "answer": "B"})
    decision = read_decisions(run / "review.jsonl")[str(row["id"])]
    assert (decision.action, decision.answer, decision.proposed) == ("correct", "B", "A")


def test_decided_rows_do_not_come_again_in_the_next_sitting(run: Path) -> None:
    (run / "review.jsonl").unlink(missing_ok=True)
    with ReviewSession.open(run) as session:
        first = next(iter(session.rows))
        session.decide(PostedDecision(example_id=first, action="skip"))
    with ReviewSession.open(run) as session:
        assert first not in session.rows
        assert len(session.rows) == 59


@pytest.mark.parametrize(
    "body",
    [
        {"example_id": "unknown", "action": "skip"},
        {"action": "skip"},
        {"example_id": 1, "action": "skip"},
        [],
        "text",
    ],
)
def test_a_spoilt_decision_is_refused_and_nothing_is_written(run: Path, address: str, body: object) -> None:
    status, reply = _ask(address, "POST", "decide", body)
    assert status == 400
    assert "error" in reply
    assert read_decisions(run / "review.jsonl") == {}


def test_an_accepted_row_needs_an_answer_and_a_skipped_one_has_none(run: Path, address: str) -> None:
    _, state = _ask(address, "GET", "rows.json")
    rows = state["rows"]
    assert isinstance(rows, list)
    for action, answer in (("accept", None), ("correct", "  "), ("skip", "A")):
        body = {"example_id": rows[0]["id"], "action": action, "answer": answer}
        assert _ask(address, "POST", "decide", body)[0] == 400


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/rows.json", "//", "/review.jsonl"])
def test_without_the_token_nothing_is_found(address: str, path: str) -> None:
    parts = urlsplit(address)
    assert _ask(f"http://127.0.0.1:{parts.port}{path}", "GET", "")[0] == 404
    assert _ask(f"http://127.0.0.1:{parts.port}{path}", "POST", "decide", {})[0] == 404


def test_another_sites_name_for_this_machine_is_turned_away(address: str) -> None:
    assert _ask(address, "GET", "rows.json", host="evil.example:80")[0] == 404
    assert _ask(address, "GET", "rows.json")[0] == 200


def test_a_page_of_another_site_cannot_decide(run: Path, address: str) -> None:
    row = {"example_id": _first_row(address), "action": "skip"}
    assert _ask(address, "POST", "decide", row, origin="https://evil.example")[0] == 403
    assert _ask(address, "POST", "undo", origin="null")[0] == 403
    assert read_decisions(run / "review.jsonl") == {}
    assert _ask(address, "POST", "decide", row, origin="http://" + urlsplit(address).netloc)[0] == 200


@pytest.mark.parametrize(("length", "status"), [("1000001", 413), ("99999999999", 413), ("-1", 400), ("many", 400)])
def test_a_body_too_long_for_a_decision_is_refused_before_it_is_read(address: str, length: str, status: int) -> None:
    parts = urlsplit(address)
    with socket.create_connection(("127.0.0.1", parts.port or 0), timeout=5) as connection:
        head = f"POST {parts.path}decide HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).split()[1] == str(status).encode()


def _first_row(address: str) -> str:
    rows = _ask(address, "GET", "rows.json")[1]["rows"]
    assert isinstance(rows, list)
    return str(rows[0]["id"])


def test_a_taken_port_and_a_folder_that_is_no_run_are_said_calmly(run: Path, address: str, tmp_path: Path) -> None:
    other = synthetic_run(tmp_path / "other", rows=4, labelled=4, tests=2)
    with pytest.raises(RunFolderError, match="Port"), open_review_server(other, urlsplit(address).port or 0):
        pass
    with pytest.raises(RunFolderError, match="is no run"), open_review_server(tmp_path):
        pass
