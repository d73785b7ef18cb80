"""The config: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from semievol_api.config.settings import load_config
from semievol_api.errors import ConfigError

GOOD = """
[run]
folder = "out"
[data]
task = "arc"
labeled = "l.csv"
unlabeled = "u.csv"
[providers.mine]
kind = "scripted"
skill = 0.5
[roles]
student = { provider = "mine", model = "m" }
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "semievol.toml"
    path.write_text(text, "utf-8")
    return path


def test_paths_are_resolved_against_the_configs_own_folder(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.run.folder == tmp_path / "out"
    assert config.data.labeled == tmp_path / "l.csv"
    assert config.providers["mine"].options == {"skill": 0.5}


def test_overrides_reach_into_the_tree(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, GOOD), {"run.seed": 7, "limits.rpm": 5}).limits.rpm == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[data]", "[data]\nlabled = 1"), ["'data.labled'", "'labeled'"]),
        (("[run]", "[run]\nseeed = 1"), ["'run.seeed'", "'seed'"]),
        (('folder = "out"', ""), ["'run.folder'", "missing"]),
        (("[run]", '[run]\nseed = "x"'), ["'run.seed'", "integer"]),
        (("[providers.mine]", "[selct]\nshare = 1\n[providers.mine]"), ["'selct'", "'select'"]),
        (("[providers.mine]", "[select]\nshare = 2\n[providers.mine]"), ["'select.share'", "less than or equal to 1"]),
        (('kind = "scripted"', ""), ["'providers.mine.kind'", "missing"]),
        (("[run]", "[run"), ["not valid TOML", "line 2"]),
    ],
)
def test_a_wrong_key_or_value_names_its_path_and_the_nearest_valid_name(
    tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace(*change)))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_config_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="semievol init"):
        load_config(tmp_path / "nowhere.toml")


def test_a_config_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes("# é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path)


def test_a_config_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "semievol.toml"
    path.write_text(GOOD, "utf-8-sig")
    assert load_config(path).run.folder == tmp_path / "out"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('student = { provider = "mine", model = "m" }', 'student = "m"'), ["'roles.student'", "{ provider = ..., m"]),
        (("[providers.mine]", '[select]\nrule = "top-n"\n[providers.mine]'), ["'top-n' needs n, such as n = 100"]),
        (("[providers.mine]", '[select]\nrule = "human-budget"\n[providers.mine]'), ["'human-budget' needs budget"]),
    ],
)
def test_a_message_says_what_to_write_and_shows_no_empty_path(
    tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace(*change)))
    for word in words:
        assert word in str(caught.value)
    assert "''" not in str(caught.value)
