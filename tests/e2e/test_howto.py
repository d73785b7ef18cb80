"""The pages of docs/howto are followed: their code is taken from the page as it stands and used in a run."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Project, Semievol

HOWTO = Path(__file__).resolve().parents[2] / "docs" / "howto"


def blocks(page: str, language: str) -> list[str]:
    """The page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (HOWTO / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_a_provider_made_by_the_page_annotates_in_a_run(
    project: Project, tmp_path: Path, semievol: Semievol, monkeypatch: pytest.MonkeyPatch
) -> None:
    (module,) = blocks("provider.md", "python")
    entry_point, config = blocks("provider.md", "toml")
    package = tmp_path / "package"
    (package / "overlap-1.dist-info").mkdir(parents=True)
    (package / "overlap.py").write_text(module)
    (package / "overlap-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: overlap\nVersion: 1\n")
    group, _, line = entry_point.strip().partition("\n")
    assert group == '[project.entry-points."semievol.providers"]'
    (package / "overlap-1.dist-info" / "entry_points.txt").write_text(
        f"[semievol.providers]\n{line.replace(chr(34), '')}\n"
    )
    monkeypatch.syspath_prepend(str(package))
    project.change(('mode = "paper"', 'mode = "calibrated"'))
    project.config.write_text(f'{project.config.read_text()}\n[[annotators]]\nid = "warm"\nmodel = "warm"\n\n{config}')
    done = semievol("run", project.config, "--yes")
    assert done.code == 0, done.err
    rows = pq.read_table(project.folder / "out" / "collaborate" / "evidence.parquet").to_pylist()
    answers = {row["example_id"]: row["answer"] for row in rows if row["annotator_id"] == "words"}
    right = {f"q{i}": "ABCD"[i * 7 % 4] for i in range(40, 100)}
    assert {name: answers[name] for name in right} == right
    project.change(('kind = "overlap"', 'kind = "overlap"\nspeed = 3'))
    refused = semievol("check", project.config)
    assert refused.code == 2
    assert "[providers.words]: overlap has no settings but kind." in refused.err
