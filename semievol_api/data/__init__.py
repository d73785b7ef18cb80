"""Reading, checking and splitting the user's data.

    loaded = read_data(config.data, task)
    data = clean(loaded.labeled, loaded.unlabeled, loaded.test, near=config.data.near_duplicates)

Knows nothing of models, prompts or the method.
"""

from semievol_api.data.examples import Note as Note
from semievol_api.data.examples import Reading as Reading
from semievol_api.data.examples import content_id as content_id
from semievol_api.data.examples import read_examples as read_examples
from semievol_api.data.hygiene import CleanData as CleanData
from semievol_api.data.hygiene import Dropped as Dropped
from semievol_api.data.hygiene import HygieneReport as HygieneReport
from semievol_api.data.hygiene import SharedQuestion as SharedQuestion
from semievol_api.data.hygiene import clean as clean
from semievol_api.data.read_files import Table as Table
from semievol_api.data.read_files import read_table as read_table
from semievol_api.data.sources import RawData as RawData
from semievol_api.data.sources import read_data as read_data
from semievol_api.data.sources import read_source as read_source
from semievol_api.data.sources import read_task_data as read_task_data
from semievol_api.data.splits import split as split
from semievol_api.data.splits import subsample as subsample
from semievol_api.data.starter import Starter as Starter
from semievol_api.data.starter import render_config as render_config
from semievol_api.data.starter import render_task as render_task
from semievol_api.data.starter import start as start
from semievol_api.data.table import ChunkedTable as ChunkedTable
from semievol_api.data.understanding import Understanding as Understanding
from semievol_api.data.understanding import understand as understand

__all__ = [
    "ChunkedTable",
    "CleanData",
    "Dropped",
    "HygieneReport",
    "Note",
    "RawData",
    "Reading",
    "SharedQuestion",
    "Starter",
    "Table",
    "Understanding",
    "clean",
    "content_id",
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
