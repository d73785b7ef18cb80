"""The names under which classes and stages stand in fingerprints: as they were first, whatever the code says now.

    @fingerprinted("rule", "share", renamed={"least_share": "class_quota"})
    class SelectSettings(Settings): ...

    @stage("collaborate")
    async def collaborate(student: Student, corpus: Corpus) -> EvidenceTable: ...

A fingerprint that moves buys a training or asks a question twice. So: a class that is renamed or moved changes
nothing; a field that is renamed keeps its old name in `renamed`; one that is taken away leaves its value in `gone`;
one that is added is not named, and then left out while it has its default. Knows nothing of hashing, files or
stages.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

from pydantic import BaseModel

T = TypeVar("T")
ParamsT = ParamSpec("ParamsT")
ResultT_co = TypeVar("ResultT_co", covariant=True)
NAMES = "_fingerprint_names"
NO_DEFAULT = object()


class Stage(Generic[ParamsT, ResultT_co]):
    """An async function that makes an artifact, with the name that its results are known by; called like it."""

    def __init__(self, known_as: str, make: Callable[ParamsT, Awaitable[ResultT_co]]) -> None:
        functools.update_wrapper(self, make)
        self.known_as = known_as
        self._make = make

    async def __call__(self, *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT_co:
        """The artifact, made anew."""
        return await self._make(*args, **kwargs)


def stage(known_as: str) -> Callable[[Callable[ParamsT, Awaitable[T]]], Stage[ParamsT, T]]:
    """Make a function a stage. Another name makes its stored results worthless: only where its meaning changed."""

    def named(make: Callable[ParamsT, Awaitable[T]]) -> Stage[ParamsT, T]:
        return Stage(known_as, make)

    return named


@dataclass(frozen=True)
class Names:
    """How a class enters fingerprints: each name with the field it is read from, and what is constant or absent.

    `read` maps names to fields or dotted paths, in the order of the names; `added` maps fields to the default at which
    they are left out.
    """

    read: Mapping[str, str]
    gone: Mapping[str, object]
    added: Mapping[str, object]


def fingerprinted(
    *names: str,
    renamed: Mapping[str, str] | None = None,
    gone: Mapping[str, object] | None = None,
    outside: tuple[str, ...] = (),
) -> Callable[[type[T]], type[T]]:
    """Say how a dataclass or a settings class enters fingerprints.

    Args:
        names: every name, in the order that it always had.
        renamed: fields (or dotted paths that begin with one) that stand there under another name.
        gone: names that have no field any more, and the value that stays.
        outside: fields that shape no result.

    Raises:
        TypeError: a name has no field, or an added field has no default.
    """
    old_names, constants = dict(renamed or {}), dict(gone or {})

    def declare(cls: type[T]) -> type[T]:
        defaults = _defaults(cls)
        lost = [path for path in old_names if path.split(".")[0] not in defaults]
        lost += [name for name in names if name not in (*old_names.values(), *constants) and name not in defaults]
        if lost:
            raise TypeError(
                f"{cls.__name__} has no field {lost[0]!r}, and old runs are known by it. If it was renamed, keep the "
                f"old name in @fingerprinted(renamed={{NEW: {lost[0]!r}}}); if it was taken away, say what value its "
                f"absence stands for: gone={{{lost[0]!r}: VALUE}}."
            )
        old_of = {old: path for path, old in old_names.items()}
        read = {name: old_of.get(name, name) for name in names if name not in constants}
        used = {*(path.split(".")[0] for path in read.values()), *outside}
        added = {name: default for name, default in defaults.items() if name not in used}
        for name, default in added.items():
            if default is NO_DEFAULT:
                raise TypeError(
                    f"The field {name!r} of {cls.__name__} would change every fingerprint. Give it a default, at which "
                    f"it is left out; or, in a new class, name it in @fingerprinted."
                )
        type.__setattr__(cls, NAMES, Names(read, constants, added))
        return cls

    return declare


def entries(value: object) -> dict[str, object]:
    """What of a dataclass or of settings enters a fingerprint, by its lasting names.

    Raises:
        TypeError: the class does not say how it does.
    """
    names = vars(type(value)).get(NAMES)
    if not isinstance(names, Names):
        raise TypeError(
            f"{type(value).__name__} cannot enter a fingerprint: its fields have no lasting names. Put "
            f"@fingerprinted({', '.join(map(repr, _defaults(type(value))))}) above it, or give it an `identity`."
        )
    found = {name: attrgetter(path)(value) for name, path in names.read.items()} | dict(names.gone)
    for name, default in names.added.items():
        now = attrgetter(name)(value)
        if now != default:
            found[name] = now
    return found


def plain(value: object) -> object:
    """Settings as JSON values, by their lasting names and in their lasting order."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in entries(value).items()}


def _defaults(cls: type) -> dict[str, object]:
    """The fields that count, each with its default."""
    if issubclass(cls, BaseModel):
        fields = cls.model_fields.items()
        return {
            name: NO_DEFAULT if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in fields
        }
    if not dataclasses.is_dataclass(cls):
        return {}
    return {field.name: _default(field) for field in dataclasses.fields(cls) if field.compare}


def _default(field: dataclasses.Field[object]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return NO_DEFAULT if field.default is dataclasses.MISSING else field.default
