"""Who walks the parts of a run's stages, as its config says. Ray is imported only where it says so.

Knows nothing of what is done on either side.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from semievol_api.config import Config
from semievol_api.engine import RequestEngine
from semievol_api.stages.spread import Here, Spread


@contextmanager
def open_spread(config: Config, engine: RequestEngine) -> Generator[Spread]:
    """This process, or the cluster of `[ray]` until the block ends.

    Raises:
        MissingExtraError: the config wants Ray, and it is not installed.
        ConfigError: the config wants Ray and something that only one process can do.
    """
    if config.run.engine == "local":
        yield Here()
        return
    from semievol_api.scale.ray_spread import Connection, RaySpread, refuse_what_is_local

    refuse_what_is_local(config)
    connection = Connection(config)
    try:
        yield RaySpread(config, engine)
    finally:
        connection.close()
