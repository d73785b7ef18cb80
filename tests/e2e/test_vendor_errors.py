"""Twenty errors of vendors, as a user meets them: one paragraph, the vendor's code, the next thing to try."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.e2e.conftest import Done, Project, Semievol
from tests.e2e.threaded import serving
from tests.providers.openai_loopback import Cut, Fault, LoopbackServer, error_body

KEY = "sk-planted-0123456789abcdef"
CHAT, FILES, JOBS = "/chat/completions", "/files", "/fine_tuning/jobs"
HTML = b"<html><head><title>502 Bad Gateway</title></head><body><center>nginx</center></body></html>"


@dataclass(frozen=True)
class Case:
    """What the vendor answers where, and what the user should read: a code or word, and the next thing to try."""

    name: str
    on: str
    status: int
    body: bytes
    code: str
    advice: str


def _said(message: str, code: str | None, kind: str = "invalid_request_error") -> bytes:
    return error_body(message, code, kind)


CASES = (
    Case(
        "quota", CHAT, 429, _said("You exceeded your quota", "insufficient_quota"), "insufficient_quota", "add credit"
    ),
    Case("billing", CHAT, 429, _said("Hard limit", "billing_hard_limit_reached"), "billing_hard", "add credit"),
    Case("content policy", CHAT, 400, _said("Rejected", "content_policy_violation"), "content_policy", "content rules"),
    Case("context length", CHAT, 400, _said("Too long", "context_length_exceeded"), "context_length", "shorter"),
    Case("model gone", CHAT, 404, _said("No such model", "model_not_found"), "model_not_found", "vendor ended it"),
    Case("model retired", CHAT, 410, _said("Retired", "model_retired"), "model_retired", "vendor ended it"),
    Case("bad file", JOBS, 400, _said("Line 3", "invalid_training_file"), "invalid_training_file", "at least 10"),
    Case("no training", JOBS, 400, _said("Closed", "model_not_available"), "model_not_available", "another provider"),
    Case("daily jobs", JOBS, 400, _said("8 jobs", "daily_rate_limit_exceeded"), "daily_rate_limit", "tomorrow"),
    Case(
        "region", CHAT, 403, _said("Not here", "unsupported_country_region_territory"), "unsupported_country", "region"
    ),
    Case("expired key", CHAT, 401, _said(f"Expired: {KEY}", "invalid_api_key"), "invalid_api_key", "'PLANTED_KEY'"),
    Case("wrong project", CHAT, 401, _said("Mismatch", "mismatched_project"), "mismatched_project", "project"),
    Case("no permission", CHAT, 403, _said("Forbidden", None), "403", "may use this model"),
    Case("unknown setting", CHAT, 400, _said("top_p", "unsupported_parameter"), "unsupported_parameter", "leave out"),
    Case("server error", CHAT, 500, _said("Sorry", "server_error", "server_error"), "server_error", "another attempt"),
    Case("HTML page", CHAT, 502, HTML, "502 Bad Gateway", "another attempt"),
    Case("wrong address", CHAT, 404, b'{"detail":"Not Found"}', "404", "usually ends with /v1"),
    Case("too large", FILES, 413, b"too large", "413", "smaller file"),
)


@pytest.fixture
def at(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A small config; `base_url` is filled in by the test."""
    monkeypatch.setenv("PLANTED_KEY", KEY)
    return Project(
        project.change(
            (
                'kind = "scripted"\nstate = "server"\n',
                'kind = "openai"\nbase_url = "BASE"\napi_key_env = "PLANTED_KEY"\n',
            ),
            ("ceiling = true", "ceiling = false"),
            ("near_duplicates = false", "near_duplicates = false\nmax_labeled = 10\nmax_unlabeled = 6\nmax_test = 2"),
            ("[train]", '[retrieve]\nmethod = "bm25"\n\n[annotate]\nn = 1\n\n[limits]\nmax_attempts = 1\n\n[train]'),
        ).parent
    )


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving(LoopbackServer()) as up:
        yield up


def _one_paragraph(done: Done, code: str, advice: str) -> None:
    assert done.code in (1, 2), done
    *progress, line = done.err.strip().splitlines()
    assert line.startswith("semievol: ") and len(line) < 1200, line
    assert not any(told.startswith("semievol: ") for told in progress)
    assert code in line and advice.lower() in line.lower(), line
    assert KEY not in line and "Traceback" not in done.err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_error_of_the_vendors_is_one_paragraph_with_its_code_and_what_to_try(
    case: Case, at: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    at.change(("BASE", server.base_url))
    if case.on == CHAT:
        at.change(('mode = "paper"', 'mode = "paper"\npropagation = "in-context"'))
    server.faults.extend([Fault(case.status, case.body, on=case.on)] * 40)
    _one_paragraph(semievol("run", at.config), case.code, case.advice)


def test_a_rate_limit_is_waited_for_and_costs_no_attempt(
    at: Project, semievol: Semievol, server: LoopbackServer
) -> None:
    at.change(("BASE", server.base_url))
    busy = Fault(429, _said("Slow down", "rate_limit_exceeded"), {"retry-after-ms": "20"}, on=CHAT)
    server.faults.extend([busy] * 3)
    assert semievol("run", at.config).code == 0


def test_a_name_that_nobody_knows(at: Project, semievol: Semievol) -> None:
    at.change(("BASE", "https://nobody.invalid/v1"))
    _one_paragraph(semievol("run", at.config), "'nobody.invalid' was not found", "Check base_url")


def test_a_server_that_does_not_answer_in_time(at: Project, semievol: Semievol, server: LoopbackServer) -> None:
    at.change(
        ("BASE", server.base_url), ('api_key_env = "PLANTED_KEY"', 'api_key_env = "PLANTED_KEY"\ntimeout_s = 0.2')
    )
    server.stall_s = 0.6
    _one_paragraph(semievol("run", at.config), "gave no whole answer", "another attempt")


def test_a_connection_that_is_always_cut(at: Project, semievol: Semievol, server: LoopbackServer) -> None:
    at.change(("BASE", server.base_url), ('mode = "paper"', 'mode = "paper"\npropagation = "in-context"'))
    server.faults.extend([Cut(on=CHAT)] * 40)
    _one_paragraph(semievol("run", at.config), "gave no whole answer", "another attempt")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_that_nobody_vouches_for(at: Project, semievol: Semievol, tmp_path: Path) -> None:
    made = [str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", made[0], "-out", made[1]], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made[1], made[0])
    with serving(SecureServer(context)) as server:
        at.change(("BASE", server.base_url))
        _one_paragraph(semievol("run", at.config), "certificate of", "SSL_CERT_FILE")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ({"code": "invalid_training_file", "message": "Line 3 has no messages."}, "at least 10"),
        ({"code": "safety_eval_failed", "message": "The model was not released."}, "harmful rows"),
        ({"code": "exceeded_quota", "message": "The job passes your limit."}, "add credit"),
    ],
    ids=lambda value: value["code"] if isinstance(value, dict) else "",
)
def test_a_job_that_fails_says_why_and_may_be_bought_anew(
    error: dict[str, str], advice: str, at: Project, semievol: Semievol
) -> None:
    failing = FailingJobs(error)
    with serving(failing) as server:
        at.change(("BASE", server.base_url))
        _one_paragraph(semievol("run", at.config), error["code"], advice)
        assert len(server.jobs) == 1
        failing.error = None
        assert semievol("run", at.config).code == 0
        assert len(server.jobs) == 3, "the failed one, its successor, and the final one"


class FailingJobs(LoopbackServer):
    """Jobs end badly for as long as `error` says how."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__()
        self.error: dict[str, str] | None = error

    async def _job(self, request: web.Request) -> web.Response:
        if self.error is not None:
            self.jobs[request.match_info["id"]] |= {"status": "failed", "error": {**self.error, "param": None}}
        return await super()._job(request)


class SecureServer(LoopbackServer):
    """The same over TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self._server = TestServer(self._server.app, scheme="https")
        self._context = context

    async def __aenter__(self) -> LoopbackServer:
        await self._server.start_server(ssl=self._context)
        return self


def test_there_are_twenty_of_them() -> None:
    others = ("rate", "DNS", "timeout", "cut", "TLS")
    assert len(CASES) + len(others) >= 20
    assert json.loads(CASES[0].body)["error"]["code"] == CASES[0].code
