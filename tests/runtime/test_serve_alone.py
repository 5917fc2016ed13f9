"""`esper serve`: one component in a process of its own, with bus and peers elsewhere."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.api.tezzeret.v1 import forge_pb2, forge_pb2_grpc
from esper.api.urza.v1 import library_pb2, library_pb2_grpc
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_interface
from esper.blueprint.interface import Interface, Kind
from esper.errors import Conflict, Unauthenticated
from esper.karn.templates import TEMPLATES
from esper.rpc.client import open_channel
from esper.runtime.home import KEEPERS, Home
from tests.runtime.processes import Esper, Runtime, esper, gone, until

ORDER = forge_pb2.CreateCompilationRequest(
    blueprint_id=blueprint_id(TEMPLATES["low_rank"].graph), interface=write_interface(Interface(Kind.VECTOR, 7))
)


def broker_of(runtime: Runtime) -> str:
    """What `esper up` prints, with the token of its token file."""
    return runtime.contact.broker.replace("nats://", f"nats://{runtime.contact.token()}@")


@pytest.fixture(scope="module")
def forge(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Esper, str]]:
    """A second forge, on the runtime's home, bus and library; and its address."""
    served = Esper(
        tmp_path_factory.mktemp("alone"), "serve", "tezzeret", "--home", str(runtime.home.root.absolute()),
        "--broker", broker_of(runtime), "--peer", f"urza={runtime.contact.address}", "--workers", "1",
    )  # fmt: skip
    try:
        until(lambda: "serves on" in served.text or not served.running, 60, served.text)
        found = re.search(r"tezzeret serves on (\S+)", served.text)
        assert found, served.text
        yield served, found[1]
    finally:
        served.stop()


async def test_it_answers_for_itself_and_keeps_what_it_makes_in_the_library_elsewhere(runtime, forge):
    _, address = forge
    token = runtime.contact.token()
    async with (
        open_channel(address, token=token) as here,
        open_channel(runtime.contact.address, token=token) as elsewhere,
    ):
        stub: Any = forge_pb2_grpc.ForgeServiceStub(here)
        library: Any = library_pb2_grpc.LibraryServiceStub(elsewhere)
        await stub.CreateCompilation(ORDER)
        async with asyncio.timeout(60):
            while not (made := (await stub.ListCompilations(forge_pb2.ListCompilationsRequest())).compilations):
                await asyncio.sleep(0.1)
        assert made[0].artifact_id, made[0]
        kernel = await library.GetKernel(library_pb2.GetKernelRequest(artifact_id=made[0].artifact_id))
        assert kernel.kernel.blueprint_id == ORDER.blueprint_id


async def test_it_takes_the_token_of_the_home_and_no_other(forge):
    async with open_channel(forge[1], token="guessed") as channel:
        stub: Any = forge_pb2_grpc.ForgeServiceStub(channel)
        with pytest.raises(Unauthenticated):
            await stub.GetForgeStatus(forge_pb2.GetForgeStatusRequest())


def test_it_is_one_of_its_kind_on_a_home_and_does_not_claim_to_be_the_runtime(runtime, forge):
    again = esper(
        "serve", "tezzeret", "--home", str(runtime.home.root), "--broker", broker_of(runtime), folder=runtime.folder
    )
    assert again.returncode == 1
    assert "another process runs the tezzeret of" in again.stderr
    assert runtime.contact.pid == runtime.pid


@pytest.mark.parametrize("component", KEEPERS)
def test_what_the_runtime_keeps_in_its_home_is_served_by_no_other(runtime, component):
    with pytest.raises(Conflict, match=rf"another process runs the {component} of .*stop it \(kill {runtime.pid}\)"):
        runtime.home.held(component).__enter__()


def test_a_library_alone_beside_the_runtime_is_refused_and_a_runtime_beside_a_library(runtime, tmp_path):
    beside = esper("serve", "urza", "--home", str(runtime.home.root), "--broker", broker_of(runtime), folder=tmp_path)
    assert beside.returncode == 1 and "another process runs the urza of" in beside.stderr
    home = Home(tmp_path / "home")
    with home.held("urza"):
        beside = esper("up", "--home", str(home.root), folder=tmp_path)
    assert beside.returncode == 1 and f"another process runs the urza of {home.root}" in beside.stderr
    assert not home.contact_file.exists()


def test_it_ends_with_its_workers_and_the_runtime_goes_on(runtime, forge):
    served, _ = forge
    family = served.family()
    assert family
    assert served.stop() == 0, served.text
    assert gone(family) == []
    assert runtime.running and "Traceback" not in served.text


@pytest.mark.slow
def test_a_broker_that_is_not_there_is_named(runtime: Runtime, tmp_path: Path):
    tried = esper(
        "serve", "karn", "--home", str(runtime.home.root), "--broker", "nats://token@127.0.0.1:1", folder=tmp_path
    )
    assert tried.returncode == 1
    assert "no broker answers at" in tried.stderr and "127.0.0.1:1" in tried.stderr


def test_a_broker_of_another_token_is_named(runtime: Runtime, tmp_path: Path):
    where = runtime.contact.broker.replace("nats://", "nats://guessed@")
    tried = esper("serve", "karn", "--home", str(runtime.home.root), "--broker", where, folder=tmp_path)
    assert tried.returncode == 1
    assert "does not know our token" in tried.stderr and "guessed" not in tried.stderr
