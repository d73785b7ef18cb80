"""Every contract test runs once for each provider of the table in subjects.py."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.subjects import SUBJECTS, Subject


@pytest.fixture(params=sorted(SUBJECTS))
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """A live provider with the names of its models."""
    async with SUBJECTS[request.param]() as opened:
        yield opened
