"""Cassettes under the openai SDK and under bare httpx and httpx2 clients."""

from __future__ import annotations

import asyncio
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import openai
import pytest

from semievol_api.cassettes.cassette import Cassette, CassetteSettings, open_cassette
from semievol_api.cassettes.http import SLOT_HEADER, AiohttpSend
from semievol_api.cassettes.miss import CassetteMiss
from semievol_api.errors import ConfigError, TransientError
from tests.transport_server import SmallServer, small_server

HTTP_LIBRARY = "httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx"


def sdk(cassette: Cassette, base_url: str = "http://nobody.invalid/v1", **more: Any) -> openai.AsyncOpenAI:
    """The openai client of whichever major is installed, over the cassette."""
    transport = cassette.httpx2_transport() if HTTP_LIBRARY == "httpx2" else cassette.httpx_transport()
    http_client = import_module(HTTP_LIBRARY).AsyncClient(transport=transport)
    return openai.AsyncOpenAI(api_key="k", base_url=base_url, http_client=http_client, **more)


async def complete(client: openai.AsyncOpenAI, text: str = "hi", slot: str = "") -> str | None:
    answer = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": text}],
        extra_headers={SLOT_HEADER: slot} if slot else None,
    )
    return answer.choices[0].message.content


async def test_the_openai_client_gets_back_concurrent_samples_and_the_slot_stays_here(
    tmp_path: Path,
) -> None:
    async with (
        small_server() as server,
        open_cassette(tmp_path / "c", "record") as cassette,
        sdk(cassette, server.base_url) as client,
    ):
        recorded = await asyncio.gather(*(complete(client, slot=f"s{i}") for i in range(16)))
    assert len(set(recorded)) == 16
    assert not any(SLOT_HEADER in map(str.lower, headers) for _, _, headers, _ in server.seen)
    async with open_cassette(tmp_path / "c") as cassette, sdk(cassette) as client:
        replayed = await asyncio.gather(*(complete(client, slot=f"s{i}") for i in range(16)))
    assert replayed == recorded


async def test_an_upload_through_the_sdk_replays_under_its_new_random_boundary(tmp_path: Path) -> None:
    async def upload(client: openai.AsyncOpenAI, content: bytes) -> str:
        file = await client.files.create(file=("train.jsonl", content), purpose="fine-tune")
        return file.id

    async with (
        small_server() as server,
        open_cassette(tmp_path / "c", "record") as cassette,
        sdk(cassette, server.base_url) as client,
    ):
        ids = [await upload(client, b'{"a": 1}\n'), await upload(client, b'{"a": 2}\n')]
    boundaries = {headers["Content-Type"] for _, _, headers, _ in server.seen}
    assert len(boundaries) == 2
    async with open_cassette(tmp_path / "c") as cassette, sdk(cassette) as client:
        assert [await upload(client, b'{"a": 2}\n'), await upload(client, b'{"a": 1}\n')] == ids[::-1]
        with pytest.raises(CassetteMiss, match="sha256"):
            await upload(client, b'{"a": 3}\n')
        cassette.misses.clear()


async def test_a_recorded_429_costs_less_than_50_ms_with_the_sdks_own_retries(tmp_path: Path) -> None:
    class NoPause(AiohttpSend):
        """Records without waiting the twenty seconds that the server asks for."""

        async def __call__(self, *request: Any, **more: Any) -> Any:
            answer = await super().__call__(*request, **more)
            return type(answer)(answer.status, {**answer.headers, "retry-after-ms": "1"}, answer.body)

    live = NoPause()
    async with small_server() as server:
        server.limited = 1
        settings = CassetteSettings(live=live)
        async with (
            open_cassette(tmp_path / "c", "record", settings) as cassette,
            sdk(cassette, server.base_url, max_retries=1) as client,
        ):
            await client.models.list()
            recorded = await complete(client)
    await live.aclose()
    async with open_cassette(tmp_path / "c") as cassette, sdk(cassette, max_retries=1) as client:
        await client.models.list()  # the client's own first call takes long
        start = time.perf_counter()
        assert await complete(client) == recorded
        assert time.perf_counter() - start < 0.05


async def test_a_miss_passes_through_the_sdk_that_catches_exceptions(tmp_path: Path) -> None:
    async with (
        small_server() as server,
        open_cassette(tmp_path / "c", "record") as cassette,
        sdk(cassette, server.base_url) as client,
    ):
        await complete(client)
    cassette = open_cassette(tmp_path / "c")
    async with sdk(cassette) as client:
        with pytest.raises(CassetteMiss, match=r"- hi\n      \+ ho"):
            await complete(client, "ho")


async def test_a_recorded_cut_connection_is_the_sdks_connection_error_again(tmp_path: Path) -> None:
    async def one(server: SmallServer | None, cassette: Cassette) -> None:
        base_url = server.base_url if server else "http://nobody.invalid/v1"
        async with sdk(cassette, base_url, max_retries=0) as client:
            with pytest.raises(openai.APIConnectionError):
                await complete(client)

    async with small_server() as server, open_cassette(tmp_path / "c", "record") as cassette:
        server.broken = 1
        await one(server, cassette)
    async with open_cassette(tmp_path / "c") as cassette:
        await one(None, cassette)


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
async def test_both_http_libraries_share_one_recording(tmp_path: Path, library: str) -> None:
    package = pytest.importorskip(library)
    async with small_server() as server, open_cassette(tmp_path / "c", "record") as cassette:
        recorded = await cassette.send(
            "POST",
            f"{server.base_url}/embeddings?a=1",
            b'{"x": 1}',
            {"content-type": "application/json"},
            5.0,
        )
    async with open_cassette(tmp_path / "c") as cassette:
        transport = cassette.httpx2_transport() if library == "httpx2" else cassette.httpx_transport()
        async with package.AsyncClient(transport=transport) as client:
            answer = await client.post("http://nobody.invalid/v1/embeddings?a=1", json={"x": 1})
    assert (answer.status_code, answer.content) == (recorded.status, recorded.body)


async def test_compressed_answers_arrive_whole_through_an_sdk_transport_that_records_nothing(
    tmp_path: Path,
) -> None:
    async with small_server() as server:
        server.compress = True
        async with open_cassette(tmp_path / "c", "off") as cassette, sdk(cassette, server.base_url) as client:
            assert await complete(client) == "sample 1"


class TestAiohttpSend:
    """The real sender."""

    async def test_a_refused_connection_and_a_timeout_are_transient(self) -> None:
        send = AiohttpSend()
        with pytest.raises(TransientError, match=r"POST http://127.0.0.1:9/v1/x failed on the way"):
            await send("POST", "http://127.0.0.1:9/v1/x?key=secret", b"", {}, 5.0)
        async with small_server() as server:
            server.delay_s = 0.3
            with pytest.raises(TransientError, match=r"gave no answer within 0.05 s"):
                await send("GET", f"{server.base_url}/slow", None, {}, 0.05)
            await send.aclose()

    async def test_a_body_that_breaks_off_is_transient(self) -> None:
        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            await writer.drain()
            writer.close()

        listener = await asyncio.start_server(cut, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        send = AiohttpSend()
        with pytest.raises(TransientError, match="failed on the way"):
            await send("GET", f"http://127.0.0.1:{port}/", None, {}, 5.0)
        await send.aclose()
        listener.close()
        await listener.wait_closed()

    @pytest.mark.parametrize("url", ["", "nonsense", "ftp://x/y"])
    async def test_an_address_that_is_none_is_the_users_to_mend(self, url: str) -> None:
        send = AiohttpSend()
        with pytest.raises(ConfigError, match="Check base_url"):
            await send("GET", url, None, {}, 1.0)
        await send.aclose()

    def test_one_sender_serves_several_event_loops(self) -> None:
        send = AiohttpSend(keep_alive=False)

        async def once() -> int:
            async with small_server() as server:
                return (await send("GET", f"{server.base_url}/x", None, {}, 5.0)).status

        assert [asyncio.run(once()), asyncio.run(once())] == [200, 200]
