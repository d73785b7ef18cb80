"""A newer table of vendors without a release: checked, told row by row, kept for the user, and dropped again."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from semievol_api.errors import ConfigError
from semievol_api.planning.catalogue import load_catalogue
from semievol_api.planning.catalogue_refresh import data_folder, known_catalogue, refresh, reset

TODAY = datetime.date(2026, 12, 20)
NEWER = """
[vendors.crusoe]
checked = 2026-12-15
gpu_hour_usd = { H100 = 4.75 }

[[models]]
vendor = "nebius"
model = "meta-llama/Llama-3.1-8B-Instruct"
checked = 2026-12-15
source = "its console"
strength = "doc"
fine_tunable = true
input_usd = 0.03
output_usd = 0.09
tuned = { input_usd = 0.03, output_usd = 0.09 }
training_usd = 0.9

[[models]]
vendor = "nebius"
model = "a-new-one"
checked = 2026-12-15
training_usd = 1.5

[[models]]
vendor = "openai"
model = "gpt-4.1-nano-2025-04-14"
checked = 2026-10-01
shutdown_date = 2028-01-01
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "newer.toml"
    path.write_text(NEWER)
    return path


def test_a_newer_table_is_told_row_by_row_and_holds_from_then_on(table: Path, tmp_path: Path) -> None:
    told = refresh(table, tmp_path / "data", TODAY)
    changes = {change.row: change for change in told.changes}
    llama = changes["meta-llama/Llama-3.1-8B-Instruct at nebius"]
    assert llama.kind == "changed" and llama.keys["training_usd"] == (0.4, 0.9)
    assert changes["a-new-one at nebius"].kind == "added"
    assert changes["vendor crusoe"].keys["gpu_hour_usd"] == ({"H100": 5.5, "H200": 6.0}, {"H100": 4.75})
    assert changes["gpt-4.1-nano-2025-04-14 at openai"].kind == "older"
    assert len(changes) == 4, "what is as it was is not told"
    known = known_catalogue(folder=tmp_path / "data")
    found = known.facts("nebius", "meta-llama/Llama-3.1-8B-Instruct")
    assert found is not None and found.training_usd == 0.9
    nano = known.facts("openai", "gpt-4.1-nano")
    assert nano is not None and str(nano.shutdown_date) == "2026-10-23", "an older row than the package's is not taken"
    assert known.stale_after_days == load_catalogue().stale_after_days


def test_the_users_own_file_stays_on_top_of_a_refreshed_table(table: Path, tmp_path: Path) -> None:
    refresh(table, tmp_path / "data", TODAY)
    own = tmp_path / "own.toml"
    own.write_text('[[models]]\nvendor = "nebius"\nmodel = "a-new-one"\nchecked = 2026-01-01\ntraining_usd = 7')
    found = known_catalogue(own, tmp_path / "data").facts("nebius", "a-new-one")
    assert found is not None and found.training_usd == 7


def test_what_a_table_replaces_is_kept_and_a_reset_goes_back_to_the_packages(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert refresh(table, folder, TODAY).kept is None
    first = table.read_bytes()
    assert refresh(table, folder, TODAY).kept is None, "the same table again replaces nothing"
    table.write_text(NEWER.replace("1.5", "2.5"))
    second = refresh(table, folder, TODAY)
    assert second.kept is not None and second.kept.read_bytes() == first
    back = reset(folder)
    assert back.kept is not None and back.kept != second.kept and back.kept.read_text() == table.read_text()
    assert {c.kind for c in back.changes if c.row == "a-new-one at nebius"} == {"removed"}
    assert known_catalogue(folder=folder) == load_catalogue()
    assert reset(folder).changes == () and reset(folder).kept is None
    again = refresh(second.kept, folder, TODAY)
    assert any(c.row == "a-new-one at nebius" for c in again.changes), "a table that was kept can be taken up again"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("input_usd = 0.03\n", "input_usd = -1\n", ["row 1 (nebius, meta-llama/Llama-3.1-8B-Instruct)", "input_usd"]),
        ("input_usd = 0.03\n", "input_usd = inf\n", ["row 1", "input_usd"]),
        ("output_usd = 0.09\n", "outptu_usd = 0.09\n", ["row 1", "'outptu_usd'", "'output_usd'"]),
        ("training_usd = 1.5", "training_usd = 'dear'", ["row 2 (nebius, a-new-one)", "training_usd"]),
        ("training_usd = 1.5", "weak = ['prise']", ["row 2", "'prise'"]),
        ("training_usd = 1.5", "shutdown_date = 2027-01-01\nlast_training_date = 2027-02-01", ["row 2", "2027-02-01"]),
        ("2028-01-01", '"soon"', ["row 3 (openai, gpt-4.1-nano-2025-04-14)", "shutdown_date"]),
        ('model = "a-new-one"\nchecked = 2026-12-15', 'model = "a-new-one"', ["row 2", "'checked' is missing"]),
        ('model = "a-new-one"\nchecked = 2026-12-15', 'model = "x"\nchecked = 2027-12-15', ["row 2", "2027-12-15"]),
        ('"a-new-one"', '"meta-llama/Llama-3.1-8B-Instruct"', ["row 2", "row 1 has the same vendor and model"]),
        ("H100 = 4.75", "H100 = -4.75", ["[vendors.crusoe]", "gpu_hour_usd"]),
        ("[vendors.crusoe]", "[vendor.crusoe]", ["'vendor'", "'vendors'"]),
        (NEWER, "models = 3", ["models"]),
        (NEWER, "models = [3]", ["row 1"]),
        (NEWER, "", ["it has no entries"]),
        (NEWER, "[[models", ["not valid TOML"]),
    ],
)
def test_a_wrong_table_is_refused_with_its_row_and_key_and_changes_nothing(
    old: str, new: str, words: list[str], table: Path, tmp_path: Path
) -> None:
    refresh(table, tmp_path / "data", TODAY)
    assert old in NEWER
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(NEWER.replace(old, new, 1))
    with pytest.raises(ConfigError) as refused:
        refresh(wrong, tmp_path / "data", TODAY)
    said = str(refused.value)
    assert said.startswith("wrong.toml") and "\n" not in said
    assert all(word in said for word in words), said
    assert (tmp_path / "data" / "catalogue.toml").read_text() == NEWER
    assert not (tmp_path / "data" / "earlier").exists()


def test_a_table_that_this_version_cannot_read_says_how_to_go_back_and_going_back_works(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "catalogue.toml").write_text("from_a_later_version = 1")
    with pytest.raises(ConfigError, match="--reset"):
        known_catalogue(folder=folder)
    assert reset(folder).kept is not None
    assert known_catalogue(folder=folder) == load_catalogue()


def test_a_table_that_cannot_be_read_is_replaced_by_a_good_one(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "catalogue.toml").write_text("from_a_later_version = 1")
    told = refresh(table, folder, TODAY)
    assert told.kept is not None and told.kept.read_text() == "from_a_later_version = 1"


@pytest.mark.parametrize(
    ("environ", "platform", "folder"),
    [
        ({"SEMIEVOL_DATA_DIR": "/a/b", "XDG_DATA_HOME": "/x"}, "linux", "/a/b"),
        ({"XDG_DATA_HOME": "/x"}, "linux", "/x/semievol"),
        ({"XDG_DATA_HOME": "relative"}, "linux", "~/.local/share/semievol"),
        ({"SEMIEVOL_DATA_DIR": ""}, "linux", "~/.local/share/semievol"),
        ({}, "darwin", "~/Library/Application Support/semievol"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/semievol"),
    ],
)
def test_the_users_folder_is_where_the_platform_keeps_such_things(
    environ: dict[str, str], platform: str, folder: str
) -> None:
    assert data_folder(environ, platform) == Path(folder).expanduser()
