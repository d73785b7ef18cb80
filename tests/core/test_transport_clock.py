"""The injected clock."""

from __future__ import annotations

import asyncio
import time

from semievol_api.cassettes.clock import RealClock, VirtualClock


async def test_a_virtual_day_of_polling_takes_no_time() -> None:
    clock, start = VirtualClock(), time.perf_counter()
    for _ in range(24 * 60):
        await clock.sleep(60.0)
    assert clock.now_s() == 24 * 3600.0
    assert time.perf_counter() - start < 1.0


async def test_virtual_sleepers_wake_in_the_order_of_their_times() -> None:
    clock = VirtualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, wait_s: float) -> None:
        for _ in range(2):
            await clock.sleep(wait_s)
            woken.append((name, clock.now_s()))

    await asyncio.gather(sleeper("slow", 10.0), sleeper("quick", 4.0))
    assert woken == [("quick", 4.0), ("quick", 8.0), ("slow", 10.0), ("slow", 20.0)]


async def test_a_cancelled_virtual_sleeper_moves_no_time() -> None:
    clock = VirtualClock()
    cancelled = asyncio.create_task(clock.sleep(1000.0))
    other = asyncio.create_task(clock.sleep(1.0))
    cancelled_at_once = asyncio.gather(cancelled, other, return_exceptions=True)
    asyncio.get_running_loop().call_soon(cancelled.cancel)
    await cancelled_at_once
    await clock.sleep(5.0)
    assert clock.now_s() == 6.0


def test_a_virtual_clock_outlives_its_event_loop() -> None:
    clock = VirtualClock()

    loop = asyncio.new_event_loop()
    left_behind = loop.create_task(clock.sleep(50.0))
    loop.call_soon(loop.stop)
    loop.run_forever()
    left_behind.cancel()
    loop.close()
    asyncio.run(clock.sleep(2.0))
    assert clock.now_s() == 2.0


async def test_the_real_clock_waits() -> None:
    clock = RealClock()
    start = clock.now_s()
    await clock.sleep(0.02)
    await clock.sleep(-1.0)
    assert clock.now_s() - start >= 0.02
