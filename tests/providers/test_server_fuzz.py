"""Made-up requests and broken training files: refused in the API's shape, never an accident."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from server_fuzz import broken_files, operations, real_ids, send_some
from server_running import RunningServer

from semievol_api.training.chat_jsonl import TrainingFileError, read_examples

pytest_plugins = ("server_fixtures",)
FILES = 2000


@pytest.mark.filterwarnings("ignore")
def test_made_up_requests_of_every_operation_get_answers_that_conform(server: RunningServer) -> None:
    pytest.importorskip("schemathesis")  # python -m benchmarks.serve_fuzz sends 5,000
    ids = real_ids(server.url)
    found: list[Any] = operations()
    assert len(found) >= 24
    for operation in found:
        statuses = send_some(server.url, operation, 6, seed=1, ids=ids)
        assert statuses, operation.label


def test_broken_training_files_are_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    named = 0
    for data, at in broken_files(FILES, seed=0):
        path.write_bytes(data)
        try:
            good = list(read_examples(path, at_least=10))
        except TrainingFileError as error:
            line = re.match(r"Line (\d+)\b", str(error))
            assert line is not None and int(line.group(1)) == at, (str(error), at)
            named += 1
        else:
            raise AssertionError(f"line {at} passed: {data.splitlines()[at - 1]!r}, {len(good)} examples")
    assert named == FILES
