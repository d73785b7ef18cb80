"""A page on this machine for a person to accept, correct or skip labels by keyboard.

    serve_review(Path("runs/demo"), on_ready=print)        # until Ctrl-C

Listens on 127.0.0.1 alone and answers only to addresses that carry the session's token. A decision is answered
after it is on disk. Knows nothing of how rows are ranked or how decisions are kept.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from semievol_api.errors import RunFolderError
from semievol_api.report.labels import (
    REVIEW_FILE,
    Action,
    Decision,
    DecisionLog,
    LabelTable,
    QueueRow,
    load_prepared,
    read_label_table,
    review_queue,
)
from semievol_api.report.page import script_hash, source, templates

_MAX_ROWS = 2000
"""More rows than a person reviews in a sitting; the next start goes on after the decided ones."""
_MAX_CHOICES = 20
_MAX_BODY_BYTES = 1_000_000


class PostedDecision(msgspec.Struct):
    """What the page posts: a decision on one row."""

    example_id: str
    action: str
    answer: str | None = None


@dataclass(frozen=True)
class ReviewSession:
    """The rows of one sitting, the log they go to, and the lock that keeps its lines whole."""

    title: str
    rows: Mapping[str, Mapping[str, object]]
    labels: tuple[str, ...]
    log: DecisionLog
    lock: threading.Lock
    token: str

    @classmethod
    @contextmanager
    def open(cls, run_folder: Path, limit: int = _MAX_ROWS) -> Generator[ReviewSession]:
        """The undecided rows of a run, best first; its `review.jsonl` is held until the block ends."""
        data = load_prepared(run_folder)
        labels = read_label_table(run_folder, data)
        answers = {e.answer for e in data.labeled if e.answer is not None}
        closed = tuple(sorted(answers)) if len(answers) <= _MAX_CHOICES and not labels.fields else ()
        with DecisionLog.open(run_folder / REVIEW_FILE) as log:
            decided = log.decisions
            queue = [r for r in review_queue(labels) if labels.examples[r.place].id not in decided][:limit]
            rows = {str(row["id"]): row for row in (_row(labels, r) for r in queue)}
            token = secrets.token_urlsafe(24)
            yield cls(run_folder.resolve().name, rows, closed, log, threading.Lock(), token)

    def state(self) -> dict[str, object]:
        """What the page starts from."""
        with self.lock:
            decided = {k: {"action": d.action, "answer": d.answer} for k, d in self.log.decisions.items()}
        return {"rows": list(self.rows.values()), "labels": self.labels, "decided": decided}

    def decide(self, posted: PostedDecision) -> dict[str, object]:
        """Write a decision; returns what now holds once it is on disk.

        Raises:
            ValueError: the row or the action is unknown, or an answer is missing.
        """
        row = self.rows.get(posted.example_id)
        answer = (posted.answer or "").strip() or None
        if row is None or posted.action not in ("accept", "correct", "skip"):
            raise ValueError("no such row or action")
        if (posted.action == "skip") != (answer is None):
            raise ValueError("accept and correct need an answer, skip has none")
        proposed = row["answer"]
        action: Action = "skip" if answer is None else "accept" if answer == proposed else "correct"
        with self.lock:
            made = self.log.append(
                Decision(
                    example_id=posted.example_id,
                    action=action,
                    answer=answer,
                    proposed=str(proposed) if proposed is not None else None,
                    audit=bool(row["audit"]),
                )
            )
            return {"example_id": made.example_id, "action": made.action, "answer": made.answer}

    def undo(self) -> dict[str, object]:
        """Take back the latest decision of this or an earlier sitting."""
        with self.lock:
            undone = self.log.undo()
        return {"undone": undone.example_id if undone else None}


class _ReviewPage:
    """Answers the page's four requests; anything without the token is not found."""

    def __init__(self, session: ReviewSession) -> None:
        script = source("theme.js") + source("review.js")
        style = source("page.css") + source("review.css")
        self._session = session
        self._turn = asyncio.Lock()
        self._page = templates().get_template("review.html.j2").render(title=session.title, style=style, script=script)
        self._headers = {
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": (
                f"default-src 'none'; style-src 'unsafe-inline'; script-src {script_hash(script)}; "
                f"connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
            ),
        }

    def app(self) -> Starlette:
        """The page as an ASGI application."""
        app = Starlette(
            routes=[
                Route("/{token}/", self._show, methods=["GET"]),
                Route("/{token}/rows.json", self._rows, methods=["GET"]),
                Route("/{token}/decide", self._decide, methods=["POST"]),
                Route("/{token}/undo", self._undo, methods=["POST"]),
            ],
            exception_handlers={HTTPException: self._refuse},
        )
        app.router.redirect_slashes = False
        return app

    async def _show(self, request: Request) -> Response:
        self._admit(request)
        return HTMLResponse(self._page, headers=self._headers)

    async def _rows(self, request: Request) -> Response:
        self._admit(request)
        return self._json(await run_in_threadpool(self._session.state))

    async def _decide(self, request: Request) -> Response:
        self._admit(request)
        body = await _body(request)
        return await self._written(lambda: self._session.decide(msgspec.json.decode(body, type=PostedDecision)))

    async def _undo(self, request: Request) -> Response:
        self._admit(request)
        await _body(request)
        return await self._written(self._session.undo)

    async def _written(self, write: Callable[[], dict[str, object]]) -> Response:
        async with self._turn:
            try:
                return self._json(await run_in_threadpool(write))
            except (ValueError, msgspec.DecodeError) as error:
                return self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
            except OSError as error:
                return self._json({"error": f"not saved: {error.strerror}"}, HTTPStatus.INSUFFICIENT_STORAGE)

    def _admit(self, request: Request) -> None:
        """Turn away who has no token, who came by another site's name for this machine, and another site's page."""
        token: str = request.path_params["token"]
        host = request.headers.get("host", "")
        known = secrets.compare_digest(token.encode(), self._session.token.encode())
        if not known or host.rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
            raise HTTPException(HTTPStatus.NOT_FOUND, "not found")
        if request.headers.get("origin", f"http://{host}") != f"http://{host}":
            raise HTTPException(HTTPStatus.FORBIDDEN, "another site's page may not decide here")

    async def _refuse(self, _: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return self._json({"error": "not found"}, HTTPStatus.NOT_FOUND)
        reply = self._json({"error": error.detail if isinstance(error, HTTPException) else "failed"}, status)
        reply.headers["Connection"] = "close"  # what is left of the body is not worth reading
        return reply

    def _json(self, value: object, status: int = HTTPStatus.OK) -> Response:
        return JSONResponse(value, status, self._headers)


async def _body(request: Request) -> bytes:
    """The whole body, if it is no longer than a decision can be."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise HTTPException(HTTPStatus.BAD_REQUEST, "Content-Length is no number")
    if int(length) > _MAX_BODY_BYTES:
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a decision has at most {_MAX_BODY_BYTES} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a decision has at most {_MAX_BODY_BYTES} bytes")
    return bytes(body)


class _ReviewServer(uvicorn.Server):
    """Serves the page on a socket that already listens; `serve_forever` until `stop` or Ctrl-C."""

    def __init__(self, app: Starlette, listening: socket.socket) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
        self._listening = listening

    def serve_forever(self) -> None:
        """Answer until told to stop."""
        self.run([self._listening])

    def stop(self) -> None:
        """From any thread: answer what has come and end."""
        self.should_exit = True


@contextmanager
def open_review_server(run_folder: Path, port: int = 0) -> Generator[tuple[_ReviewServer, str]]:
    """A listening server and its address; `serve_forever` is the caller's.

    Raises:
        RunFolderError: the folder is no run, another review holds it, or the port is taken.
    """
    with ReviewSession.open(run_folder) as session:
        try:
            listening = socket.create_server(("127.0.0.1", port), backlog=128)
        except OSError as error:
            raise RunFolderError(
                f"Port {port} of this machine cannot be used: {error.strerror}. Leave --port out for a free one."
            ) from None
        with listening:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}/{session.token}/"
            yield _ReviewServer(_ReviewPage(session).app(), listening), address


def serve_review(run_folder: Path, port: int = 0, *, on_ready: Callable[[str], None] = lambda _address: None) -> Path:
    """Serve the page until Ctrl-C and return the file of decisions; `on_ready` hears the address.

    Raises:
        RunFolderError: the folder is no run, another review holds it, or the port is taken.
    """
    with open_review_server(run_folder, port) as (server, address):
        on_ready(address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return run_folder / REVIEW_FILE


def _row(labels: LabelTable, row: QueueRow) -> dict[str, object]:
    place = row.place
    example = labels.examples[place]
    confidence = float(labels.confidences[place])
    return {
        "id": example.id,
        "question": example.question,
        "options": list(example.options),
        "category": example.category,
        "answer": labels.answers[place],
        "confidence": None if confidence != confidence else confidence,
        "kept": bool(labels.kept[place]),
        "reason": labels.reasons[place],
        "audit": row.audit,
        "fields": _fields(labels, place),
        "annotations": [
            {
                "by": "justification" if annotator is labels.justification else annotator.id,
                "answer": annotator.answers[place],
                "text": annotator.texts[place],
            }
            for annotator in labels.answered_by
            if annotator.answers[place] is not None or annotator.texts[place]
        ],
    }


def _fields(labels: LabelTable, place: int) -> list[dict[str, object]]:
    """The fields of the answer that was put forward, least certain first, and whether each passes the cut."""
    scores = labels.field_scores[place] if labels.field_scores else None
    cut = labels.threshold
    return [
        {"name": name, "confidence": score, "sure": cut is None or score >= cut}
        for name, score in sorted(zip(labels.fields, scores or (), strict=False), key=lambda pair: pair[1])
    ]
