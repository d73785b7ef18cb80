"""`semievol serve`: start the server on a model folder and stay until told to stop.

Heavy imports happen inside, so that `semievol --help` stays quick. Knows nothing of routes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from semievol_api.errors import ConfigError, UserError

if TYPE_CHECKING:
    import socket

    import uvicorn

    from semievol_providers.local.requests import DtypeName
    from semievol_providers.server.settings import ServerSettings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(  # noqa: PLR0913 - a command line has as many options as it has
    model: Annotated[str, typer.Argument(help="A model folder, a GGUF file, or a name that `semievol models` lists.")],
    name: Annotated[str | None, typer.Option(help="Model name for clients. Default: the folder's name.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind. Any but 127.0.0.1 needs an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port. 0 picks a free one.")] = 8000,
    state: Annotated[Path, typer.Option(help="Folder for files, jobs and tuned models.")] = Path("semievol-server"),
    alias: Annotated[list[str] | None, typer.Option(help="NAME=MODEL: an alias for a model.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the API key, or several, separated by commas.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: as many as cores are idle.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16: what the engine computes in.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    train_config: Annotated[Path | None, typer.Option(help="TOML file with training defaults.")] = None,
    limits: Annotated[Path | None, typer.Option(help="TOML file with limits: sizes, rates, times.")] = None,
    log_requests: Annotated[bool, typer.Option(help="Log each request as a JSON line on standard error.")] = False,
    ready_file: Annotated[Path | None, typer.Option(help="Write URL and PID as JSON to this file when ready.")] = None,
    stop_with_stdin: Annotated[bool, typer.Option(help="Stop when standard input closes.")] = False,
    deployments: Annotated[
        bool, typer.Option(help="Answer with tuned models only while they are deployed (POST /v1/deployments).")
    ] = False,
    recover: Annotated[bool, typer.Option(help="Rebuild a lost database from the state folder's jobs.")] = False,
) -> None:
    """Serve a model over the OpenAI API, with fine-tuning."""
    from semievol_providers.local.machine import idle_threads
    from semievol_providers.local.model_folder import read_facts
    from semievol_providers.local.packaged_models import folder_for
    from semievol_providers.local.training_job import read_train_defaults
    from semievol_providers.server.settings import ServerSettings, read_limits

    model_folder = folder_for(model)
    facts = read_facts(model_folder)
    settings = ServerSettings(
        model_folder=facts.folder,
        name=name or Path(facts.folder).name,
        state=state.resolve(),
        host=host,
        port=port,
        aliases=_read_aliases(alias or []),
        api_keys=_read_keys(api_key_env, host),
        threads=threads or idle_threads(facts.weight_bytes),
        dtype=_read_dtype(dtype),
        device=device,
        limits=read_limits(limits),
        log_requests=log_requests,
        deployments=deployments,
        train=read_train_defaults(model_folder, train_config),
    )
    _run(settings, ready_file, stop_with_stdin, recover)


def _read_dtype(given: str) -> DtypeName:
    from semievol_providers.local.requests import DtypeName

    known = get_args(DtypeName)
    if given not in known:
        raise ConfigError(f"--dtype {given!r} is unknown. Choose one of: {', '.join(known)}.")
    return cast("DtypeName", given)


def _read_keys(variable: str | None, host: str) -> tuple[str, ...]:
    """The API keys of a variable; none are needed where only this machine can ask."""
    if variable is None:
        if host not in _LOOPBACK:
            raise ConfigError(
                f"Serving on {host!r} lets other machines in, so an API key is needed. Put one into an environment "
                "variable and name it with --api-key-env, or serve on 127.0.0.1."
            )
        return ()
    keys = tuple(key.strip() for key in os.environ.get(variable, "").split(",") if key.strip())
    if not keys:
        raise ConfigError(
            f"The environment variable {variable!r} is empty or not set. Set it to the server's API key, or "
            "leave --api-key-env out."
        )
    return keys


def _read_aliases(pairs: list[str]) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for pair in pairs:
        alias, equals, target = pair.partition("=")
        if not (alias and equals and target):
            raise ConfigError(f"The alias {pair!r} is not of the form NAME=MODEL.")
        aliases[alias] = target
    return aliases


def _run(settings: ServerSettings, ready_file: Path | None, stop_with_stdin: bool, recover: bool) -> None:
    import uvicorn

    from semievol_providers.server.app import build_app
    from semievol_providers.server.gate import log_as_json, patient_http
    from semievol_providers.server.state_folder import held_folder, mark_as_stopping

    with held_folder(settings, recover) as message:
        sys.stdout.write(message)
        listener = _bind(settings)

        class Announcing(uvicorn.Server):
            @contextmanager
            def capture_signals(self) -> Generator[None]:
                """A stop that was asked for is a success: don't raise the signal again at the end."""
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, self.handle_exit)
                yield

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    _announce(settings, listener.getsockname()[1], ready_file)

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                mark_as_stopping(settings.state)
                if self.started:
                    app.stop_soon()
                await super().shutdown(sockets)

        log_as_json(("uvicorn", "uvicorn.error", "semievol_providers"), requests=settings.log_requests)
        os.environ["TMPDIR"] = str(settings.state / "tmp")  # uploads on their way: not in a memory file system
        app = build_app(settings)
        config = uvicorn.Config(
            app,
            log_config=None,
            http=patient_http(settings.limits.idle_connection_s),
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=2,
            timeout_keep_alive=75,
        )
        server = Announcing(config)
        if stop_with_stdin:
            threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
        server.run(sockets=[listener])


def _stop_at_end_of_input(server: uvicorn.Server) -> None:
    """A parent that ends, however it ends, closes our standard input."""
    while os.read(sys.stdin.fileno(), 1024):  # unbuffered: a lock on sys.stdin would abort the interpreter's end
        continue
    server.should_exit = True


def _bind(settings: ServerSettings) -> socket.socket:
    import socket

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it small answers wait 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The address {settings.host}:{settings.port} cannot be used: {error.strerror}. Choose another --port, "
            "or 0 for a free one."
        ) from error
    return listener


def _announce(settings: ServerSettings, port: int, ready_file: Path | None) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}/v1"
    sys.stdout.write(f"Serving {settings.name} on {url}\n")
    sys.stdout.flush()
    if ready_file is not None:
        partial = ready_file.with_name(ready_file.name + ".partial")
        partial.write_text(json.dumps({"url": url, "pid": os.getpid(), "model": settings.name}), encoding="utf-8")
        partial.replace(ready_file)


def main() -> None:
    """Run the command by itself: `python -m semievol_providers.server.command MODEL_FOLDER`."""
    try:
        typer.run(serve)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
