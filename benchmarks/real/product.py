"""Our own arms: the product's experiments over `semievol serve` with SmolLM2, nothing re-implemented.

Every arm is an arm of one experiment file per split, written here; arms share answers and trainings as `semievol
experiment` shares them, and a killed one goes on. Knows nothing of other methods.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real.method import Measured, Place
from benchmarks.real.splits import NotYet, Split
from semievol_api.config.settings import load_config
from semievol_api.demo.embedded_server import serving
from semievol_api.errors import ConfigError
from semievol_api.experiments.grid import Experiment, cells
from semievol_api.experiments.recipes import RESULT_OF
from semievol_api.experiments.runner import ExperimentContext, run_experiment
from semievol_api.store.artifacts import Answers
from semievol_api.store.run_store import load_artifact

STUDENT = "smollm2"
_AUTO: Mapping[str, dict[str, object]] = {"train": {"n_epochs": "auto", "final_epochs": "auto"}}
_SHORT: Mapping[str, dict[str, object]] = {
    "annotate": {"max_tokens": 24},
    "justify": {"max_tokens": 24},
    "evaluate": {"max_tokens": 24},
}
"""A label has at most 14 tokens; a model that does not keep the format is cut off there."""


@dataclass(frozen=True)
class ProductArm:
    """One arm; `arm` is its entry in an experiment file. `after` names arms whose trainings it takes its steps from."""

    name: str
    arm: Mapping[str, Any]
    minutes: float
    trains: bool = True
    needs_labels: bool = True
    after: tuple[str, ...] = ()

    @property
    def settings(self) -> Mapping[str, object]:
        """The student and what the arm changes; everything else is the product's default."""
        return {"student": STUDENT, **self.arm, "changes": {**_SHORT, **(_AUTO if self.trains else {})}}

    def measure(self, split: Split, seed: int, place: Place) -> Measured:
        """See `Method`."""
        config = _written(split, place.folder, self.trains)
        try:
            load_config(config)
        except ConfigError as error:
            raise NotYet(f"this version's configs do not take what the arm needs: {error}") from error
        names = (*self.after, self.name)
        arms = [{"name": name, **_ARMS[name].arm} for name in names]
        head = {"name": "real", "base": str(config), "folder": place.folder, "seeds": [seed], "baseline": names[0]}
        experiment = Experiment.model_validate({"experiment": head, "arms": arms})
        with serving(place.model, STUDENT, place.folder / "server") as url:
            changes = {"providers.server.base_url": url}
            done = asyncio.run(run_experiment(experiment, ExperimentContext(config, changes)))[-1]
        cell = cells(experiment)[-1]
        answers = _answers(place.folder / "runs" / cell.name, cell.arm.recipe)
        given = {row.example_id: row.answer for row in answers.evidence.rows()}
        row = done.row
        details = {
            "model": row.model,
            "kept": row.kept,
            "unlabeled": row.unlabeled,
            "false_share": row.false_share,
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "trained_tokens": row.trained_tokens,
        }
        return Measured([given.get(str(i)) for i in range(len(split.measured))], details, row.cpu_seconds)


def _answers(folder: Path, recipe: Any) -> Answers:
    for name in RESULT_OF[recipe]:
        found = load_artifact(folder, f"evaluate/{name}", Answers)
        if found is not None:
            return found
    raise NotYet("the run measured nothing")


def _written(split: Split, folder: Path, trains: bool) -> Path:
    """The config, the task and the data of a split, as a user's own files; ids are the rows' places."""
    folder.mkdir(parents=True, exist_ok=True)
    task = {"name": split.task.name, "kind": "labels", "instruction": split.task.instruction}
    lines = [f"{key} = {json.dumps(value)}" for key, value in (*task.items(), ("labels", list(split.labels)))]
    columns = '[columns]\nquestion = "text"\nanswer = "label"\nid = "id"\n'
    (folder / "task.toml").write_text("\n".join([*lines, "", columns]), "utf-8")
    for name, rows in (("labeled", split.labeled), ("unlabeled", split.unlabeled), ("test", split.measured)):
        prefix = "" if name == "test" else f"{name}-"
        texts = [json.dumps({"id": f"{prefix}{i}", "text": r.text, "label": r.label}) for i, r in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    sections: dict[str, dict[str, object]] = {
        "run": {"folder": "run"},
        "data": {"task": "task.toml", **{name: f"{name}.jsonl" for name in ("labeled", "unlabeled", "test")}},
        "providers.server": {
            "kind": "openai",
            "vendor": "semievol",
            "base_url": "http://127.0.0.1:8000/v1",
            "api_key_env": "",
            "identity": STUDENT,
        },
        "roles.student": {"provider": "server", "model": STUDENT},
        **_SHORT,
        **(_AUTO if trains else {}),
    }
    config = folder / ("training.toml" if trains else "asking.toml")
    parts = [
        f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items()) for name, keys in sections.items()
    ]
    config.write_text("\n".join(parts), "utf-8")
    return config


PRODUCT = (
    ProductArm("zero-shot", {"recipe": "prompt-read"}, 4.0, trains=False, needs_labels=False),
    ProductArm(
        "in-context, 3 nearest",
        {"recipe": "prompt-only", "overrides": {"run": {"mode": "paper"}, "evaluate": {"shots": 3}}},
        10.0,
        trains=False,
    ),
    ProductArm("SFT", {"recipe": "fine-tune"}, 15.0),
    ProductArm("SemiEvol, paper", {"overrides": {"run": {"mode": "paper"}}}, 60.0),
    ProductArm(
        "SFT, equal steps",
        {"recipe": "fine-tune", "steps_of": "SemiEvol, paper"},
        25.0,
        after=("SemiEvol, paper",),
    ),
    ProductArm("SemiEvol, default", {}, 60.0),
    ProductArm("ceiling (gold for the whole pool)", {"recipe": "gold"}, 40.0),
)
_ARMS: Mapping[str, ProductArm] = {arm.name: arm for arm in PRODUCT}
