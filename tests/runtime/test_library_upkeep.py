"""The library's process sweeps it."""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

from esper.rpc.server import Server
from esper.runtime import services
from esper.runtime.home import Home
from esper.runtime.platform import Platform
from esper.urza.blobs import key_of


def orphan(home: Home) -> Path:
    """A blob of no kernel, older than what is spared."""
    path = home.folder("blobs") / key_of("ab" * 32)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of an upload that was never ended")
    then_s = time.time() - services.SWEEP_AGE_S - 60.0
    os.utime(path, (then_s, then_s))
    return path


async def test_the_service_sweeps_while_it_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "SWEEP_FIRST_AFTER_S", 0.0)
    home = Home(tmp_path)
    old = orphan(home)
    async with AsyncExitStack() as stack:
        platform = Platform(
            home=home, bus=None, server=Server(tokens=None), token="t", workers=1,
            components=("urza",), peers={}, stack=stack,
        )  # fmt: skip
        await services.build_urza(platform)
        platform.start_tasks()
        while old.exists():
            await asyncio.sleep(0.001)
        assert not [task for task in platform._tasks if task.done()]
        await platform.close()
        await platform.server.stop(0.0)
