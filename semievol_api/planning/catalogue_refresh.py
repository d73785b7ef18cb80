"""A newer table of vendors and models without a release: checked, compared row by row, kept in the user's folder.

    told = refresh(Path("newer.toml"), data_folder(), today)
    for change in told.changes: print(change.row, change.keys)

What a table replaces is kept beside it. Knows nothing of the terminal, and nothing of the network: the file is there.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from semievol_api.config.settings import read_toml
from semievol_api.errors import ConfigError
from semievol_api.planning.catalogue import (
    Catalogue,
    ModelFacts,
    VendorFacts,
    load_catalogue,
    newer_of,
    parse_catalogue,
)

_FOLDER_VARIABLE = "SEMIEVOL_DATA_DIR"
_INSTALLED = "catalogue.toml"
_EARLIER = "earlier"

_ChangeKind: TypeAlias = Literal["added", "changed", "removed", "older"]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one entry. `keys` holds, by key, the value before and the value now."""

    row: str
    kind: _ChangeKind
    keys: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What was installed, where, where the table before lies, and what that changed. None: the package's own."""

    installed: Path | None
    kept: Path | None
    changes: tuple[Change, ...]


def data_folder(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """The user's folder for this package: `SEMIEVOL_DATA_DIR`, else `XDG_DATA_HOME`, else the platform's own."""
    found = os.environ if environ is None else environ
    if found.get(_FOLDER_VARIABLE):
        return Path(found[_FOLDER_VARIABLE]).expanduser()
    xdg = Path(found.get("XDG_DATA_HOME", ""))
    if xdg.is_absolute():
        return xdg / "semievol"
    home = Path.home()
    if platform == "win32":
        return Path(found.get("LOCALAPPDATA") or home / "AppData" / "Local") / "semievol"
    if platform == "darwin":
        return home / "Library" / "Application Support" / "semievol"
    return home / ".local" / "share" / "semievol"


def known_catalogue(own: Path | None = None, folder: Path | None = None) -> Catalogue:
    """Everything known: the package's table, the refreshed one over it, the user's file on top.

    Raises:
        ConfigError: one of the files is wrong; it names the entry and the key.
    """
    installed = (data_folder() if folder is None else folder) / _INSTALLED
    refreshed = installed if installed.is_file() else None
    if refreshed is not None:
        _readable(refreshed)
    return load_catalogue(own, refreshed)


def refresh(file: Path, folder: Path, today: datetime.date) -> Refreshed:
    """Install a newer table; the one that it replaces is kept, and nothing is touched where the file is wrong.

    Raises:
        ConfigError: the file is missing or wrong, holds nothing, names a row twice, or was read on a day to come.
    """
    if not file.is_file():
        raise ConfigError(f"--refresh: there is no file {str(file)!r}. Name a table in the form of catalogue.toml.")
    content = file.read_bytes()
    fresh = parse_catalogue(read_toml(file), file.name)
    _refuse_odd(fresh, file.name, today)
    installed, before, package = folder / _INSTALLED, _before(folder), load_catalogue()
    after = newer_of(package, fresh)
    changes = (*_changes(before, after), *_older(package, fresh))
    if installed.is_file() and installed.read_bytes() == content:
        return Refreshed(installed, None, changes)
    try:
        kept = _set_aside(installed)
        folder.mkdir(parents=True, exist_ok=True)
        written = installed.with_suffix(".new")
        written.write_bytes(content)
        written.replace(installed)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return Refreshed(installed, kept, changes)


def reset(folder: Path) -> Refreshed:
    """Go back to the package's table; the refreshed one is kept.

    Raises:
        ConfigError: the folder cannot be written.
    """
    installed = folder / _INSTALLED
    before = _before(folder)
    try:
        kept = _set_aside(installed)
        installed.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    return Refreshed(None, kept, tuple(_changes(before, load_catalogue())))


def _before(folder: Path) -> Catalogue:
    """What was known so far; a table that cannot be read must not stand in the way of another, or of none."""
    try:
        return known_catalogue(folder=folder)
    except ConfigError:
        return load_catalogue()


def _readable(refreshed: Path) -> None:
    """A table that this version cannot read says how to go back, since every command would meet it."""
    try:
        parse_catalogue(read_toml(refreshed), str(refreshed))
    except ConfigError as error:
        raise ConfigError(
            f"{error} It was installed by `semievol providers --refresh`; `semievol providers --reset` goes back to "
            f"the package's own table."
        ) from None


def _refuse_odd(fresh: Catalogue, name: str, today: datetime.date) -> None:
    if not fresh.models and not fresh.vendors:
        raise ConfigError(f"{name} holds neither [[models]] nor [vendors.NAME]: it has no entries.")
    seen: dict[tuple[str, str], int] = {}
    for number, facts in enumerate(fresh.models, start=1):
        row = f"{name}, [[models]] row {number} ({facts.vendor}, {facts.model})"
        there = seen.setdefault((facts.vendor, facts.model), number)
        if there != number:
            raise ConfigError(f"{row}: row {there} has the same vendor and model. Keep one of them.")
        _refuse_future(facts, row, today)
    for vendor, about in fresh.vendors.items():
        _refuse_future(about, f"{name}, [vendors.{vendor}]", today)


def _refuse_future(facts: ModelFacts | VendorFacts, row: str, today: datetime.date) -> None:
    if facts.looked_at > today:
        raise ConfigError(
            f"{row}: 'checked' is {facts.looked_at}, which is after today ({today}). Write the day on which "
            f"the source was read."
        )


def _set_aside(installed: Path) -> Path | None:
    """A copy of the table in use under the next free number; None where there is none."""
    if not installed.is_file():
        return None
    folder = installed.parent / _EARLIER
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem.split("-")[-1]) for path in folder.glob("catalogue-*.toml") if _numbered(path)]
    kept = folder / f"catalogue-{max(taken, default=0) + 1}.toml"
    kept.write_bytes(installed.read_bytes())
    return kept


def _numbered(path: Path) -> bool:
    return path.stem.split("-")[-1].isdecimal()


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"The folder {str(folder)!r} cannot be written: {error.strerror}. Name another one in {_FOLDER_VARIABLE}."
    )


def _rows(catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    rows = {f"{m.model} at {m.vendor}": m.model_dump(mode="json") for m in catalogue.models}
    return rows | {f"vendor {name}": about.model_dump(mode="json") for name, about in catalogue.vendors.items()}


def _changes(before: Catalogue, after: Catalogue) -> list[Change]:
    """The entries that differ now, one by one."""
    old, new = _rows(before), _rows(after)
    found: list[Change] = []
    for row in dict.fromkeys([*old, *new]):
        was, now = old.get(row, {}), new.get(row, {})
        keys = {key: (was.get(key), now.get(key)) for key in {**was, **now} if was.get(key) != now.get(key)}
        if keys:
            found.append(Change(row, "changed" if was and now else "added" if now else "removed", keys))
    if before.stale_after_days != after.stale_after_days:
        days = (before.stale_after_days, after.stale_after_days)
        found.append(Change("stale_after_days", "changed", {"stale_after_days": days}))
    return found


def _older(package: Catalogue, fresh: Catalogue) -> list[Change]:
    """Rows that the package knows newer, and which are therefore not taken."""
    found: list[Change] = []
    for facts in fresh.models:
        there = next((m for m in package.models if (m.vendor, m.model) == (facts.vendor, facts.model)), None)
        if there is not None and there.looked_at > facts.looked_at:
            days = (str(there.looked_at), str(facts.looked_at))
            found.append(Change(f"{facts.model} at {facts.vendor}", "older", {"checked": days}))
    for name, about in fresh.vendors.items():
        known = package.vendors.get(name)
        if known is not None and known.looked_at > about.looked_at:
            found.append(Change(f"vendor {name}", "older", {"checked": (str(known.looked_at), str(about.looked_at))}))
    return found
