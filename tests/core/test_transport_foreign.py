"""Recordings of other tools become cassettes."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest

from semievol_api.cassettes.cassette import CassetteSettings, open_cassette
from semievol_api.cassettes.exchange import load
from semievol_api.cassettes.foreign import import_recordings, read_foreign
from semievol_api.cassettes.http import SLOT_HEADER
from semievol_api.cassettes.scrub import Scrubber
from semievol_api.errors import DataError
from tests.wire import WIRE, WireSend, wire_exchanges

JSON = {"content-type": "application/json"}


def vcr_yaml(body: bytes, encoding: str) -> str:
    encoded = base64.b64encode(body).decode()
    return f"""
version: 1
interactions:
- request:
    method: POST
    uri: https://api.openai.com/v1/chat/completions
    body: '{{"messages": [], "model": "m"}}'
    headers: {{authorization: [Bearer sk-aaaaaaaaaaaaaaaaaaaaaaaaa], content-type: [application/json]}}
  response:
    status: {{code: 200, message: OK}}
    headers: {{Content-Type: [application/json], Content-Encoding: [{encoding}], Set-Cookie: [a=1, b=2]}}
    body: {{string: !!binary "{encoded}"}}
- request: {{method: GET, uri: 'https://api.openai.com/v1/models?b=1&a=2', body: null, headers: {{}}}}
  response:
    status: {{code: 404, message: Not Found}}
    headers: {{Content-Type: [application/json]}}
    body: {{string: '{{"error": {{}}}}'}}
"""


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_vcr_cassette_replays_after_import(tmp_path: Path, encoding: str) -> None:
    answer = b'{"id":"chatcmpl-1"}'
    source = tmp_path / "old.yaml"
    source.write_text(vcr_yaml(gzip.compress(answer) if encoding == "gzip" else answer, encoding))
    assert import_recordings([source], tmp_path / "c", Scrubber()) == 2
    assert load(tmp_path / "c").manifest.recorded_against == "api.openai.com"
    async with open_cassette(tmp_path / "c") as cassette:
        body = b'{"model":"m","messages":[]}'
        chat = await cassette.send("POST", "http://x/v1/chat/completions", body, JSON, 1.0)
        models = await cassette.send("GET", "http://x/v1/models?a=2&b=1", None, {}, 1.0)
    assert (chat.status, chat.body, chat.headers) == (200, answer, JSON)
    assert (models.status, json.loads(models.body)) == (404, {"error": {}})


@pytest.mark.parametrize(("name", "content"), [("a.yaml", "just: text"), ("b.json", "{"), ("c.yaml", "a: [")])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="is neither a vcrpy cassette"):
        read_foreign(tmp_path / name)


def test_the_shipped_cassette_is_what_the_import_makes_of_all_32_session_records(
    tmp_path: Path, session_records: Path
) -> None:
    sources = sorted(session_records.glob("*.json"))
    assert len(sources) == 32
    import_recordings(sources, tmp_path / "c", Scrubber(), slot_per_source=True)
    made, shipped = load(tmp_path / "c").exchanges, load(WIRE).exchanges
    assert {i: one.response.to_http() for i, one in made.items()} == {
        i: one.response.to_http() for i, one in shipped.items()
    }


def test_session_records_keep_every_answer_and_every_request(session_records: Path) -> None:
    for source in sorted(session_records.glob("*.json")):
        entries = json.loads(source.read_text())["Entries"]
        read = read_foreign(source)
        assert [(one.method, one.url, one.status) for one in read] == [
            (entry["RequestMethod"], entry["RequestUri"], entry["StatusCode"]) for entry in entries
        ]
        for one, entry in zip(read, entries, strict=True):
            if isinstance(entry["ResponseBody"], dict):
                assert json.loads(one.response_body) == entry["ResponseBody"]
            if isinstance(entry["RequestBody"], dict):
                assert json.loads(one.request_body) == entry["RequestBody"]


def test_an_upload_with_base64_lines_is_read_as_its_parts() -> None:
    exchange = next(
        one for one in load(WIRE).exchanges.values() if "CreateGetAndCancelBatch" in one.slot and one.request.body.parts
    )
    file, purpose = exchange.request.body.parts
    assert (file.name, file.filename, file.bytes) == ("file", "test-batch-file", 233)
    assert (purpose.name, purpose.text) == ("purpose", "batch")


async def test_an_imported_session_replays_under_its_slot() -> None:
    recorded = wire_exchanges("ChatTests__HelloWorldChat")[0]
    cassette = open_cassette(WIRE, "replay", CassetteSettings(shorten_waits=False))
    headers = {**JSON, SLOT_HEADER: "openai-dotnet__ChatTests__HelloWorldChat"}
    answer = await cassette.send("POST", "http://x/v1/chat/completions", recorded.request, headers, 1.0)
    assert answer == recorded.response


async def test_a_provider_can_be_given_recorded_answers() -> None:
    failed = wire_exchanges("ChatTests__AuthFailure")[0]
    send = WireSend(failed)
    assert (await send("POST", "http://x", b"{}", {}, 1.0)).status == 401
    assert send.asked == [("POST", "http://x", b"{}")]
    assert len(wire_exchanges()) == 55
