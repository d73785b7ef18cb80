"""Deadlines: one timer for all waits, and a timeout that is told from any other cancellation."""

from __future__ import annotations

import asyncio
import time

import pytest

from semievol_api.cassettes.http import Deadlines


async def wait(deadlines: Deadlines, timeout_s: float, wait_s: float) -> str:
    deadline = deadlines.begin(timeout_s)
    try:
        await asyncio.sleep(wait_s)
    except asyncio.CancelledError:
        if not deadlines.passed(deadline):
            raise
        return "late"
    finally:
        deadlines.end(deadline)
    return "in time"


async def test_whoever_takes_too_long_is_told_and_nobody_else() -> None:
    deadlines = Deadlines()
    began_s = time.perf_counter()
    waits = [wait(deadlines, 0.2, 0.01), wait(deadlines, 0.2, 30), wait(deadlines, 60, 0.4), wait(deadlines, 0.3, 30)]
    assert await asyncio.gather(*waits) == ["in time", "late", "in time", "late"]
    assert time.perf_counter() - began_s < 5


async def test_a_task_goes_on_after_its_deadline_has_passed() -> None:
    deadlines = Deadlines()
    assert await wait(deadlines, 0.05, 30) == "late"
    assert await wait(deadlines, 30, 0.01) == "in time"
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_another_cancellation_stays_one() -> None:
    deadlines = Deadlines()
    task = asyncio.ensure_future(wait(deadlines, 60, 30))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_after_closing_nobody_is_cancelled() -> None:
    deadlines = Deadlines()
    task = asyncio.ensure_future(wait(deadlines, 0.05, 0.3))
    await asyncio.sleep(0.01)
    deadlines.close()
    assert await task == "in time"
