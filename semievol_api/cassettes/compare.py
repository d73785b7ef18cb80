"""Explain a miss: find the recorded request that is most like the one asked, and say how they differ.

Knows nothing of files, modes or sending; it reads values and writes text.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import cast

import msgspec

from semievol_api.cassettes.exchange import Content, Exchange, Recording, Request
from semievol_api.records import JsonValue

_SHOWN_DIFFERENCES = 8
_SHOWN_CHARACTERS = 160
_WORD = re.compile(rb"\w+")
_ABSENT = "(absent)"


def nearest_exchange(request: Request, slot: str, exchanges: Iterable[Exchange]) -> Exchange | None:
    """The recorded exchange of the same method and path whose slot is the same, or else whose body shares the
    largest part of its words; None where the path was never recorded."""
    wanted = set(_WORD.findall(request.body.to_bytes()))
    best: tuple[float, Exchange] | None = None
    for exchange in exchanges:
        recorded = exchange.request
        if recorded.path != request.path or recorded.method != request.method:
            continue
        if slot and exchange.slot == slot:
            return exchange
        words = set(_WORD.findall(recorded.body.to_bytes()))
        score = len(wanted & words) / max(1, len(wanted | words))
        if best is None or score > best[0]:
            best = (score, exchange)
    return best[1] if best else None


def describe_difference(recorded: Request, asked: Request) -> str:
    """The differing places of two requests, one paragraph each, the first few of them."""
    lines = [
        *_differences("query", [list(pair) for pair in recorded.query], [list(pair) for pair in asked.query]),
        *_differences("body", _readable(recorded.body), _readable(asked.body)),
    ]
    return _first(lines)


def _describe_content(recorded: Content, asked: Content) -> str:
    """The differing places of two bodies; empty where they are equal."""
    return _first(list(_differences("body", _readable(recorded), _readable(asked))))


def _first(lines: list[str]) -> str:
    hidden = len(lines) - _SHOWN_DIFFERENCES
    return "\n".join([*lines[:_SHOWN_DIFFERENCES], *([f"    ... and {hidden} more places"] if hidden > 0 else [])])


def _readable(content: Content) -> JsonValue:
    if content.json or content.parts:
        return cast(JsonValue, msgspec.json.decode(content.to_bytes()))
    return content.text or content.base64


def _differences(place: str, recorded: JsonValue, asked: JsonValue) -> Iterator[str]:
    if recorded == asked and type(recorded) is type(asked):
        return
    if isinstance(recorded, dict) and isinstance(asked, dict):
        for key in sorted(recorded.keys() | asked.keys()):
            yield from _differences(f"{place}.{key}", recorded.get(key, _ABSENT), asked.get(key, _ABSENT))
    elif isinstance(recorded, list) and isinstance(asked, list):
        for index, (old, new) in enumerate(zip_longest(recorded, asked, fillvalue=_ABSENT)):
            yield from _differences(f"{place}[{index}]", old, new)
    elif isinstance(recorded, str) and isinstance(asked, str):
        yield f"    {place}:\n" + "\n".join(_text_difference(recorded, asked))
    else:
        yield f"    {place}:\n      - {_short(recorded)}\n      + {_short(asked)}"


def _text_difference(recorded: str, asked: str) -> Iterator[str]:
    """Only the lines that differ, each cut around its first difference."""
    old_lines, new_lines = recorded.splitlines(), asked.splitlines()
    matcher = difflib.SequenceMatcher(None, old_lines, new_lines, autojunk=False)
    for kind, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if kind == "equal":
            continue
        pairs = zip_longest(old_lines[old_start:old_end], new_lines[new_start:new_end])
        for old, new in list(pairs)[:_SHOWN_DIFFERENCES]:
            start = _first_difference(old or "", new or "")
            if old is not None:
                yield f"      - {_around(old, start)}"
            if new is not None:
                yield f"      + {_around(new, start)}"


def _first_difference(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _around(text: str, position: int) -> str:
    start = max(0, position - _SHOWN_CHARACTERS // 2) if len(text) > _SHOWN_CHARACTERS else 0
    end = start + _SHOWN_CHARACTERS
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def _short(value: JsonValue) -> str:
    return _ABSENT if value == _ABSENT else _around(msgspec.json.encode(value).decode(), 0)


_Exchanges = Mapping[tuple[str, str, int], Exchange]
_SHOWN_EXCHANGES = 20


def describe(recording: Recording) -> Iterator[str]:
    """Where a recording comes from, and how many exchanges of which kind it holds."""
    manifest = recording.manifest
    yield f"recorded against {manifest.recorded_against}, {manifest.date}, seed {manifest.seed}"
    yield "with " + ", ".join(f"{name} {version}" for name, version in manifest.packages.items())
    if manifest.notes:
        yield manifest.notes
    yield f"{len(recording.exchanges)} exchanges:"
    counts = Counter(exchange.label for exchange in recording.exchanges.values())
    yield from (f"{count:7d}  {label}" for label, count in sorted(counts.items()))


def compare(old: _Exchanges, new: _Exchanges) -> Iterator[str]:
    """One paragraph for each exchange gone, new, or answered otherwise; nothing for equal cassettes."""
    changes = list(_changes(old, new))
    yield from changes[:_SHOWN_EXCHANGES]
    if len(changes) > _SHOWN_EXCHANGES:
        yield f"... and {len(changes) - _SHOWN_EXCHANGES} more"


def _changes(old: _Exchanges, new: _Exchanges) -> Iterator[str]:
    added = {identity: one for identity, one in new.items() if identity not in old}
    searches = 0  # each looks at all that was added, so only those that will be shown are worth it
    for identity, gone in old.items():
        now = new.get(identity)
        if now is not None:
            yield from _answer_change(gone, now)
            continue
        searches += 1
        candidates = added.values() if searches <= _SHOWN_EXCHANGES else ()
        moved = nearest_exchange(gone.request, gone.slot, candidates)
        if moved is None:
            yield f"gone:     {gone.label}"
            continue
        del added[moved.identity]
        difference = describe_difference(gone.request, moved.request)
        yield f"asked otherwise: {gone.label}\n{difference or '    only the slot or the turn'}"
    yield from (f"new:      {one.label}" for one in added.values())


def _answer_change(old: Exchange, new: Exchange) -> Iterator[str]:
    if old.response.status != new.response.status:
        yield f"answered otherwise: {old.label}, now {new.response.status or 'no answer'}"
    elif difference := _describe_content(old.response.body, new.response.body):
        yield f"answered otherwise: {old.label}\n{difference}"
