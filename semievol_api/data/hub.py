"""Rows of a Hugging Face dataset: a folder written by `save_to_disk`, or a dataset of the hub.

    hf:owner/name@revision:split          hf:owner/name/config@revision:train+test

The `datasets` library is imported only when it is needed. Knows nothing of tasks or of local text files.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semievol_api.data.table import Row, Table
from semievol_api.errors import DataError
from semievol_api.tasks.definition import Archive, Hub

_ADDRESS = re.compile(
    r"(?:^|/)hf:(?P<dataset>[^/@:]+/[^/@:]+)(?:/(?P<config>[^@:]+))?(?:@(?P<revision>[^:]+))?(?::(?P<split>.+))?$"
)


@dataclass(frozen=True)
class HubAddress:
    """Where a dataset of the hub lies."""

    dataset: str
    config: str | None
    revision: str | None
    split: str | None


def hub_address(source: str) -> HubAddress | None:
    """The address in a source such as `hf:owner/name@revision:split`; None for any other source.

    Raises:
        DataError: the source begins like an address and is none.
    """
    if not re.search(r"(?:^|/)hf:", source):
        return None
    found = _ADDRESS.search(source)
    if found is None:
        raise DataError(f"{source!r} is no hub address. Write it as hf:owner/name@revision:split.")
    return HubAddress(found["dataset"], found["config"], found["revision"], found["split"])


def read_folder(path: Path, split: str | None) -> Table:
    """The rows of a folder written by `Dataset.save_to_disk` or, with a split, `DatasetDict.save_to_disk`."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"The folder {str(path)!r} cannot be read as data: it holds no dataset that save_to_disk wrote "
            f"({_first_line(error)}). Name a file, or such a folder."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        names = [str(name) for name in loaded]
        if split not in names:
            raise DataError(
                f"The dataset in {str(path)!r} has the splits {', '.join(names)}. "
                f"Name one of them, as in '{path}:{names[0]}'."
            )
        loaded = loaded[split]
    return _table(path.name, loaded)


def read_address(address: HubAddress) -> Table:
    """The rows of a dataset of the hub; downloads it where the local cache lacks it."""
    import datasets
    from datasets.exceptions import DatasetsError

    if address.split is None:
        raise DataError(f"The hub address of {address.dataset!r} names no split. Add one, such as ':train'.")
    try:
        loaded = datasets.load_dataset(address.dataset, address.config, revision=address.revision, split=address.split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"The dataset {address.dataset!r} cannot be loaded from the hub ({_first_line(error)}). "
            "Check its name, config, revision and split, and the network."
        ) from None
    return _table(f"hf:{address.dataset}:{address.split}", loaded)


def read_task_dataset(hub: Hub) -> Table:
    """The whole public dataset of a task: its splits one after the other."""
    if hub.archive is not None:
        return _read_archive(hub, hub.archive)
    return read_address(HubAddress(hub.dataset, hub.config, hub.revision, "+".join(hub.splits)))


def archive_rows(data: bytes, archive: Archive) -> tuple[Row, ...]:
    """The rows of a text file inside a zip archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        text = opened.read(archive.member).decode(archive.encoding)
    splits = len(archive.names) - 1
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    return tuple(dict(zip(archive.names, line.rsplit(archive.separator, splits), strict=True)) for line in lines)


def _read_archive(hub: Hub, archive: Archive) -> Table:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(hub.dataset, archive.path, repo_type="dataset", revision=hub.revision)
        rows = archive_rows(Path(path).read_bytes(), archive)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"The archive {archive.path!r} of the dataset {hub.dataset!r} cannot be read ({_first_line(error)}). "
            "Check the network and the task's [hub] section."
        ) from None
    return Table(f"hf:{hub.dataset}", "row", archive.names, rows, tuple(range(1, len(rows) + 1)))


def _table(source: str, dataset: Any) -> Table:
    """A dataset's rows; class numbers become their names."""
    import datasets

    names: dict[str, Any] = {
        column: feature.int2str
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    rows = tuple(_named(row, names) for row in dataset)
    if not rows:
        raise DataError(f"The dataset {source!r} is empty: it holds no row of data.")
    return Table(source, "row", tuple(dataset.column_names), rows, tuple(range(1, len(rows) + 1)))


def _named(row: Mapping[str, object], names: Mapping[str, Any]) -> Row:
    """-1 is how the library writes an unknown class."""
    return {
        column: (None if value in (None, -1) else names[column](value)) if column in names else value
        for column, value in row.items()
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
