"""The recording proxy, the replay server, and the commands that run programs under them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import openai
import pytest
from typer.testing import CliRunner, Result

from semievol_api.cassettes.cassette import open_cassette
from semievol_api.cassettes.commands import app, serve_loopback
from semievol_api.cassettes.exchange import load
from semievol_api.cassettes.miss import CassetteMiss
from semievol_api.errors import DataError
from tests.transport_server import small_server

PROGRAM = """
import json, os, sys, urllib.request
def ask(text):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer k"}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]
print([ask(text) for text in sys.argv[1:]], file=open(os.environ["PRINT_TO"], "a"))
"""


def client(base_url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="k", base_url=base_url, max_retries=0)


async def complete(client: openai.AsyncOpenAI, text: str = "hi") -> str | None:
    answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


async def test_an_unmodified_client_is_recorded_by_the_proxy_and_answered_by_the_replay_server(
    tmp_path: Path,
) -> None:
    async with (
        small_server() as server,
        open_cassette(tmp_path / "c", "record") as cassette,
        serve_loopback(cassette, server.base_url) as base_url,
        client(base_url) as asking,
    ):
        recorded = [await complete(asking), await complete(asking), await complete(asking, "ho")]
    assert server.seen[0][1] == "/v1/chat/completions"
    assert server.seen[0][2]["Authorization"] == "Bearer k"
    async with (
        open_cassette(tmp_path / "c") as cassette,
        serve_loopback(cassette) as base_url,
        client(base_url) as asking,
    ):
        assert [await complete(asking), await complete(asking), await complete(asking, "ho")] == recorded


async def test_a_miss_behind_the_server_explains_itself_and_fails_afterwards(tmp_path: Path) -> None:
    async with (
        small_server() as server,
        open_cassette(tmp_path / "c", "record") as cassette,
        serve_loopback(cassette, server.base_url) as base_url,
        client(base_url) as asking,
    ):
        await complete(asking)
    cassette = open_cassette(tmp_path / "c")
    async with serve_loopback(cassette) as base_url, client(base_url) as asking:
        with pytest.raises(openai.BadRequestError, match="holds no answer") as refused:
            await complete(asking, "ho")
    assert refused.value.code == "cassette_miss"
    with pytest.raises(CassetteMiss):
        cassette.finish()


async def test_a_connection_that_broke_breaks_again_behind_the_server(tmp_path: Path) -> None:
    async def one(base_url: str) -> None:
        async with client(base_url) as asking:
            with pytest.raises(openai.APIConnectionError):
                await complete(asking)

    async with small_server() as server, open_cassette(tmp_path / "c", "record") as cassette:
        server.broken = 1
        async with serve_loopback(cassette, server.base_url) as base_url:
            await one(base_url)
    async with open_cassette(tmp_path / "c") as cassette, serve_loopback(cassette) as base_url:
        await one(base_url)


class TestCommands:
    """`semievol cassette ...` with a program that knows nothing of cassettes."""

    @pytest.fixture
    def printed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("PRINT_TO", str(tmp_path / "printed"))
        return tmp_path / "printed"

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments])

    def with_server(self, *arguments: object, texts: tuple[str, ...]) -> Result:
        """Run a command against a live server in the background of another event loop."""

        async def serve() -> Result:
            async with small_server() as server:
                return await asyncio.to_thread(
                    self.run, *arguments, "--upstream", server.base_url, "--", *self.program(*texts)
                )

        return asyncio.run(serve())

    def program(self, *texts: str) -> list[str]:
        return [sys.executable, "-c", PROGRAM, *texts]

    def test_record_then_replay_gives_the_program_the_same_answers(self, tmp_path: Path, printed: Path) -> None:
        recorded = self.with_server("record", tmp_path / "c", "--seed", "3", texts=("a", "b", "a"))
        assert recorded.exit_code == 0, recorded.output
        assert load(tmp_path / "c").manifest.seed == 3
        replayed = self.run("replay", tmp_path / "c", "--", *self.program("a", "b", "a"))
        assert replayed.exit_code == 0, replayed.output
        assert "3 of 3 exchanges asked for" in replayed.output
        first, second = printed.read_text().splitlines()
        assert first == second

    def test_replay_fails_on_unplayed_exchanges_and_on_misses(self, tmp_path: Path, printed: Path) -> None:
        self.with_server("record", tmp_path / "c", texts=("a", "b"))
        unplayed = self.run("replay", tmp_path / "c", "--", *self.program("a"))
        assert (unplayed.exit_code, "1 of 2 exchanges" in unplayed.output) == (1, True)
        missed = self.run("replay", tmp_path / "c", "--", *self.program("c"))
        assert missed.exit_code == 1
        assert printed.read_text().count("[") == 2

    def test_update_records_what_is_missing_and_drops_what_is_no_longer_asked(
        self, tmp_path: Path, printed: Path
    ) -> None:
        self.with_server("record", tmp_path / "c", texts=("a", "b"))
        updated = self.with_server("update", tmp_path / "c", texts=("b", "c"))
        assert updated.exit_code == 0, updated.output
        replayed = self.run("replay", tmp_path / "c", "--", *self.program("b", "c"))
        assert replayed.exit_code == 0, replayed.output

    def test_prune_drops_what_the_program_does_not_ask(self, tmp_path: Path, printed: Path) -> None:
        self.with_server("record", tmp_path / "c", texts=("a", "b"))
        assert self.run("prune", tmp_path / "c", "--", *self.program("b")).exit_code == 0
        assert len(load(tmp_path / "c").exchanges) == 1

    def test_a_failing_program_changes_no_recording_and_its_exit_code_is_ours(
        self, tmp_path: Path, printed: Path
    ) -> None:
        failed = self.run("record", tmp_path / "c", "--", sys.executable, "-c", "raise SystemExit(7)")
        assert failed.exit_code == 7
        assert not (tmp_path / "c").exists()
        unknown = self.run("record", tmp_path / "c", "--", str(tmp_path / "no such program"))
        assert isinstance(unknown.exception, DataError)

    def test_diff_and_info_say_what_is_in_cassettes(self, tmp_path: Path, printed: Path) -> None:
        self.with_server("record", tmp_path / "one", texts=("a", "what is b"))
        self.with_server("record", tmp_path / "two", texts=("a", "what was b", "c"))
        same = self.run("diff", tmp_path / "one", tmp_path / "one")
        assert (same.exit_code, same.output) == (0, "The cassettes hold the same exchanges.\n")
        differ = self.run("diff", tmp_path / "one", tmp_path / "two")
        assert differ.exit_code == 1
        assert "- what is b\n      + what was b" in differ.output
        assert "new:      POST /chat/completions -> 200" in differ.output
        info = self.run("info", tmp_path / "two")
        assert "      3  POST /chat/completions -> 200" in info.output
        assert "no evidence about any vendor" in info.output

    def test_import_makes_a_cassette(self, tmp_path: Path, session_records: Path) -> None:
        source = session_records / "openai-dotnet__ChatTests__HelloWorldChat.json"
        made = self.run("import", source, "--into", tmp_path / "c")
        assert (made.exit_code, made.output) == (0, f"{tmp_path / 'c'}: 1 exchanges\n")
