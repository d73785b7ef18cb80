"""Run folders that an older version left behind: how they were made, and how a test takes one up again.

    python -m tests.pinned_runs a87899e        # run at that commit; writes tests/data/runs/*.tar.xz

`finished-*` are whole runs on the scripted provider, one for each way through the pipeline. `killed-*` are runs on a
loopback server, ended by `os._exit` the moment a stage was made, or in the middle of one; `server.json` holds what the
server knew then. Paths are kept as `{PLACE}`. The archives in the repository were made by commit a87899e and are never
made anew: that they are old is what they are for. Knows nothing of the stages' insides.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from semievol_api import run
from tests.e2e.conftest import CONFIG, TASK, write_rows
from tests.e2e.threaded import serving
from tests.providers.openai_loopback import LoopbackServer

RUNS = Path(__file__).resolve().parent / "data/runs"
PLACE = "{PLACE}"
KEY = "config_key.json"
UNNAMED = CONFIG.replace('mode = "paper"\n', "").replace('state = "server"\n', "")
PAPER = CONFIG.replace('state = "server"\n', "")
CALIBRATED = (
    UNNAMED.replace('test = "test.csv"', 'test = "test.csv"\ndev = "dev.csv"') + "\n[split]\ncalibration = 25\n"
)
REVIEWED = 'near_duplicates = false\nreviewed = "reviewed.jsonl"'
LISTED = "".join(
    f'\n[[annotators]]\nid = "{estimator}"\nmodel = "{model}"\nestimator = "{estimator}"\nshots = {shots}\nn = {n}\n'
    for estimator, model, shots, n in (
        ("option_prob", "warm", 0, 1),
        ("auto", "base", 2, 1),
        ("p_true", "warm", 1, 1),
        ("verbal", "base", 0, 1),
        ("votes", "warm", 0, 3),
    )
)
NEIGHBOURS = '\n[[annotators]]\nid = "near"\nmodel = "neighbour_vote"\nneighbours = 4\nsharpness = 5.0\n'
GUEST = '\n[[annotators]]\nid = "guest"\nmodel = { provider = "other", model = "big" }\npermute = true\n'
OTHER = '\n[providers.other]\nkind = "scripted"\nidentity = "elsewhere"\nskill = 0.7\n'

FINISHED: Mapping[str, str] = {
    "paper": PAPER,
    "paper-in-weight": PAPER.replace("ceiling = true", 'ceiling = false\nseed = 7\npropagation = "in-weight"'),
    "in-context": PAPER.replace("ceiling = true", 'propagation = "in-context"')
    + '\n[evolve]\nkind = "in-context"\nshots = 2\n[retrieve]\ntext = "question+options"\n',
    "official-2025": CONFIG.replace('"paper"', '"official-2025"').replace('state = "server"\n', ""),
    "calibrated": CALIBRATED,
    "bm25": CALIBRATED.replace('embedder = { provider = "mine", model = "tiny" }\n', "")
    + '\n[retrieve]\nmethod = "bm25"\n',
    "rounds": CALIBRATED.replace("ceiling = true", "rounds = 2") + '\n[select]\nrule = "top-n"\nn = 25\n',
    "reviewed": CALIBRATED.replace("near_duplicates = false", REVIEWED),
    "human-budget": CALIBRATED.replace("near_duplicates = false", REVIEWED)
    + '\n[select]\nrule = "human-budget"\nbudget = 20\n',
    "listed": CALIBRATED + OTHER + LISTED + NEIGHBOURS + GUEST,
    "training": PAPER.replace("[train]", "[train]\nn_epochs = 3\nfinal_epochs = 4\nbatch_size = 8\n")
    + 'learning_rate_multiplier = 2\nfinal_learning_rate_multiplier = 0.5\nstart = "warm"\n',
}
"""Configs of the finished runs, by name."""

AT_SERVER = CONFIG.replace(
    'kind = "scripted"\nstate = "server"\n',
    'kind = "openai"\nbase_url = "{BASE_URL}"\napi_key_env = ""\nidentity = "https://pinned/v1"\n',
).replace("ceiling = true", "ceiling = false\n")
AT_SERVER = AT_SERVER.replace("near_duplicates = false", "near_duplicates = false\nmax_unlabeled = 24\nmax_test = 8")
KILLED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "paper": (
        AT_SERVER.replace("[train]", "[annotate]\nn = 2\n\n[train]"),
        (
            "jobs/warm_up-ticket",
            "jobs/warm_up-model",
            "retrieve",
            "collaborate+9",
            "collaborate",
            "justify+5",
            "justify",
            "evolve",
            "jobs/semievol-ticket",
            "jobs/semievol-model",
            "evaluate/warm",
        ),
    ),
    "calibrated": (
        AT_SERVER.replace('mode = "paper"\n', "") + '\n[split]\ncalibration = 25\n[select]\nrule = "top-n"\nn = 12\n',
        ("probe", "collaborate+9", "collaborate", "select", "jobs/sft-model", "evaluate/sft"),
    ),
}
"""The config of each killed run, and where it was killed: when a stage was made, or after so many rows of it."""


def write_project(folder: Path, config: str) -> Path:
    """A user's folder: 60 labelled, 50 unlabelled, 20 test and 30 gate questions, and six reviewed ones."""
    write_rows(folder / "labeled.csv", 60)
    write_rows(folder / "unlabeled.csv", 50, start=1000)
    write_rows(folder / "test.csv", 20, start=2000)
    write_rows(folder / "dev.csv", 30, start=3000)
    reviewed = [json.dumps({"id": f"q{1000 + i}", "answer": "ABCD"[i % 4]}) + "\n" for i in range(6)]
    (folder / "reviewed.jsonl").write_text("".join(reviewed), "utf-8")
    (folder / "task.toml").write_text(TASK, "utf-8")
    (folder / "semievol.toml").write_text(config, "utf-8")
    return folder / "semievol.toml"


def keep(project: Path, name: str) -> None:
    """Put a project's run folder into an archive; paths lose their place."""
    RUNS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "project"
        shutil.copytree(project, copy, ignore=shutil.ignore_patterns("*.csv", "task.toml", "reviewed.jsonl", ".lock"))
        for path in (copy / "out" / KEY, copy / "semievol.toml"):
            path.write_text(path.read_text("utf-8").replace(str(project), PLACE), "utf-8")
        with tarfile.open(RUNS / f"{name}.tar.xz", "w:xz", preset=9) as archive:
            archive.add(copy, ".")


def take_up(name: str, place: Path, base_url: str = "") -> Path:
    """An archive in a place of its own, with the data beside it; returns the config."""
    with tarfile.open(RUNS / f"{name}.tar.xz") as archive:
        archive.extractall(place, filter="data")
    config = place / "semievol.toml"
    key = place / "out" / KEY
    key.write_text(key.read_text("utf-8").replace(PLACE, str(place)), "utf-8")
    return write_project(place, config.read_text("utf-8").replace("{BASE_URL}", base_url))


def known_to(server: LoopbackServer) -> dict[str, object]:
    """What a server has to remember."""
    contents = {name: base64.b64encode(content).decode() for name, content in server.contents.items()}
    return {"jobs": server.jobs, "files": server.files, "contents": contents}


def server_of(place: Path) -> LoopbackServer:
    """A server that remembers what the one knew that the killed run asked."""
    known = json.loads((place / "server.json").read_text("utf-8"))
    server = LoopbackServer(first_id=1000)
    server.jobs.update(known["jobs"])
    server.files.update(known["files"])
    server.contents.update({name: base64.b64decode(text) for name, text in known["contents"].items()})
    return server


def _make_finished(name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        config = write_project(Path(scratch).resolve(), FINISHED[name])
        run(config)
        for path in config.parent.glob("out/journal.sqlite*"):
            path.unlink()  # whatever is asked again is then asked of the provider, and counted
        keep(config.parent, f"finished-{name}")


def _make_killed(name: str) -> None:
    text, stops = KILLED[name]
    with tempfile.TemporaryDirectory() as scratch, serving(LoopbackServer()) as server:
        project = Path(scratch).resolve()
        config = write_project(project, text.replace("{BASE_URL}", server.base_url))
        for number, stop in enumerate(stops):
            child = subprocess.run([sys.executable, "-m", "tests.pinned_runs", "--child", str(config), stop])
            assert child.returncode == 9, f"{stop} was never reached"
            config.write_text(text, "utf-8")
            (project / "server.json").write_text(json.dumps(known_to(server)), "utf-8")
            keep(project, f"killed-{name}-{number:02d}-{stop.replace('/', '_')}")
            config.write_text(text.replace("{BASE_URL}", server.base_url), "utf-8")


def _run_until(config: Path, stop: str) -> None:
    from semievol_api.engine import Progress
    from semievol_api.session import NullWatcher
    from semievol_api.session import run as run_watched

    stage, _, rows = stop.partition("+")

    seen: list[str] = []

    class Killer(NullWatcher):
        def on_stage(self, name: str, state: str) -> None:
            if name == stop and state == "made":
                os._exit(9)

        def on_row(self, progress: Progress) -> None:
            seen.append(progress.stage)
            if rows and seen.count(stage) >= int(rows):
                os._exit(9)

    run_watched(config, watcher=Killer())


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        _run_until(Path(sys.argv[2]), sys.argv[3])
    else:
        root = Path(__file__).resolve().parent.parent
        at = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
        assert at.startswith(sys.argv[1]), f"this checkout is at {at.strip()}"
        for each in FINISHED:
            _make_finished(each)
        for each in KILLED:
            _make_killed(each)
