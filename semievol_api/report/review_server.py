"""A page on this machine for a person to accept, correct or skip labels by keyboard.

    serve_review(Path("runs/demo"), on_ready=print)        # until Ctrl-C

Listens on 127.0.0.1 alone and answers only to addresses that carry the session's token. A decision is answered
after it is on disk. Knows nothing of how rows are ranked or how decisions are kept.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from semievol_api.errors import RunFolderError
from semievol_api.report.labels import (
    REVIEW_FILE,
    Action,
    Decision,
    DecisionLog,
    LabelTable,
    QueueRow,
    Voice,
    load_prepared,
    read_label_table,
    review_queue,
)
from semievol_api.report.page import script_hash, source, templates

MAX_ROWS = 2000
"""More rows than a person reviews in a sitting; the next start goes on after the decided ones."""
MAX_CHOICES = 20
MAX_BODY_BYTES = 1_000_000


class Wanted(msgspec.Struct):
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
    def open(cls, run_folder: Path, limit: int = MAX_ROWS) -> Generator[ReviewSession]:
        """The undecided rows of a run, best first; its `review.jsonl` is held until the block ends."""
        data = load_prepared(run_folder)
        labels = read_label_table(run_folder, data)
        answers = {e.answer for e in data.labeled if e.answer is not None}
        closed = tuple(sorted(answers)) if len(answers) <= MAX_CHOICES else ()
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

    def decide(self, wanted: Wanted) -> dict[str, object]:
        """Write a decision; returns what now holds once it is on disk.

        Raises:
            ValueError: the row or the action is unknown, or an answer is missing.
        """
        row = self.rows.get(wanted.example_id)
        answer = (wanted.answer or "").strip() or None
        if row is None or wanted.action not in ("accept", "correct", "skip"):
            raise ValueError("no such row or action")
        if (wanted.action == "skip") != (answer is None):
            raise ValueError("accept and correct need an answer, skip has none")
        proposed = row["answer"]
        action: Action = "skip" if answer is None else "accept" if answer == proposed else "correct"
        with self.lock:
            made = self.log.append(
                Decision(
                    example_id=wanted.example_id,
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


class ReviewHandler(BaseHTTPRequestHandler):
    """Answers the page's four requests; anything without the token is not found."""

    protocol_version = "HTTP/1.1"

    def __init__(self, session: ReviewSession, page: bytes, policy: str, *args: object) -> None:
        self.session, self.page, self.policy = session, page, policy
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """The page, and the rows that it shows."""
        match self._inside():
            case "":
                self._send(HTTPStatus.OK, self.page, "text/html; charset=utf-8")
            case "rows.json":
                self._send_json(HTTPStatus.OK, self.session.state())
            case _:
                self._send_json(HTTPStatus.NOT_FOUND, {"error": "not found"})

    def do_POST(self) -> None:
        """A decision, or an undo."""
        inside = self._inside()
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(length, MAX_BODY_BYTES))
        try:
            if inside == "decide":
                self._send_json(HTTPStatus.OK, self.session.decide(msgspec.json.decode(body, type=Wanted)))
            elif inside == "undo":
                self._send_json(HTTPStatus.OK, self.session.undo())
            else:
                self._send_json(HTTPStatus.NOT_FOUND, {"error": "not found"})
        except (ValueError, msgspec.DecodeError) as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError as error:
            self._send_json(HTTPStatus.INSUFFICIENT_STORAGE, {"error": f"not saved: {error.strerror}"})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal belongs to the address that was printed."""

    def _inside(self) -> str | None:
        """What stands after the token; None without it, or where another site's name points at this machine."""
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        _, _, rest = self.path.partition("/")
        token, _, inside = rest.partition("/")
        known = secrets.compare_digest(token.encode(), self.session.token.encode())
        return inside if known and host in ("127.0.0.1", "localhost") else None

    def _send_json(self, status: HTTPStatus, value: object) -> None:
        self._send(status, json.dumps(value, ensure_ascii=False).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Content-Security-Policy", self.policy)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def review_server(run_folder: Path, port: int = 0) -> Generator[tuple[ThreadingHTTPServer, str]]:
    """A listening server and its address; `serve_forever` is the caller's.

    Raises:
        RunFolderError: the folder is no run, another review holds it, or the port is taken.
    """
    with ReviewSession.open(run_folder) as session:
        script = source("theme.js") + source("review.js")
        policy = (
            f"default-src 'none'; style-src 'unsafe-inline'; script-src {script_hash(script)}; connect-src 'self'; "
            f"img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )
        page = (
            templates()
            .get_template("review.html.j2")
            .render(title=session.title, style=source("page.css") + source("review.css"), script=script)
        )
        handler = partial(ReviewHandler, session, page.encode(), policy)
        try:
            server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as error:
            raise RunFolderError(
                f"Port {port} of this machine cannot be used: {error.strerror}. Leave --port out for a free one."
            ) from None
        with server:
            yield server, f"http://127.0.0.1:{server.server_address[1]}/{session.token}/"


def serve_review(run_folder: Path, port: int = 0, *, on_ready: Callable[[str], None] = lambda _address: None) -> Path:
    """Serve the page until Ctrl-C and return the file of decisions; `on_ready` hears the address.

    Raises:
        RunFolderError: the folder is no run, another review holds it, or the port is taken.
    """
    with review_server(run_folder, port) as (server, address):
        on_ready(address)
        with suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)
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
        "said": [
            {"by": name, "answer": v.answers[place], "text": v.texts[place]}
            for name, v in _named_voices(labels)
            if v.answers[place] is not None or v.texts[place]
        ],
    }


def _named_voices(labels: LabelTable) -> list[tuple[str, Voice]]:
    named = [(voice.id, voice) for voice in labels.voices]
    return named if labels.justification is None else [*named, ("justification", labels.justification)]
