"""The lasting names of classes and stages: what may be renamed, moved, added and taken away without a new fingerprint.

The lines with `type: ignore` are tests of their own: where a wrong argument of a stage is no type error any more, mypy
says that the comment is of no use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from semievol_api.config.method import Settings
from semievol_api.store.artifacts import TrainingFile
from semievol_api.store.fingerprints import Stage, entries, fingerprinted, plain, stage
from semievol_api.store.run_store import RunStore


@fingerprinted("rule", "share")
@dataclass(frozen=True)
class First:
    """As it was."""

    rule: str = "fdr"
    share: float = 0.5
    remark: str = field(default="", compare=False)


@fingerprinted("rule", "share")
class FirstSettings(Settings):
    """As they were."""

    rule: str = "fdr"
    share: float = 0.5


@stage("copy")
async def copied(text: str, times: int) -> TrainingFile:
    return TrainingFile(text.encode() * times)


def digest(value: object, folder: Path) -> str:
    with RunStore.open(folder, "key") as store:
        return store.fingerprint(value)


def test_a_renamed_class_and_a_renamed_field_keep_their_fingerprint(tmp_path: Path) -> None:
    @fingerprinted("rule", "share", renamed={"kept_share": "share"})
    @dataclass(frozen=True)
    class Second:
        kept_share: float = 0.5
        rule: str = "fdr"

    @fingerprinted("rule", "share", renamed={"kept_share": "share"})
    class SecondSettings(Settings):
        kept_share: float = 0.5
        rule: str = "fdr"

    assert digest(Second(), tmp_path) == digest(SecondSettings(), tmp_path) == digest(First(), tmp_path)
    assert digest(Second(kept_share=0.4), tmp_path) != digest(First(), tmp_path)
    assert list(entries(SecondSettings())) == ["rule", "share"], "the config's key hangs on the order, too"


def test_a_field_within_another_class_keeps_its_name() -> None:
    @fingerprinted("share")
    @dataclass(frozen=True)
    class Inner:
        share: float = 0.5

    @fingerprinted("rule", "share", renamed={"inner.share": "share"})
    @dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()
        rule: str = "fdr"

    assert entries(Outer(Inner(0.3))) == entries(First(share=0.3))


def test_an_added_setting_counts_only_where_it_is_set() -> None:
    @fingerprinted("rule", "share")
    class Later(Settings):
        rule: str = "fdr"
        share: float = 0.5
        warm_start: bool = False
        labels: tuple[str, ...] = ()

    @fingerprinted("rule", "share")
    @dataclass(frozen=True)
    class LaterValue:
        rule: str = "fdr"
        share: float = 0.5
        seen: list[str] = field(default_factory=list[str])

    assert plain(Later()) == plain(LaterValue()) == plain(FirstSettings()) == {"rule": "fdr", "share": 0.5}
    assert plain(Later(labels=("A",))) == {"rule": "fdr", "share": 0.5, "labels": ["A"]}
    assert plain(LaterValue(seen=["x"])) == {"rule": "fdr", "share": 0.5, "seen": ["x"]}


def test_what_was_taken_away_stays_as_a_constant_and_what_shapes_nothing_stays_out() -> None:
    @fingerprinted("rule", "share", gone={"share": 0.5}, outside=("folder",))
    @dataclass(frozen=True)
    class Smaller:
        folder: Path
        rule: str = "fdr"

    assert entries(Smaller(Path("x"))) == entries(First(remark="seen by nobody"))


def test_a_field_that_is_renamed_without_a_word_is_refused_with_the_remedy() -> None:
    @dataclass(frozen=True)
    class Renamed:
        rule: str = "fdr"
        kept_share: float = 0.5

    with pytest.raises(TypeError, match=r"no field 'share'.*renamed=\{NEW: 'share'\}.*gone="):
        fingerprinted("rule", "share")(Renamed)
    with pytest.raises(TypeError, match="no field 'warm'"):
        fingerprinted("rule", renamed={"warm": "cold"})(Renamed)


def test_an_added_field_without_a_default_is_refused() -> None:
    class Later(Settings):
        rule: str
        share: float

    with pytest.raises(TypeError, match="'share' of Later would change every fingerprint"):
        fingerprinted("rule")(Later)


def test_a_class_without_lasting_names_cannot_enter_a_fingerprint(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Bare:
        rule: str = "fdr"

    @dataclass(frozen=True)
    class Heir(First):
        extra: int = 0

    for value in (Bare(), Heir()):
        with pytest.raises(TypeError, match=r"no lasting names.*@fingerprinted\('rule'"):
            digest(value, tmp_path)


async def test_a_stage_is_known_by_its_name_whatever_its_function_is_called(tmp_path: Path) -> None:
    @stage("copy")
    async def called_anything(text: str, times: int) -> TrainingFile:
        raise AssertionError("its artifact is there")

    with RunStore.open(tmp_path, "key") as store:
        for make in (copied, called_anything):
            made = await store.once("file", TrainingFile, make, "ab", 2)
        assert made.content == b"abab"
        assert store.computed == ["file"]
        await store.once("file", TrainingFile, Stage("other", copied), "ab", 2)
        assert store.computed == ["file", "file"]
    assert (await copied("a", times=3)).content == b"aaa"


async def test_arguments_by_name_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, "key") as store:
        for times in (2, 3):
            made = await store.once("file", TrainingFile, copied, "ab", times=times)
        assert made.content == b"ababab"


async def test_a_wrong_argument_of_a_stage_is_a_type_error(tmp_path: Path) -> None:
    async def bare() -> TrainingFile:
        return TrainingFile(b"")

    with RunStore.open(tmp_path, "key") as store:
        wrong: list[Callable[[], object]] = [
            lambda: store.once("a", TrainingFile, copied, "ab", "2"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            lambda: store.once("b", TrainingFile, copied, "ab"),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
            lambda: store.once("c", TrainingFile, copied, "ab", 2, 3),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
            lambda: store.once("d", TrainingFile, bare),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        ]
    assert len(wrong) == 4, "the checkers read them; nobody runs them"
