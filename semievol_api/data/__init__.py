"""Reading, checking and splitting the user's data.

    loaded = read_data(config.data, task)
    data = clean(loaded.labeled, loaded.unlabeled, loaded.test, near=config.data.near_duplicates)

Knows nothing of models, prompts or the method.
"""

from semievol_api.data.examples import Note, Reading, content_id, read_examples
from semievol_api.data.hygiene import CleanData, Dropped, HygieneReport, SharedQuestion, clean, exact_key
from semievol_api.data.load import RawData, read_data, read_source, read_task_data
from semievol_api.data.pool import Pool
from semievol_api.data.splits import split, subsample
from semievol_api.data.starter import Starter, render_config, render_task, start
from semievol_api.data.suspects import clean_pool
from semievol_api.data.table import Table, read_table
from semievol_api.data.understand import Understanding, understand

__all__ = [
    "CleanData",
    "Dropped",
    "HygieneReport",
    "Note",
    "Pool",
    "RawData",
    "Reading",
    "SharedQuestion",
    "Starter",
    "Table",
    "Understanding",
    "clean",
    "clean_pool",
    "content_id",
    "exact_key",
    "read_data",
    "read_examples",
    "read_source",
    "read_table",
    "read_task_data",
    "render_config",
    "render_task",
    "split",
    "start",
    "subsample",
    "understand",
]
