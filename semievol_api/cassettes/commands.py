"""`semievol cassette`: record, replay, update, prune, diff, info, import.

Thin: each command reads its arguments and calls one function of this package. `-- COMMAND` runs under the
cassette with OPENAI_BASE_URL pointing at it; without one the address is printed and served until Ctrl-C.
Knows nothing of pipelines: any program that takes a base URL can be recorded.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from aiohttp import web

from semievol_api.cassettes.cassette import Cassette
from semievol_api.cassettes.miss import CassetteMiss
from semievol_api.errors import DataError, TransientError

if TYPE_CHECKING:
    from semievol_api.cassettes.miss import CassetteMode as Mode


_PREFIX = "/v1"
_MAX_BODY_BYTES = 1 << 30
_UPSTREAM_TIMEOUT_S = 600.0
_NOT_FORWARDED = frozenset(
    ("accept-encoding", "connection", "content-length", "host", "keep-alive", "te", "transfer-encoding")
)
_NOT_RETURNED = frozenset(("connection", "content-encoding", "content-length", "transfer-encoding"))


@asynccontextmanager
async def serve_loopback(
    cassette: Cassette, upstream: str = "http://nobody.invalid/v1", port: int = 0
) -> AsyncGenerator[str, None]:
    """Serve on 127.0.0.1 (port 0: any free one); gives the base URL to use, which ends with /v1."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await _forward(cassette, upstream.rstrip("/"), request)

    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{_PREFIX}"
    finally:
        await runner.cleanup()


async def _forward(cassette: Cassette, upstream: str, request: web.Request) -> web.StreamResponse:
    headers = {name.lower(): text for name, text in request.headers.items() if name.lower() not in _NOT_FORWARDED}
    url = upstream + request.raw_path.removeprefix(_PREFIX)
    body = await request.read() or None
    try:
        answer = await cassette.send(request.method, url, body, headers, _UPSTREAM_TIMEOUT_S)
    except CassetteMiss as miss:
        error = {"message": str(miss), "type": "cassette_miss", "param": None, "code": "cassette_miss"}
        return web.json_response({"error": error}, status=400, headers={"x-should-retry": "false"})
    except TransientError:
        if request.transport is not None:
            request.transport.abort()  # the client sees what the recorder saw: a connection that broke
        return web.Response(status=502)
    kept = {name: text for name, text in answer.headers.items() if name not in _NOT_RETURNED}
    return web.Response(status=answer.status, body=answer.body, headers=kept)


app = typer.Typer(name="cassette", no_args_is_help=True, help="Record HTTP exchanges and replay them offline.")

_Folder = Annotated[Path, typer.Argument(help="The cassette folder.", show_default=False)]
Command = Annotated[
    list[str] | None,
    typer.Argument(help="The program to run, after --.", show_default=False, metavar="[-- COMMAND]"),
]
_Upstream = Annotated[str, typer.Option(help="Base URL of the server to record.")]
Port = Annotated[int, typer.Option(help="Port on 127.0.0.1. 0 picks a free one.")]
_OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class _Session:
    """One program under one cassette."""

    path: Path
    mode: Mode
    command: Sequence[str] | None
    port: int
    upstream: str = "http://nobody.invalid/v1"
    seed: int | None = None
    notes: str = ""
    drop_unplayed: bool = False


@app.command()
def record(
    path: _Folder,
    command: Command = None,
    upstream: _Upstream = _OPENAI,
    port: Port = 0,
    seed: Annotated[int | None, typer.Option(help="Noted in the manifest.")] = None,
    notes: Annotated[str, typer.Option(help="Noted in the manifest.")] = "",
) -> None:
    """Run a program against UPSTREAM and record every exchange, replacing an older recording."""
    _run(_Session(path, "record", command, port, upstream, seed, notes))


@app.command()
def replay(path: _Folder, command: Command = None, port: Port = 0) -> None:
    """Run a program against the recording. Exits with 1 on a miss or on unplayed exchanges."""
    _run(_Session(path, "replay", command, port))


@app.command()
def update(path: _Folder, command: Command = None, upstream: _Upstream = _OPENAI, port: Port = 0) -> None:
    """Replay what is recorded, record what is missing and drop what is no longer requested."""
    _run(_Session(path, "record-missing", command, port, upstream, drop_unplayed=True))


@app.command()
def prune(path: _Folder, command: Command = None, port: Port = 0) -> None:
    """Run a program against the recording and drop exchanges that it did not request."""
    _run(_Session(path, "replay", command, port, drop_unplayed=True))


@app.command()
def diff(old: _Folder, new: _Folder) -> None:
    """Show the differences between two cassettes. Exits with 1 if there are any."""
    from semievol_api.cassettes.compare import compare
    from semievol_api.cassettes.exchange import load

    changes = list(compare(load(old).exchanges, load(new).exchanges))
    typer.echo("\n".join(changes) or "The cassettes hold the same exchanges.")
    raise typer.Exit(1 if changes else 0)


@app.command()
def info(path: _Folder) -> None:
    """Show the origin and the contents of a cassette."""
    from semievol_api.cassettes.compare import describe
    from semievol_api.cassettes.exchange import load

    typer.echo("\n".join(describe(load(path))))


@app.command("import")
def import_(
    sources: Annotated[list[Path], typer.Argument(help="vcrpy .yaml files or azure-sdk session .json files.")],
    into: Annotated[Path, typer.Option(help="Folder of the new cassette.", show_default=False)],
    slots: Annotated[bool, typer.Option(help="Keep the files apart, each in a slot named after it.")] = False,
) -> None:
    """Convert recordings of vcrpy or the azure-sdk test proxy."""
    from semievol_api.cassettes.foreign import import_recordings
    from semievol_api.cassettes.scrub import Scrubber, secret_values

    scrubber = Scrubber(secret_values(os.environ))
    count = import_recordings(sources, into, scrubber, slot_per_source=slots)
    typer.echo(f"{into}: {count} exchanges")


def _run(session: _Session) -> None:
    from semievol_api.cassettes.cassette import CassetteUnplayed
    from semievol_api.cassettes.miss import CassetteMiss

    try:
        exit_code = asyncio.run(_play(session))
    except (CassetteMiss, CassetteUnplayed) as problem:
        typer.echo(str(problem), err=True)
        raise typer.Exit(1) from problem
    raise typer.Exit(exit_code)


async def _play(session: _Session) -> int:
    """Serve the cassette to the program; the program's exit code. A failed program changes no recording."""
    from semievol_api.cassettes.cassette import CassetteSettings, open_cassette
    from semievol_api.cassettes.scrub import secret_values

    settings = CassetteSettings(
        seed=session.seed, notes=session.notes, secrets=secret_values(os.environ), shorten_waits=True
    )
    cassette = open_cassette(session.path, session.mode, settings)
    try:
        async with serve_loopback(cassette, session.upstream, session.port) as base_url:
            exit_code = await _run_program(session.command, base_url)
        if exit_code == 0:
            if cassette.misses or not session.drop_unplayed:
                cassette.finish()
            else:
                cassette.save(keep_unplayed=False)
    finally:
        await cassette.aclose()
    played = len(cassette.exchanges) - len(cassette.unplayed())
    typer.echo(f"{session.path}: {played} of {len(cassette.exchanges)} exchanges asked for", err=True)
    return exit_code


async def _run_program(command: Sequence[str] | None, base_url: str) -> int:
    if not command:
        typer.echo(f"{base_url}   (Ctrl-C ends)")
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()
        return 0
    environ = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_BASE": base_url}
    try:
        process = await asyncio.create_subprocess_exec(*command, env=environ)
    except OSError as error:
        raise DataError(f"The program {command[0]!r} cannot be started: {error}.") from error
    return await process.wait()
