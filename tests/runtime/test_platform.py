"""What the services of one process share: tasks that are begun again and end when told, channels to peers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from esper.errors import NotFound
from esper.rpc.server import Server
from esper.runtime import platform as module
from esper.runtime.home import Home
from esper.runtime.platform import Platform


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    made = Platform(
        home=Home(tmp_path), bus=None, server=Server(tokens=None), token="t", workers=1,
        components=("oona", "urza"), peers={"karn": "127.0.0.1:7"}, stack=AsyncExitStack(), address="127.0.0.1:5",
    )  # fmt: skip
    yield made
    await made.server.stop(0.0)


async def test_a_task_that_fails_is_begun_again_with_growing_pauses(platform, monkeypatch):
    pauses: list[float] = []
    tries: list[int] = []
    sleep = asyncio.sleep

    async def short(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def work() -> None:
        tries.append(len(tries))
        if len(tries) < 9:
            raise ValueError("not yet")

    monkeypatch.setattr(module.asyncio, "sleep", short)
    platform.task("urza/work", work)
    platform.start_tasks()
    await asyncio.gather(*platform._tasks)
    assert len(tries) == 9
    assert pauses == sorted(pauses) and pauses[-1] == module.MAX_BACKOFF_S
    await platform.close()


async def test_a_task_that_lost_its_cancellation_is_told_again(platform):
    """Python 3.11's wait_for does that when what it waits for comes at the same moment."""
    lost: list[int] = []

    async def work() -> None:
        while True:
            if lost:
                await asyncio.sleep(3600)
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            lost.append(1)

    platform.task("urza/work", work)
    platform.start_tasks()
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await platform.close()
    assert lost == [1]


async def test_a_component_is_called_here_or_where_it_was_said_to_be(platform):
    assert platform.channel_to("oona")() is platform.channel_to("urza")()
    assert platform.channel_to("karn")() is not platform.channel_to("oona")()
    with pytest.raises(NotFound, match="nobody said where tamiyo listens; name it: --peer tamiyo=HOST:PORT"):
        platform.channel_to("tamiyo")()
    await platform.close()
