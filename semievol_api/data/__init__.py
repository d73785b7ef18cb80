"""Reading, checking and splitting the user's data.

    loaded = read_data(config.data, task)
    data = clean(loaded.labeled, loaded.unlabeled, loaded.test, near=config.data.near_duplicates)

Knows nothing of models, prompts or the method.
"""

from semievol_api.data.examples import Note, Reading, content_id, read_examples
from semievol_api.data.hygiene import CleanData, Dropped, HygieneReport, SharedQuestion, clean, exact_key
from semievol_api.data.load import RawData, read_data, read_source, read_task_data
from semievol_api.data.splits import split, subsample
from semievol_api.data.table import Table, read_table

__all__ = [
    "CleanData",
    "Dropped",
    "HygieneReport",
    "Note",
    "RawData",
    "Reading",
    "SharedQuestion",
    "Table",
    "clean",
    "content_id",
    "exact_key",
    "read_data",
    "read_examples",
    "read_source",
    "read_table",
    "read_task_data",
    "split",
    "subsample",
]
