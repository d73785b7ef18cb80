"""What a command line and a config need to know of cassettes, without loading what sends and stores.

Knows nothing of how an exchange is found; `cassette.py` does it.
"""

from typing import Literal, TypeAlias

CassetteMode: TypeAlias = Literal["replay", "record", "record-missing", "off"]


class CassetteMiss(BaseException):
    """A request that was never recorded. No `except Exception` can turn it into a failed row."""
