"""No secret reaches a file of a cassette."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from semievol_api.cassettes.cassette import CassetteSettings, open_cassette
from semievol_api.cassettes.http import HttpResponse
from semievol_api.cassettes.scrub import Scrubber, find_key_shapes, secret_values

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "sk-proj-" + "Ab1_" * 10
ORGANISATION = "org-" + "Qw3rTy" * 4
LOCAL_KEY = "a-local-key-of-no-known-shape"
ENVIRONMENT_KEY = 'hunter2"ö-twelve'


async def test_planted_secrets_occur_in_no_file_of_the_cassette(tmp_path: Path) -> None:
    async def indiscreet(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        assert body is not None and KEY in body.decode()  # the wire gets what was meant for it
        content = {"organization_id": ORGANISATION, "echo": f"you sent {KEY} and {LOCAL_KEY}"}
        leaked = {"set-cookie": "session=abcdef", "openai-organization": ORGANISATION, "x-ratelimit-x": KEY}
        return HttpResponse(200, {"content-type": "application/json", **leaked}, json.dumps(content).encode())

    prompt = f"My key is {KEY}, of {ORGANISATION}; also {LOCAL_KEY} and {ENVIRONMENT_KEY}."
    body = json.dumps({"messages": [{"role": "user", "content": prompt}], "safe": "task-sk-ill"}).encode()
    headers = {
        "Authorization": f"Bearer {LOCAL_KEY}",
        "Cookie": "session=abcdef",
        "OpenAI-Organization": ORGANISATION,
        "content-type": "application/json",
    }
    settings = CassetteSettings(live=indiscreet, secrets=(ENVIRONMENT_KEY,))
    async with open_cassette(tmp_path / "c", "record", settings) as cassette:
        url = f"http://x/v1/chat/completions?key={LOCAL_KEY}"
        recorded = await cassette.send("POST", url, body, headers, 1.0)
    written = b"".join(_content(file) for file in (tmp_path / "c").iterdir())
    for secret in (KEY, ORGANISATION, LOCAL_KEY, ENVIRONMENT_KEY, "hunter2", "session=", "Bearer"):
        assert secret.encode() not in written
    assert b"task-sk-ill" in written
    assert not find_key_shapes(written)

    replaying = CassetteSettings(secrets=(ENVIRONMENT_KEY,))
    async with open_cassette(tmp_path / "c", "replay", replaying) as cassette:
        assert await cassette.send("POST", url, body, headers, 1.0) == recorded


async def test_an_uploaded_file_is_hashed_without_its_secrets(tmp_path: Path) -> None:
    async def live(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        return HttpResponse(200, {"content-type": "application/json"}, b"{}")

    def upload(secret: str) -> bytes:
        return (
            f'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{secret}\r\n--b--\r\n'
        ).encode()

    headers = {"content-type": "multipart/form-data; boundary=b"}
    async with open_cassette(tmp_path / "c", "record", CassetteSettings(live=live)) as cassette:
        await cassette.send("POST", "http://x/v1/files", upload(KEY), headers, 1.0)
    async with open_cassette(tmp_path / "c") as cassette:
        await cassette.send("POST", "http://x/v1/files", upload(KEY.replace("A", "Z")), headers, 1.0)


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        "sk-" + "a1B2" * 12,
        "sk-ant-api03-" + "x_Y-" * 8,
        ORGANISATION,
        "proj_" + "a1B2c3" * 4,
        "Bearer abc.def-0123456789",
        "hf_" + "aB3" * 10,
        "AIza" + "x" * 35,
        "AKIA" + "ABCD1234" * 2,
        "ghp_" + "a1" * 18,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJlMTIz",
        "xoxb-" + "1234567890-" * 2 + "aBcDeFgHiJkL",
        "glpat-" + "a1B2_" * 4,
        "gsk_" + "a1B2c3" * 8,
        "xai-" + "a1B2c3" * 8,
        "pplx-" + "a1B2c3" * 8,
        "r8_" + "a1B2c3" * 6,
        "github_pat_" + "a1B2c3_" * 8,
        "AWS_SECRET_ACCESS_KEY=" + "a1B2/" * 8,
        "aws_secret_access_key = '" + "a1B2+" * 8 + "'",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow1BAAKCAQEA\n7Zb0==\n-----END RSA PRIVATE KEY-----",
        "postgres://db?password=hunter2hunter2",
        "PASSWORD=Tr0ub4dor",
        "api-key: 0123456789abcdef0123",
        'api_key="0123456789abcdef0123"',
    ],
)
def test_every_known_shape_is_found_and_replaced_inside_json(secret: str) -> None:
    body = json.dumps({"text": f"before {secret} after"}).encode()
    assert find_key_shapes(body)
    cleaned = Scrubber().clean(body)
    assert secret.encode() not in cleaned
    assert json.loads(cleaned)["text"].startswith("before ")
    assert json.loads(cleaned)["text"].endswith(" after")
    assert not find_key_shapes(cleaned)
    assert Scrubber().clean(cleaned) == cleaned


@pytest.mark.parametrize(
    "harmless",
    [
        "ft:gpt-4o-mini-2024-07-18:org-abcdefghijklmnopqrstuvwx::AbC",
        "a task-oriented-dialogue-system-with-many-parts",
        "the disk-usage-of-a-very-large-server-is-fine",
        "file-FqLLytrEaPH6hmSPXTr1db and ftjob-4BZEij3fAMrJmL4d2w0TKEMA",
        "through the neighbourhood",
    ],
)
def test_what_only_resembles_a_secret_is_left_alone(harmless: str) -> None:
    assert Scrubber().clean_text(harmless) == harmless


def test_short_values_of_named_variables_do_not_wreck_the_recording() -> None:
    assert Scrubber(["test", ""]).clean(b"this is a test") == b"this is a test"


def test_environment_variables_are_secret_by_their_names() -> None:
    environ = {"OPENAI_API_KEY": "one", "AZURE_TOKEN": "two", "HOME": "/root", "EMPTY_KEY": ""}
    assert secret_values(environ) == ("one", "two")


def test_no_committed_cassette_holds_anything_that_looks_like_a_key() -> None:
    files = [
        file
        for folder in ("cassettes", "tests/data", "examples", "semievol_api", "docs")
        for file in (ROOT / folder).rglob("*")
        if file.name in ("exchanges.jsonl.gz", "manifest.json")
    ]
    assert files, "the search found no cassette at all"
    found = {str(file): shapes for file in files if (shapes := find_key_shapes(_content(file)))}
    assert not found


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    return gzip.decompress(content) if file.suffix == ".gz" else content


def test_a_private_key_that_was_cut_off_goes_whole_and_json_stays_json() -> None:
    body = json.dumps(
        {"text": 'see -----BEGIN PRIVATE KEY-----\nMIIEow1BAAKCAQEA\nZb0 "quoted"', "next": "kept"}
    ).encode()
    cleaned = json.loads(Scrubber().clean(body))
    assert cleaned == {"text": 'see scrubbed-private-key"quoted"', "next": "kept"}


def test_a_named_secret_keeps_its_name() -> None:
    assert Scrubber().clean(b"api-key: 0123456789abcdef0123, password=hunter2hunter2;") == (
        b"api-key: scrubbed-key, password=scrubbed-secret;"
    )


def test_words_beside_the_word_key_are_no_secrets() -> None:
    text = b"The answer key: see-the-long-appendix-of-the-book. Press any key to continue; password = ask me."
    assert Scrubber().clean(text) == text


@pytest.mark.parametrize("name", ["client_secret", "code", "password", "X-Amz-Signature", "subscription-key", "sig"])
def test_a_query_parameter_that_carries_a_secret_is_left_out(name: str) -> None:
    assert Scrubber().clean_query([(name, "abc"), ("limit", "2")]) == (("limit", "2"),)
