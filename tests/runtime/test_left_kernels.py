"""A kernel that nobody will hear of again has its verdict once an evaluator serves."""

import asyncio
from contextlib import AsyncExitStack

from esper.api.tezzeret.v1.forge_pb2 import KernelReady
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.keys import TrustRoots, load_or_create_key
from esper.karn.templates import TEMPLATES
from esper.oona.memory import MemoryBus
from esper.rpc.server import Server
from esper.runtime import services
from esper.runtime.assortment import template_request
from esper.runtime.clients import LibraryClient
from esper.runtime.home import Home
from esper.runtime.platform import Platform
from esper.urabrask import codec
from esper.urabrask.jail import Isolation
from esper.urza.events import OutboxEvent
from esper.urza.service import open_library
from tests.artifact.samples import FORGE, built
from tests.tezzeret.fakes import DirectPool
from tests.urabrask.test_evaluator import GOOD

COMPONENTS = ("urza", "urabrask")


async def leave(home: Home, roots: TrustRoots) -> str:
    """Store a kernel and lose the word of it, as a work group does that gives it up; its id."""
    home.folder("db")
    url = f"sqlite+aiosqlite:///{home.database('urza').absolute()}"
    library = await open_library(url, home.folder("blobs").absolute().as_uri(), roots)
    lost: list[str] = []

    async def lose(event: OutboxEvent) -> None:
        lost.append(event.event.payload_type)

    artifact = built()
    await library.create_blueprint(template_request(TEMPLATES["conv3"]))
    await library.create_kernel(pb.KernelManifest(artifact=artifact.manifest), dict(artifact.files))
    await library.drain(lose)
    await library.close()
    assert lost == [KernelReady.DESCRIPTOR.full_name]
    return artifact.artifact_id


async def test_a_kernel_left_by_an_earlier_runtime_is_promoted_by_the_next(tmp_path, monkeypatch):
    home = Home(tmp_path)
    roots = TrustRoots((FORGE.public_key,), (load_or_create_key(home.key("evaluation")).public_key,))
    artifact_id = await leave(home, roots)
    monkeypatch.setattr(services, "BACKLOG_AFTER_S", 0.01)
    pool = DirectPool(
        {
            "isolation": lambda _: codec.write_isolation(Isolation("network namespace")),
            "evaluate": lambda _: codec.write_findings(GOOD),
        }
    )

    async def workshop(platform: Platform) -> None:
        platform.pools["workshop"] = pool

    monkeypatch.setattr(services, "_workshop", workshop)
    async with AsyncExitStack() as stack:
        platform = Platform(
            home=home, bus=MemoryBus(), server=Server(tokens={"t"}), token="t", workers=1,
            components=COMPONENTS, peers={}, stack=stack, roots=roots,
        )  # fmt: skip
        for component in COMPONENTS:
            await services.BUILDERS[component](platform)
        platform.address = f"127.0.0.1:{await platform.server.start('127.0.0.1:0')}"
        stack.push_async_callback(platform.server.stop, 0.0)
        stack.push_async_callback(platform.close)
        platform.start_tasks()
        library = LibraryClient(platform.channel_to("urza"))
        while True:
            kernel = (await library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel
            if kernel.status != pb.KERNEL_STATUS_PENDING_BENCHMARKING:
                break
            await asyncio.sleep(0.01)
        assert (kernel.status, kernel.report_name != "") == (pb.KERNEL_STATUS_VALIDATED, True)
        assert pool.runs.count("evaluate") == 1
