"""What the commands tell a person: the model's name, what to beware of, what to do next; nothing cut off or lost."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator

from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.main import get_command

from semievol_api.cli.app import build_app
from semievol_api.report.report_data import no_better_than_majority
from tests.e2e.conftest import Project, Semievol, write_rows


def helps(command: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every help text of every command that speaks of a key in brackets."""
    for name, sub in command.commands.items():
        if isinstance(sub, TyperGroup):
            yield from helps(sub, (*path, name))
        for parameter in sub.params:
            assert isinstance(parameter, TyperOption | TyperArgument)
            text = parameter.help or ""
            yield from (((*path, name), key) for key in re.findall(r"\[[a-zA-Z_.]+\]", text))


def test_no_help_text_loses_a_key_in_brackets(semievol: Semievol) -> None:
    group = get_command(build_app())
    assert isinstance(group, TyperGroup)
    found = list(helps(group))
    assert ("report",) in [path for path, _ in found], "the test looks at what it means to"
    for path, key in found:
        shown = semievol(*path, "--help").out
        assert key in shown, f"{path}: {key} is lost"


def test_the_end_of_a_run_names_the_trained_models_and_the_next_command(project: Project, semievol: Semievol) -> None:
    shown = semievol("run", project.config)
    assert shown.code == 0, shown.err
    trained = json.loads(semievol("run", project.config, "--json").out)["trained"]
    assert set(trained) == {"warm", "semievol", "ceiling"}
    for name, model in trained.items():
        assert f"Trained ({name}): {model}" in shown.out
    assert f"semievol report {project.folder / 'out'}" in shown.out
    assert "Beware" not in shown.out, "these models do beat the most frequent answer"
    assert "Paid so far" not in shown.out, "nothing here has a price"
    for command in (("jobs", project.config), ("jobs", project.folder)):
        listed = semievol(*command).out
        assert all(model in listed for model in trained.values()), "a name that is cut off is none"


def test_what_was_paid_stands_at_the_end_where_there_are_prices(project: Project, semievol: Semievol) -> None:
    prices = "input_usd = 9\noutput_usd = 9\ntraining_usd = 9"
    entry = f'[[models]]\nvendor = ""\nmodel = "*"\nchecked = 2026-11-01\n{prices}'
    (project.folder / "own.toml").write_text(entry)
    project.change(("[train]", '[catalogue]\nfile = "own.toml"\n\n[train]'))
    shown = semievol("run", project.config)
    assert re.search(r"Paid so far: \d+\.\d\d USD for requests, an unknown price for trainings\.", shown.out), shown.out


def test_a_model_that_only_knows_the_most_frequent_answer_is_warned_of(project: Project, semievol: Semievol) -> None:
    with (project.folder / "test.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for row in rows[1:]:
        row[3] = "A"
    with (project.folder / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    shown = " ".join(semievol("run", project.config).out.split())
    assert "Beware: SFT is not shown to be better than always giving the most frequent answer" in shown
    page = semievol("report", project.folder / "out", "--out", project.folder / "r.html")
    assert page.code == 0
    assert no_better_than_majority("SFT", 1, 2).split("(")[0] in (project.folder / "r.html").read_text("utf-8")


def test_the_report_does_not_call_promoted_what_nothing_was_held_out_for(project: Project, semievol: Semievol) -> None:
    write_rows(project.folder / "labeled.csv", 120, start=1000)
    project.change(('mode = "paper"', 'mode = "calibrated"'), ("[train]", "[select]\nalpha = 0.4\n\n[train]"))
    semievol("run", project.config)
    semievol("report", project.folder / "out", "--out", project.folder / "r.html")
    page = (project.folder / "r.html").read_text("utf-8")
    assert "Not tested" in page and "no labels were held out for it" in page and "Promoted" not in page


def test_new_rows_need_no_id(done: Project, semievol: Semievol) -> None:
    write_rows(done.folder / "new.csv", 10, start=5000, gold=False)
    text = (done.folder / "new.csv").read_text().splitlines()
    (done.folder / "bare.csv").write_text("\n".join(line.split(",", 1)[1] for line in text) + "\n")
    assert semievol("predict", "semievol", done.folder / "new.csv", "--run", done.config).code == 0
    shown = semievol("predict", "semievol", done.folder / "bare.csv", "--run", done.config)
    assert shown.code == 0, shown.err
    with_ids, bare = (
        [r["prediction"] for r in csv.DictReader((done.folder / f"{name}.predicted.csv").read_text().splitlines())]
        for name in ("new", "bare")
    )
    assert with_ids == bare


def test_no_accepted_row_is_explained_instead_of_promised(done: Project, semievol: Semievol) -> None:
    write_rows(done.folder / "new.csv", 10, start=5000)
    shown = semievol("predict", "base", done.folder / "new.csv", "--run", done.config, "--alpha", "0.001")
    assert "Accepted: 0 of 10. Of the 240 held-out answers" in shown.out and "an --alpha of at least 0.5%" in shown.out
    assert "are expected" not in shown.out


def test_sft_is_a_name_of_the_warm_model_that_was_trained_on_all_labels(done: Project, semievol: Semievol) -> None:
    folder = done.folder / "out"
    shown = semievol("evaluate", f"{folder}:semievol", f"{folder}:sft")
    assert shown.code == 0 and "out:warm" in shown.out
    write_rows(done.folder / "new.csv", 10, start=5000)
    predicted = semievol("predict", "sft", done.folder / "new.csv", "--run", done.config)
    assert predicted.code == 0 and "labelled by 'warm'" in predicted.out


def test_a_plan_says_nothing_twice_and_shows_no_empty_bill(project: Project, semievol: Semievol) -> None:
    project.change(('kind = "scripted"\nstate = "server"', 'kind = "openai"\napi_key_env = "A_KEY_THAT_IS_NOT_SET"'))
    tiny, mini = 'model = "tiny"', 'model = "gpt-4o-mini-2024-07-18"'
    project.change((f'student = {{ provider = "mine", {tiny}', f'student = {{ provider = "mine", {mini}'))
    notices = json.loads(semievol("plan", project.config, "--json", "--on", "2027-01-07").out)["notices"]
    assert sum("accepted no new fine-tuning job" in notice for notice in notices) == 1
    (project.folder / "out").mkdir()
    semievol("run", project.config)
    assert "Billed so far" not in semievol("plan", project.config).out


def test_a_journal_is_found_in_its_runs_folder(done: Project, semievol: Semievol) -> None:
    by_folder, by_file = (semievol("journal", "count", done.folder / name) for name in ("out", "out/journal.sqlite"))
    assert by_folder.code == 0 and by_folder.out == by_file.out != ""


def test_check_tells_what_the_run_will_leave_out(project: Project, semievol: Semievol) -> None:
    clean = json.loads(semievol("check", project.config, "--json").out)
    assert clean["ok"] and clean["notices"] == []
    lines = (project.folder / "test.csv").read_text().splitlines()[1:6]
    with (project.folder / "labeled.csv").open("a") as file:
        file.write("\n".join(f"again-{line}" for line in lines) + "\n")
    shown = semievol("check", project.config)
    assert shown.code == 0
    assert "5 of the labeled rows have the question of a test row, and will be left out" in shown.out


def test_check_warns_of_labels_that_nothing_teaches(project: Project, semievol: Semievol) -> None:
    (project.folder / "task.toml").write_text(
        'name = "t"\nkind = "labels"\ninstruction = "Mood?"\nlabels = ["good", "bad", "odd"]\n'
    )
    (project.folder / "labeled.csv").write_text(
        "question,answer\n" + "".join(f"text number {i} here,good\n" for i in range(20))
    )
    project.change(('test = "test.csv"\n', ""))
    said = " ".join(semievol("check", project.config).out.split())
    assert "All labelled rows have the same answer, 'good'" in said
    assert "2 of the 3 labels have no labelled row: 'bad', 'odd'." in said


def test_a_preview_says_whose_demonstrations_it_shows(project: Project, semievol: Semievol) -> None:
    assert "the first labelled rows" in semievol("preview", project.config).out


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_asked(done: Project, semievol: Semievol) -> None:
    data = done.folder / "new.csv"
    write_rows(data, 5, start=7000)
    before, rows = semievol("journal", "count", done.folder / "out").out, data.read_bytes()
    for place, words in ((done.folder / "nowhere" / "x.csv", "no folder"), (data, "the data file itself")):
        shown = semievol("predict", "semievol", data, "--run", done.config, "--out", place)
        assert shown.code == 2 and words in shown.err
    assert semievol("journal", "count", done.folder / "out").out == before and data.read_bytes() == rows
    missing = semievol("predict", "semievol", done.folder / "nothing.csv", "--run", done.config)
    assert missing.code == 2 and "There is no data file" in missing.err
