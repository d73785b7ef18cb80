"""A job's own record in its folder: the job object and whose it is, so that a lost database can be rebuilt.

Written at the creation of a job and at each change of its status. Knows nothing of the database or of training.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from semievol_api.records import JsonValue

NAME = "record.json"
_FORMAT = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The job object as it was last written, and the hash that names its owner.

    `is_rebuilt` where it was put together from other files.
    """

    record: dict[str, JsonValue]
    owner: str
    is_rebuilt: bool = False


def write_job_record(folder: Path, record: dict[str, JsonValue], owner: str) -> None:
    """Write it whole or not at all. A job does not fail for want of it: the database is what counts."""
    partial = folder / f"{NAME}.partial"
    try:
        partial.write_text(json.dumps({"format": _FORMAT, "owner": owner, "record": record}), encoding="utf-8")
        partial.replace(folder / NAME)
    except OSError as error:
        _log.warning("the record of %s could not be kept in its folder: %s", record["id"], error)


def read_job_record(folder: Path) -> JobRecord | None:
    """What was written; None where an older server wrote nothing, or what is there cannot be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if int(found["format"]) != _FORMAT or found["record"]["id"] != folder.name:
            return None
        return JobRecord(dict(found["record"]), str(found["owner"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
