"""The architect as the runtime builds it: fed by the library's reports and by what grafts gained."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from esper.api.karn.v1 import architect_pb2, architect_pb2_grpc
from esper.api.urabrask.v1.evaluation_pb2 import Report
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_interface
from esper.errors import PreconditionFailed
from esper.karn.templates import TEMPLATES
from esper.oona.envelope import Sender
from esper.oona.memory import MemoryBus
from esper.oona.subjects import Name
from esper.rpc.server import Server
from esper.runtime import services
from esper.runtime.clients import LibraryClient
from esper.runtime.components import Components
from esper.runtime.home import Home
from esper.runtime.platform import Platform
from esper.urza.library import CentralLibrary
from esper.urza.port import StoredReport
from esper.urza.service import open_library
from tests.artifact.samples import MAP, ROOTS, built
from tests.karn.designs import PARENTS
from tests.simic.reports import report

from .test_library_upkeep import orphan

COMPONENTS = ("urza", "karn", "simic")


@pytest.fixture
async def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Platform]:
    monkeypatch.setattr(services, "ARCHIVE_S", 0.05)
    async with AsyncExitStack() as stack:
        made = Platform(
            home=Home(tmp_path), bus=MemoryBus(), server=Server(tokens={"t"}), token="t", workers=1,
            components=COMPONENTS, peers={}, stack=stack, roots=ROOTS,
        )  # fmt: skip
        for component in COMPONENTS:
            await services.BUILDERS[component](made)
        made.address = f"127.0.0.1:{await made.server.start('127.0.0.1:0')}"
        stack.push_async_callback(made.server.stop, 0.0)
        stack.push_async_callback(made.close)
        made.start_tasks()
        await made.ready()
        yield made


async def store(library: LibraryClient) -> str:
    """A kernel that was built; its artifact id."""
    artifact = built()
    await library.create_kernel(pb.KernelManifest(artifact=artifact.manifest), dict(artifact.files))
    return artifact.artifact_id


async def archived(library: LibraryClient | CentralLibrary) -> dict[str, str]:
    entries = (await library.list_aliases(pb.ListAliasesRequest())).aliases
    return {entry.alias: entry.target_name for entry in entries}


async def test_a_graft_that_was_judged_puts_its_design_into_the_archive(platform: Platform):
    library = LibraryClient(platform.channel_to("urza"))
    graft = report(1, artifact_id=await store(library), gain=0.02)
    await platform.bus.publish(Name.FIELD_REPORTS, Sender("tamiyo").seal(graft))
    async with asyncio.timeout(30):
        while not (found := await archived(library)):
            await asyncio.sleep(0.02)
    [(alias, target)] = found.items()
    assert alias.startswith("karn/map2d/local/plain/")
    assert target.removeprefix("blueprints/") in PARENTS
    revision = (await library.list_aliases(pb.ListAliasesRequest())).header.revision
    await asyncio.sleep(0.3)  # several looks
    assert (await library.list_aliases(pb.ListAliasesRequest())).header.revision == revision


async def test_a_budget_is_held_against_what_was_measured(platform: Platform):
    library = LibraryClient(platform.channel_to("urza"))
    artifact_id = await store(library)
    seen = {"forward_us_p50": 70.0, "peak_bytes": 9000, "input_shape": [16, MAP.channels, 8, 8]}
    body = Report(artifact_id=artifact_id, machine={"cpu": "Acme", "threads": "1"}, **seen).SerializeToString()
    await library.put_report(StoredReport(f"reports/{'0' * 64}", artifact_id, body))
    stub = architect_pb2_grpc.ArchitectServiceStub(platform.channel_to("karn")())
    request = architect_pb2.GenerateBlueprintsRequest(
        interface=write_interface(MAP), kind=architect_pb2.OPPORTUNITY_KIND_CAPACITY, limit=2
    )
    assert len((await stub.GenerateBlueprints(request)).designs) == 2
    request.budget.CopyFrom(architect_pb2.Budget(target="Acme, 1 threads", batch=16, positions=64, max_forward_us=80))
    with pytest.raises(PreconditionFailed, match=r"1 measurements on Acme, 1 threads, at least 40 are needed"):
        await stub.GenerateBlueprints(request)


def test_without_services_the_archive_is_brought_up_and_the_library_swept_when_the_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("esper.runtime.components.trust_of", lambda home, components: ROOTS)
    artifact, old = built(), orphan(Home(tmp_path))
    with Components(Home(tmp_path)) as components:
        assert old.exists()
        library = components._library
        manifest = pb.KernelManifest(artifact=artifact.manifest)
        components._runner.run(library.create_kernel(manifest, dict(artifact.files)))
        components._replay.add(report(1, artifact_id=artifact.artifact_id, gain=0.02))
        assert components._runner.run(archived(library)) == {}

    assert not old.exists()

    async def left() -> dict[str, str]:
        url = f"sqlite+aiosqlite:///{Home(tmp_path).database('urza')}"
        library = await open_library(url, (tmp_path / "blobs").as_uri(), ROOTS)
        try:
            return await archived(library)
        finally:
            await library.close()

    found = asyncio.run(left())
    assert list(found.values()) == [f"blueprints/{blueprint_id(TEMPLATES['conv3'].graph)}"]
