"""The journal's file: found again, never half-written, and clear about what is wrong with it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_fakes import FakeServer, asks, provider

from semievol_api.cli.journal import export, spend
from semievol_api.config.settings import Limits
from semievol_api.engine import Journal, RequestEngine
from semievol_api.engine.journal import Content, Row, Source
from semievol_api.errors import JournalError

SOURCE = Source("", "http://fake/v1", "m", "chat", "annotate", "direct")


def row(number: int, sample: int = 0, text: str = "text") -> Row:
    key = number.to_bytes(20, "big")
    return Row(key, sample, SOURCE, f"q{number}", 1, 10, 2, 3, 0.5, Content(text, "stop", b"\0\0\0\0", None))


def test_rows_are_found_by_key_in_sample_order(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "deep" / "folder" / "j")
    journal.write([row(1, 1), row(2), row(1, 0), row(3)])
    found = journal.fetch([row(n).key for n in (1, 3, 9)])
    assert [sample.sample for sample in found[row(1).key]] == [0, 1]
    assert len(found) == 2 and row(3).key in found
    journal.close()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 1000])
def test_any_number_of_rows_is_written_and_found(tmp_path: Path, count: int) -> None:
    journal = Journal.create(tmp_path / "j")
    journal.write([row(n) for n in range(count)])
    assert len(journal.fetch([row(n).key for n in range(count + 5)])) == count
    (total,) = journal.totals()
    assert (total.samples, total.prompt_tokens, total.usd) == (count, 10 * count, 0.5 * count)
    journal.close()


def test_a_sample_that_is_there_already_stays_as_it_was(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j")
    journal.write([row(1, text="first")])
    journal.write([row(1, text="second")])
    assert journal.fetch([row(1).key])[row(1).key][0].content.text == "first"
    journal.close()


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a database, but quite long " * 100)
    with pytest.raises(JournalError, match="no SQLite database"):
        Journal.create(tmp_path / "notes")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE things (id)")
    other.commit()
    other.close()
    with pytest.raises(JournalError, match="no journal"):
        Journal.create(tmp_path / "other")
    with pytest.raises(JournalError, match="There is no journal"):
        Journal.read_only(tmp_path / "missing")


def test_a_journal_of_another_format_is_refused_by_name(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j")
    journal.connection.execute("PRAGMA user_version = 99")
    journal.close()
    with pytest.raises(JournalError, match="format 99"):
        Journal.create(tmp_path / "j")


def _wal_only(path: Path, statement: str) -> None:
    """Change a database as a killed process does: the change stands in the write-ahead log alone."""
    code = f"import os, sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute({statement!r}); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.with_name(path.name + "-wal").stat().st_size > 0


def _make_foreign(path: Path) -> None:
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE diary (day)")
    other.close()


def _make_newer(path: Path) -> None:
    _wal_only(path, "PRAGMA user_version = 9")


def _cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _make_noise(path: Path) -> None:
    path.write_bytes(b"noise" * 3000)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_make_foreign, "no journal"),
        (_make_newer, "format 9"),
        (_cut_in_half, "damaged"),
        (_make_noise, "damaged"),
    ],
)
def test_a_journal_that_cannot_be_used_keeps_every_byte(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "j"
    journal = Journal.create(path)
    journal.write([row(n) for n in range(200)])
    journal.close()
    spoil(path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    for opened in (Journal.create, Journal.read_only):
        with pytest.raises(JournalError, match=words):
            opened(path)
        assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_journal_can_be_read_while_a_run_writes_it(tmp_path: Path) -> None:
    writer = Journal.create(tmp_path / "j")
    writer.write([row(1)])
    reader = Journal.read_only(tmp_path / "j")
    writer.write([row(2)])
    assert reader.totals()[0].samples == 2
    reader.close()
    writer.close()


async def test_spend_and_export_tell_what_the_journal_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with RequestEngine.open(tmp_path / "j", Limits()) as engine:
        who = provider(FakeServer())
        async for _ in engine.chat(who, asks(3, n=2, logprobs=True, top_logprobs=2), stage="annotate"):
            pass
        await engine.embed(who, "e", ["a", "bb"], stage="retrieve", batch_size=2)
    spend(tmp_path / "j")
    told = capsys.readouterr().out
    assert "annotate" in told and "retrieve" in told and "http://fake/v1" in told
    export(tmp_path / "j", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    chat = next(line for line in lines if line["ask_id"] == "q1" and line["sample"] == 1)
    assert chat["text"] == "q1/None/1"
    assert chat["token_logprobs"][0] == pytest.approx(-1 / 7)
    assert chat["tokens"][0] == "t0é" and chat["top"][0][1] == ["x", -9.87]
    assert next(line for line in lines if line["kind"] == "embed")["values"] == [1.0, pytest.approx(97 / 3), 1.0]


def run_child(code: str, env: dict[str, str], *arguments: str) -> str:
    """Run a child with the tests' folder on its path; its output."""
    preamble = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + textwrap.dedent(code), *arguments],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


FILL = """
    import asyncio, resource
    from pathlib import Path
    from engine_fakes import FakeServer, asks, provider
    from semievol_api.config.settings import Limits
    from semievol_api.engine import RequestEngine
    from semievol_api.errors import JournalError

    async def main():
        got = 0
        server = FakeServer()
        try:
            async with RequestEngine.open(Path(sys.argv[1]), Limits()) as engine:
                resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
                async for answer in engine.chat(provider(server), asks(20_000, logprobs=True), stage="s"):
                    got += 1
        except JournalError as error:
            print(got, len(server.chats), error)

    asyncio.run(main())
"""


def test_a_full_disk_ends_the_run_clearly_and_leaves_a_readable_journal(
    tmp_path: Path, child_env: dict[str, str]
) -> None:
    got, sent, message = run_child(FILL, child_env, str(tmp_path / "j")).split(" ", 2)
    assert "could not be written" in message and "everything stored so far is kept" in message
    assert 0 < int(got) <= int(sent) < 20_000
    journal = Journal.read_only(tmp_path / "j")
    stored = journal.totals()[0].samples
    assert int(got) <= stored <= int(sent)
    assert len(list(journal.export())) == stored
    assert journal.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    journal.close()


def test_sqlites_own_word_for_a_full_disk_is_explained(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j")
    pages = journal.connection.execute("PRAGMA page_count").fetchone()[0]
    journal.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error, match="full"):
        journal.write([row(n, text="long" * 1000) for n in range(50)])
    assert journal.totals() == []
    journal.write([])
    journal.close()


READ_ONLY = """
    import os
    from pathlib import Path
    from semievol_api.engine import Journal
    from semievol_api.errors import JournalError

    if os.getuid() == 0:  # root may write anywhere
        os.seteuid(65534)
    path = Path(sys.argv[1])
    journal = Journal.read_only(path)
    print(journal.totals()[0].samples)
    try:
        Journal.create(path)
    except JournalError as error:
        print(error)
    try:
        Journal.create(path.parent / "new" / "j")
    except JournalError as error:
        print(error)
"""


def test_a_read_only_folder_is_named_and_its_journal_stays_readable(
    tmp_path_factory: pytest.TempPathFactory, child_env: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("read-only")
    journal = Journal.create(folder / "j")
    journal.write([row(n) for n in range(7)])
    journal.close()
    for place in (folder, *folder.parents):
        if place == Path(tempfile.gettempdir()):
            break
        place.chmod(0o755)
    (folder / "j").chmod(0o444)
    folder.chmod(0o555)
    try:
        lines = run_child(READ_ONLY, child_env, str(folder / "j")).splitlines()
    finally:
        folder.chmod(0o755)
    assert lines[0] == "7"
    assert "could not be opened" in lines[1] and "another journal path" in lines[1]
    assert "could not be opened" in lines[2]


@pytest.mark.slow
def test_a_big_journal_opens_at_once(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j")
    for start in range(0, 100_000, 10_000):
        journal.write([row(n) for n in range(start, start + 10_000)])
    journal.close()
    began_s = time.perf_counter()
    journal = Journal.create(tmp_path / "j")
    assert journal.totals()[0].samples == 100_000
    assert time.perf_counter() - began_s < 0.5
    journal.close()
