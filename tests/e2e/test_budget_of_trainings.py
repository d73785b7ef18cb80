"""`[limits] max_usd` over a whole run: models need prices before anything is bought, and trainings count."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import Project, Semievol

PRICES = """
[[models]]
vendor = ""
model = "*"
checked = 2026-11-01
input_usd = 0.0
output_usd = 0.0
{training}
"""


def _priced(project: Project, training: str, cap: str) -> None:
    (project.folder / "own.toml").write_text(PRICES.format(training=training), "utf-8")
    project.change(("[train]", f'[catalogue]\nfile = "own.toml"\n\n[limits]\nmax_usd = {cap}\n\n[train]'))


def _jobs(project: Project) -> int:
    path = project.folder / "server" / "jobs.json"
    return len(json.loads(path.read_text("utf-8"))) if path.is_file() else 0


def test_a_cap_in_usd_without_prices_is_refused_before_a_training_is_bought(
    project: Project, semievol: Semievol
) -> None:
    project.change(("[train]", "[limits]\nmax_usd = 1.0\n\n[train]"))
    for command in ("check", "run"):
        done = semievol(command, project.config)
        assert done.code == 2, done.out
        assert "no price is known for tiny, tiny (training)" in done.err and "[catalogue] file" in done.err
    assert _jobs(project) == 0


def test_a_training_without_a_price_is_named_as_such(project: Project, semievol: Semievol) -> None:
    _priced(project, "", "1.0")
    done = semievol("check", project.config)
    assert done.code == 2 and "no price is known for tiny (training)" in done.err


def test_trainings_count_into_the_cap_and_a_higher_cap_goes_on(
    project: Project, semievol: Semievol, capsys: pytest.CaptureFixture[str]
) -> None:
    _priced(project, "training_usd = 100.0", "0.6")  # warm_up alone is about 0.4 USD, the final one more
    done = semievol("run", project.config, "--yes")
    assert done.code == 1, done.out
    assert "does not hold the next training" in done.err and "of max_usd = 0.6 USD spent" in done.err
    assert _jobs(project) == 1, "the first one fits, the second does not"
    again = semievol("run", project.config, "--yes")
    assert again.code == 1 and _jobs(project) == 1, "what was paid is known to the next process"
    project.change(("max_usd = 0.6", "max_usd = 50.0"))
    assert semievol("run", project.config, "--yes").code == 0


def test_a_tuned_model_whose_name_tells_no_base_has_the_tuned_price_of_its_base(
    project: Project, semievol: Semievol
) -> None:
    _priced(project, "training_usd = 1.0\ntuned = { input_usd = 2.0, output_usd = 2.0 }", "50.0")
    own = project.folder / "own.toml"
    own.write_text(own.read_text("utf-8").replace('model = "*"', 'model = "tiny"'), "utf-8")
    shown = semievol("run", project.config, "--yes")
    assert shown.code == 0, shown.err
    lines = [line.split() for line in semievol("journal", "spend", project.folder / "out").out.splitlines()]
    asked = {line[1]: float(line[-1]) for line in lines if line[0] == "evaluate"}
    tuned = [usd for model, usd in asked.items() if model.startswith("ft:")]
    assert tuned and all(usd > 0 for usd in tuned)
    assert asked["tiny"] == 0
