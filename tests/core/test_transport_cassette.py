"""The cassette itself: slots, strict replay, recording whole or not at all."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from semievol_api.cassettes.cassette import Cassette, CassetteSettings, CassetteUnplayed, open_cassette
from semievol_api.cassettes.exchange import EXCHANGES, load
from semievol_api.cassettes.http import SLOT_HEADER, HttpResponse, HttpSend
from semievol_api.cassettes.miss import CassetteMiss, CassetteMode
from semievol_api.errors import ConfigError, DataError, TransientError
from tests.transport_server import small_server

JSON = {"content-type": "application/json"}
CHAT = "https://api.example.com/v1/chat/completions"


class Live:
    """Stands where the wire is: numbers its answers, and gives the later ones sooner."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.asked = 0
        self.status = status
        self.headers = {**JSON, **(headers or {})}

    async def __call__(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        self.asked += 1
        number = self.asked
        for _ in range(max(0, 20 - number)):
            await asyncio.sleep(0)
        return HttpResponse(self.status, self.headers, b'{"sample":%d}' % number)


def chat(text: str = "What is 2+2?", **more: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


async def ask(cassette: Cassette, body: bytes | None = None, slot: str = "", url: str = CHAT) -> HttpResponse:
    headers = {**JSON, **({SLOT_HEADER: slot} if slot else {})}
    return await cassette.send("POST", url, body or chat(), headers, 5.0)


def recorder(path: Path, live: HttpSend | None = None) -> Cassette:
    return open_cassette(path, "record", CassetteSettings(live=live or Live()))


async def record_one(path: Path) -> HttpResponse:
    async with recorder(path) as cassette:
        return await ask(cassette)


async def test_sixteen_identical_concurrent_requests_get_back_the_samples_they_had(tmp_path: Path) -> None:
    async with recorder(tmp_path / "c") as cassette:
        recorded = await asyncio.gather(*(ask(cassette) for _ in range(16)))
    assert len({answer.body for answer in recorded}) == 16
    async with open_cassette(tmp_path / "c") as cassette:
        replayed = await asyncio.gather(*(ask(cassette) for _ in range(16)))
    assert replayed == recorded


async def test_slots_keep_their_samples_when_the_order_of_asking_changes(tmp_path: Path) -> None:
    slots = [f"example-{i}" for i in range(16)]
    async with recorder(tmp_path / "c") as cassette:
        answers = await asyncio.gather(*(ask(cassette, slot=slot) for slot in slots))
    async with open_cassette(tmp_path / "c") as cassette:
        for slot, answer in reversed(list(zip(slots, answers, strict=True))):
            assert await ask(cassette, slot=slot) == answer


async def test_a_replay_needs_neither_the_address_nor_the_key_of_the_recording(tmp_path: Path) -> None:
    async with recorder(tmp_path / "c") as cassette:
        recorded = await ask(cassette, url="https://one.example.com/openai/v1/chat/completions?b=2&a=1")
    async with open_cassette(tmp_path / "c") as cassette:
        headers = {"Content-Type": "application/json", "Authorization": "Bearer another"}
        url = "http://127.0.0.1:9/v1/chat/completions?a=1&b=2"
        assert await cassette.send("post", url, chat(), headers, 1.0) == recorded


async def test_a_changed_prompt_misses_and_shows_what_differs_from_the_nearest_recording(
    tmp_path: Path,
) -> None:
    async with recorder(tmp_path / "c") as cassette:
        for city in ("Lima", "Oslo", "Rome"):
            await ask(cassette, chat(f"Where is it?\nThe capital is {city}.\nReply.", temperature=1.0))
    cassette = open_cassette(tmp_path / "c")
    with pytest.raises(CassetteMiss) as miss:
        await ask(cassette, chat("Where is it?\nThe capital is near Oslo.\nReply.", temperature=0.5))
    message = str(miss.value)
    assert "      - The capital is Oslo.\n      + The capital is near Oslo." in message
    assert "body.temperature:\n      - 1.0\n      + 0.5" in message
    assert "Where is it?" not in message
    assert "record-missing" in message


async def test_the_nearest_recording_of_a_slot_is_the_one_with_the_same_slot(tmp_path: Path) -> None:
    async with recorder(tmp_path / "c") as cassette:
        await ask(cassette, chat("entirely different words"), slot="row-7")
        await ask(cassette, chat("the very same words"), slot="row-8")
    with pytest.raises(CassetteMiss, match=r"slot 'row-7'; - recorded(.|\n)*- entirely different words"):
        await ask(open_cassette(tmp_path / "c"), chat("the very same words"), slot="row-7")


async def test_a_path_that_was_never_recorded_is_called_so(tmp_path: Path) -> None:
    await record_one(tmp_path / "c")
    cassette = open_cassette(tmp_path / "c")
    with pytest.raises(CassetteMiss, match="none; DELETE /files/1 was never recorded"):
        await cassette.send("DELETE", "http://x/v1/files/1", None, {}, 1.0)


async def test_a_miss_passes_through_except_exception_and_is_remembered(tmp_path: Path) -> None:
    await record_one(tmp_path / "c")
    cassette = open_cassette(tmp_path / "c")

    async def careless() -> str:
        try:
            await ask(cassette, chat("never asked"))
        except Exception:  # noqa: BLE001 (that it does not help is the point)
            return "swallowed"
        return "answered"

    with pytest.raises(CassetteMiss):
        await careless()
    with pytest.raises(CassetteMiss, match="holds no answer"):
        cassette.finish()


async def test_a_miss_ends_a_task_group_with_a_group_that_is_no_exception_group(tmp_path: Path) -> None:
    await record_one(tmp_path / "c")
    cassette = open_cassette(tmp_path / "c")
    with pytest.raises(BaseExceptionGroup) as group:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(cassette, chat("never asked")))
    assert not isinstance(group.value, Exception)


async def test_asking_once_more_than_was_recorded_is_a_miss(tmp_path: Path) -> None:
    async with recorder(tmp_path / "c") as cassette:
        await ask(cassette)
        await ask(cassette)
    cassette = open_cassette(tmp_path / "c")
    await ask(cassette)
    await ask(cassette)
    with pytest.raises(CassetteMiss, match="the same request 2 times, not once more"):
        await ask(cassette)


async def test_exchanges_left_unplayed_fail_the_replay(tmp_path: Path) -> None:
    async with recorder(tmp_path / "c") as cassette:
        await ask(cassette)
        await ask(cassette, chat("another"))
    with pytest.raises(CassetteUnplayed, match=r"1 of 2 exchanges .* POST /chat/completions -> 200"):
        async with open_cassette(tmp_path / "c") as cassette:
            await ask(cassette)
    async with open_cassette(tmp_path / "c", "replay", CassetteSettings(allow_unplayed=True)) as cassette:
        await ask(cassette)
    assert [one.label for one in cassette.unplayed()] == ["POST /chat/completions -> 200"]


async def test_record_missing_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    first = await record_one(tmp_path / "c")
    live = Live()
    async with open_cassette(tmp_path / "c", "record-missing", CassetteSettings(live=live)) as cassette:
        assert await ask(cassette) == first
        second = await ask(cassette, chat("new"))
    assert live.asked == 1
    async with open_cassette(tmp_path / "c") as cassette:
        assert [await ask(cassette), await ask(cassette, chat("new"))] == [first, second]


async def test_record_missing_keeps_what_it_got_when_the_program_fails(tmp_path: Path) -> None:
    settings = CassetteSettings(live=Live())
    with pytest.raises(RuntimeError):
        async with open_cassette(tmp_path / "c", "record-missing", settings) as cassette:
            await ask(cassette)
            raise RuntimeError
    assert len(load(tmp_path / "c").exchanges) == 1


async def test_mode_off_asks_the_wire_and_writes_nothing(tmp_path: Path) -> None:
    live = Live()
    async with open_cassette(tmp_path / "c", "off", CassetteSettings(live=live)) as cassette:
        await ask(cassette)
    assert live.asked == 1
    assert not (tmp_path / "c").exists()


async def test_an_error_while_recording_leaves_the_old_cassette_untouched(tmp_path: Path) -> None:
    await record_one(tmp_path / "c")
    before = {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()}
    with pytest.raises(RuntimeError):
        async with recorder(tmp_path / "c") as cassette:
            await ask(cassette, chat("other"))
            raise RuntimeError
    assert {file.name: file.read_bytes() for file in (tmp_path / "c").iterdir()} == before


async def test_a_process_killed_while_writing_leaves_the_old_cassette_whole(
    tmp_path: Path, child_env: dict[str, str]
) -> None:
    await record_one(tmp_path / "c")
    before = load(tmp_path / "c").exchanges.keys()
    script = f"""
import os, signal
from pathlib import Path
from semievol_api.cassettes import exchange as store
real_fsync = os.fsync
def die_when_written(fd):
    real_fsync(fd)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = die_when_written
path = Path({str(tmp_path / "c")!r})
store.save(path, store.load(path).manifest, [])
"""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, env=child_env)
    await child.wait()
    assert child.returncode == -signal.SIGKILL
    assert load(tmp_path / "c").exchanges.keys() == before


async def test_a_damaged_or_absent_cassette_is_refused_in_one_paragraph(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no cassette at"):
        open_cassette(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="'again' is none of replay"):
        open_cassette(tmp_path / "nothing", "again")  # type: ignore[arg-type]
    await record_one(tmp_path / "c")
    whole = (tmp_path / "c" / EXCHANGES).read_bytes()
    for damaged in (whole[:-10], b"not gzip at all", gzip.compress(b'{"key": 1}\n')):
        (tmp_path / "c" / EXCHANGES).write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged"):
            open_cassette(tmp_path / "c")


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    await record_one(tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(DataError, match="has format 2; this version reads 1"):
        open_cassette(tmp_path / "c")


@pytest.mark.parametrize("mode", ["replay", "record", "record-missing"])
async def test_a_newer_cassette_of_another_shape_is_named_as_newer_and_never_replaced(
    tmp_path: Path, mode: CassetteMode
) -> None:
    await record_one(tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.json"
    manifest.write_text('{"format_version": 9, "date": ["another", "shape"]}')
    (tmp_path / "c" / EXCHANGES).rename(tmp_path / "c" / "exchanges.zst")
    if mode == "replay":
        (tmp_path / "c" / EXCHANGES).write_bytes(b"")
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    with pytest.raises(DataError, match="has format 9; this version reads 1"):
        open_cassette(tmp_path / "c", mode)
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before


async def test_equal_recordings_are_equal_bytes_whatever_the_order_of_asking(tmp_path: Path) -> None:
    async def constant(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        return HttpResponse(200, JSON, b'{\n  "b": 1,\n  "a": -1.6857742071151733}\n')

    for name, texts in (("one", "abc"), ("two", "cab")):
        async with recorder(tmp_path / name, constant) as cassette:
            for text in texts:
                await ask(cassette, chat(text))
    one, two = (tmp_path / name / EXCHANGES for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert b'"json":{"b":1,"a":-1.6857742071151733}' in gzip.decompress(one.read_bytes())
    assert sorted(file.name for file in one.parent.iterdir()) == ["exchanges.jsonl.gz", "manifest.json"]


async def test_a_failed_connection_is_recorded_and_replayed_as_one(tmp_path: Path) -> None:
    async with small_server() as server:
        server.broken = 1
        async with open_cassette(tmp_path / "c", "record") as cassette:
            url = f"{server.base_url}/chat/completions"
            with pytest.raises(TransientError) as recorded:
                await ask(cassette, url=url)
            answer = await ask(cassette, url=url)
    async with open_cassette(tmp_path / "c") as cassette:
        with pytest.raises(TransientError) as replayed:
            await ask(cassette)
        assert await ask(cassette) == answer
    assert str(replayed.value) == str(recorded.value)


async def test_a_request_given_up_while_recording_fails_at_replay_and_its_retry_answers(
    tmp_path: Path,
) -> None:
    asked = 0

    async def slow_at_first(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60.0 if asked == 1 else 0.0)
        return HttpResponse(200, JSON, b"{}")

    async with recorder(tmp_path / "c", slow_at_first) as cassette:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await ask(cassette, slot="row")
        answer = await ask(cassette, slot="row")
    async with open_cassette(tmp_path / "c") as cassette:
        with pytest.raises(TransientError, match="given up"):
            await ask(cassette, slot="row")
        assert await ask(cassette, slot="row") == answer


async def test_a_replay_asks_for_milliseconds_where_the_server_asked_for_seconds(tmp_path: Path) -> None:
    headers = {"retry-after": "20", "x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-limit-tokens": "9"}
    async with recorder(tmp_path / "c", Live(429, headers)) as cassette:
        recorded = await ask(cassette)
    assert recorded.headers["retry-after"] == "20"
    async with open_cassette(tmp_path / "c") as cassette:
        replayed = (await ask(cassette)).headers
    assert 0 < float(replayed["retry-after"]) < 0.05
    assert replayed["retry-after-ms"] == "1"
    assert replayed["x-ratelimit-reset-tokens"] == "1ms"
    assert replayed["x-ratelimit-limit-tokens"] == "9"
    async with open_cassette(tmp_path / "c", "replay", CassetteSettings(shorten_waits=False)) as cassette:
        assert (await ask(cassette)).headers == recorded.headers


async def test_the_manifest_says_who_answered_and_that_our_own_machine_is_no_evidence(
    tmp_path: Path,
) -> None:
    async with small_server() as server:
        settings = CassetteSettings(seed=7, notes="a trial")
        async with open_cassette(tmp_path / "c", "record", settings) as cassette:
            await ask(cassette, url=f"{server.base_url}/chat/completions")
    manifest = load(tmp_path / "c").manifest
    assert "no evidence about any vendor" in manifest.recorded_against
    assert (manifest.seed, manifest.notes, manifest.exchanges) == (7, "a trial", 1)
    assert manifest.packages["aiohttp"]
    assert manifest.date == time.strftime("%Y-%m-%d", time.gmtime())


async def test_bodies_that_are_not_json_come_back_as_they_were(tmp_path: Path) -> None:
    bodies = {
        "application/jsonl": b'{"a": 1}\n',
        "text/event-stream": "data: ü\n\n".encode(),
        "image/png": b"\xff\x00",
        "application/json": b"cut off {",
    }

    async def live(
        method: str, url: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> HttpResponse:
        kind = url.partition("?kind=")[2]
        return HttpResponse(200, {"content-type": kind}, bodies[kind])

    async with recorder(tmp_path / "c", live) as cassette:
        for kind in bodies:
            await cassette.send("GET", f"http://x/v1/files/1/content?kind={kind}", None, {}, 1.0)
    async with open_cassette(tmp_path / "c") as cassette:
        for kind, body in bodies.items():
            answer = await cassette.send("GET", f"http://y/v1/files/1/content?kind={kind}", None, {}, 1.0)
            assert answer.body == body


async def test_polls_and_waits_advance_without_waiting(tmp_path: Path) -> None:
    async def wait_for_job(cassette: Cassette, url: str, every_s: float) -> list[str]:
        states: list[str] = []
        while "succeeded" not in states:
            answer = await cassette.send("GET", f"{url}/fine_tuning/jobs/job", None, {}, 5.0)
            states.append(json.loads(answer.body)["status"])
            await cassette.clock.sleep(every_s)
        return states

    async with small_server() as server, open_cassette(tmp_path / "c", "record") as cassette:
        recorded = await wait_for_job(cassette, server.base_url, 0.001)
    start = time.perf_counter()
    async with open_cassette(tmp_path / "c") as cassette:
        assert await wait_for_job(cassette, "http://nobody/v1", 600.0) == recorded
    assert recorded == ["running", "running", "succeeded"]
    assert time.perf_counter() - start < 1.0
