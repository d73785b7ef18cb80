"""What a command line and a config need to know of cassettes, without loading what sends and stores.

Knows nothing of how an exchange is found; `cassette.py` does it.
"""

from typing import Literal, TypeAlias

CassetteMode: TypeAlias = Literal["replay", "record", "record-missing", "off"]


class CassetteMiss(BaseException):
    """A request that was never recorded. No `except Exception` can turn it into a failed row."""


MODE_VARIABLE = "SEMIEVOL_CASSETTE_MODE"
"""The environment variable that says what `cassette` does where its caller does not; pytest's option sets it."""
