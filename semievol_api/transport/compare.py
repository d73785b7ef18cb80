"""What changed between two cassettes, and what is in one: text for people.

Knows nothing of files, modes or sending.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from semievol_api.transport.exchange import Exchange
from semievol_api.transport.nearest import describe_content, describe_difference, nearest_exchange
from semievol_api.transport.store import Recording

Exchanges = Mapping[tuple[str, str, int], Exchange]
SHOWN_EXCHANGES = 20


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


def compare(old: Exchanges, new: Exchanges) -> Iterator[str]:
    """One paragraph for each exchange gone, new, or answered otherwise; nothing for equal cassettes."""
    changes = list(_changes(old, new))
    yield from changes[:SHOWN_EXCHANGES]
    if len(changes) > SHOWN_EXCHANGES:
        yield f"... and {len(changes) - SHOWN_EXCHANGES} more"


def _changes(old: Exchanges, new: Exchanges) -> Iterator[str]:
    added = {identity: one for identity, one in new.items() if identity not in old}
    searches = 0  # each looks at all that was added, so only those that will be shown are worth it
    for identity, gone in old.items():
        now = new.get(identity)
        if now is not None:
            yield from _answer_change(gone, now)
            continue
        searches += 1
        candidates = added.values() if searches <= SHOWN_EXCHANGES else ()
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
    elif difference := describe_content(old.response.body, new.response.body):
        yield f"answered otherwise: {old.label}\n{difference}"
