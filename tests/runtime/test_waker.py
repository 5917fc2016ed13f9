"""One thread wakes another's event loop, and keeps what it holds."""

import asyncio
import os
import threading

from esper.runtime.waker import Waker


async def waked(waker: Waker, times: int) -> int:
    """How often the loop was woken by `times` wakes from another thread, one after the other."""
    seen, count = asyncio.Event(), 0

    def woken() -> None:
        nonlocal count
        count += 1
        seen.set()

    waker.listen(asyncio.get_running_loop(), woken)
    for _ in range(times):
        seen.clear()
        thread = threading.Thread(target=waker.wake)
        thread.start()
        await asyncio.wait_for(seen.wait(), 10.0)
        thread.join()
    return count


async def test_each_wake_is_felt():
    waker = Waker()
    assert await waked(waker, 20) == 20


async def test_many_wakes_before_the_loop_looks_are_one_and_none_blocks():
    waker, count = Waker(), []
    for _ in range(200_000):  # more than any pipe holds
        waker.wake()
    loop = asyncio.get_running_loop()
    waker.listen(loop, lambda: count.append(1))
    await asyncio.sleep(0.2)
    assert 1 <= len(count) < 1000
    await asyncio.sleep(0.2)
    before = len(count)
    waker.wake()
    await asyncio.sleep(0.2)
    assert len(count) == before + 1


def test_a_closed_one_writes_nowhere():
    waker = Waker()
    waker.close()
    reading, writing = os.pipe()  # most likely the same numbers
    try:
        os.set_blocking(reading, False)
        waker.wake()
        waker.close()
        try:
            found = os.read(reading, 1)
        except BlockingIOError:
            found = b""
        assert found == b""
    finally:
        os.close(reading)
        os.close(writing)
