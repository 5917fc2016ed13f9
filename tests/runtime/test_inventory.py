"""What a controller knows of the library is what a reader of all of it would say, whatever changed and however."""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.api.common.v1 import resource_pb2
from esper.api.common.v1.artifact_pb2 import Attestation
from esper.api.tolaria.v1.state_pb2 import SiteState
from esper.api.urza.v1 import library_pb2 as pb
from esper.api.urza.v1 import library_pb2_grpc
from esper.blueprint.codec import write_graph, write_interface
from esper.blueprint.interface import Interface, Kind
from esper.errors import PreconditionFailed, Unavailable
from esper.karn.opportunity import Opportunity
from esper.rpc.server import Server
from esper.runtime import inventory as subject
from esper.runtime.assortment import Assortment, Need, Sort, designs, offer_generated, own, sort_of
from esper.runtime.clients import LibraryClient
from esper.runtime.inventory import Inventory
from esper.runtime.stock import in_stock, offer_templates
from esper.urza import graphs
from esper.urza.library import CentralLibrary
from esper.urza.local_blobs import LocalBlobs
from esper.urza.service import LibraryServicer
from esper.urza.statuses import BLUEPRINT, KERNEL
from esper.urza.store import Store
from tests.urza.fakes import EVALUATION, FAST, artifact, files_of, ports, sign

MAP, VECTOR = Interface(Kind.MAP2D, 8), Interface(Kind.VECTOR, 8)
LIMITS = Assortment(library=3, generated=2)
NEEDS = [Need(at, (Opportunity.CAPACITY,), seed, LIMITS) for at in (MAP, VECTOR) for seed in (1, 2)]
# Graphs that are no template's and no run's in NEEDS; some fit maps alone.
PEOPLES = [
    design.graph
    for kind in (Opportunity.CAPACITY, Opportunity.ATTENTION)
    for design in designs(Need(MAP, (kind,), 9, Assortment(generated=4)))
]


class Place:
    """A library that can be closed, copied, put back to a copy and opened again; counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.fails = ""
        self._statements = 0

    async def open(self) -> "Place":
        made = replace(ports(), identify=graphs.identify, compatible=graphs.compatible)
        store = await Store.open(f"sqlite+aiosqlite:///{self.folder}/library.db", FAST)
        self.library = CentralLibrary(store, LocalBlobs(self.folder / "blobs"), made)
        return self

    def save(self) -> None:
        with closing(sqlite3.connect(self.folder / "library.db")) as live, closing(sqlite3.connect(self._copy)) as copy:
            live.backup(copy)

    async def put_back(self) -> None:
        await self.library.close()
        if self._copy.exists():
            for path in self.folder.glob("library.db*"):
                path.unlink()
            shutil.copy(self._copy, self.folder / "library.db")
        await self.open()

    @property
    def _copy(self) -> Path:
        return self.folder / "copy.db"

    def __getattr__(self, name: str):
        if name == self.fails:
            raise Unavailable(f"{name} is not to be had")
        self.asked.append(name)
        return getattr(self.library, name)

    async def add_people(self, number: int, author: str = "ada") -> str:
        request = pb.CreateBlueprintRequest(graph=write_graph(PEOPLES[number]), title=f"p{number}", author=author)
        return (await self.library.create_blueprint(request)).blueprint.blueprint_id

    async def blueprints(self) -> list[pb.Blueprint]:
        both = (pb.BLUEPRINT_STATUS_UNSPECIFIED, pb.BLUEPRINT_STATUS_ARCHIVED)
        page = resource_pb2.PageRequest(size=1000)
        found = [await self.library.list_blueprints(pb.ListBlueprintsRequest(status=s, page=page)) for s in both]
        return sorted((one for reply in found for one in reply.blueprints), key=lambda one: one.blueprint_id)

    async def add_kernel(self, blueprint_id: str, at: Interface, number: int = 0, target: int = 1) -> str:
        site, files = write_interface(at), files_of(number)
        manifest = artifact(blueprint_id, files, site=site, parameter_count=number + 1, target=target)
        return (await self.library.create_kernel(pb.KernelManifest(artifact=manifest), files)).kernel.artifact_id

    async def move_kernel(self, artifact_id: str, status: int) -> None:
        request = pb.SetKernelStatusRequest(artifact_id=artifact_id, status=status, reason="r")
        if status == pb.KERNEL_STATUS_VALIDATED:
            self._statements += 1
            statement = f"{self._statements} of {id(self)}".encode()
            request.attestation.CopyFrom(sign(EVALUATION, Attestation.ROLE_PROMOTED, artifact_id, statement))
        await self.library.set_kernel_status(request)


async def plain(library: CentralLibrary, blueprints: list[pb.Blueprint], need: Need) -> tuple[list[pb.Kernel], int]:
    """The answer, from everything the library has."""

    async def kernels(status: pb.KernelStatus.ValueType) -> list[pb.Kernel]:
        request = pb.SearchKernelsRequest(
            interface=write_interface(need.interface),
            status=status,
            target=resource_pb2.TARGET_CPU,
            limit=subject.SEARCH_LIMIT,
        )
        return [match.kernel for match in (await library.search_kernels(request)).matches]

    theirs = {one.blueprint_id for one in blueprints if sort_of(one) is Sort.GENERATED} - own(need)
    ready = [one for one in await kernels(pb.KERNEL_STATUS_VALIDATED) if one.blueprint_id not in theirs]
    judged = {one.blueprint_id for one in [*ready, *await kernels(pb.KERNEL_STATUS_REJECTED)]}
    stocked = [one for one in await in_stock(library, need) if one.status != pb.BLUEPRINT_STATUS_INVALID]
    return sorted(ready, key=lambda one: one.artifact_id), sum(one.blueprint_id not in judged for one in stocked)


async def check(place: Place, inventory: Inventory) -> list[tuple[list[pb.Kernel], int]]:
    blueprints = await place.blueprints()
    wanted = [await plain(place.library, blueprints, need) for need in NEEDS]
    found = await inventory.look(NEEDS)
    assert [(sorted(one.ready, key=lambda k: k.artifact_id), one.being_made) for one in found] == wanted
    return wanted


async def change(place: Place, draw: random.Random) -> None:
    """One of all there are; a move that the library does not allow changes nothing."""
    blueprints = await place.blueprints()
    kernels = list((await place.library.list_kernels(pb.ListKernelsRequest())).kernels)
    kernels += (await place.library.list_kernels(pb.ListKernelsRequest(status=pb.KERNEL_STATUS_ARCHIVED))).kernels
    what = draw.choice(("people", "run", "templates", "blueprint", "kernel", *["verdict"] * 4))
    if what == "people":
        await place.add_people(draw.randrange(len(PEOPLES)))
    elif what == "run":
        await offer_generated(place.library, draw.choice(NEEDS))
    elif what == "templates":
        await offer_templates(place.library)
    elif what == "kernel" and blueprints:
        name, number = draw.choice(blueprints).blueprint_id, draw.randrange(3)
        await place.add_kernel(name, draw.choice((MAP, VECTOR)), number, draw.choice((1, 1, 3)))
    elif what == "blueprint" and blueprints:
        one = draw.choice(blueprints)
        status = draw.choice(sorted(BLUEPRINT.moves[one.status] - {pb.BLUEPRINT_STATUS_VALIDATED}))
        request = pb.SetBlueprintStatusRequest(blueprint_id=one.blueprint_id, status=status, reason="r")
        await place.library.set_blueprint_status(request)
    elif kernels:
        one = draw.choice(kernels)
        await place.move_kernel(one.artifact_id, draw.choice(sorted(KERNEL.moves[one.status])))


LIVES = given(seed=st.integers(0, 2**32), full=st.booleans(), page=st.sampled_from((4, 1000)))


@settings(max_examples=4, deadline=None)
@LIVES
async def test_the_answer_is_that_of_reading_everything(tmp_path_factory, seed: int, full: bool, page: int) -> None:
    await live(tmp_path_factory.mktemp("library"), seed, full, page)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@LIVES
async def test_the_answer_is_that_of_reading_everything_often(tmp_path_factory, seed, full, page) -> None:
    await live(tmp_path_factory.mktemp("library"), seed, full, page)


async def live(folder: Path, seed: int, full: bool, page: int) -> None:
    """Searches that are full, more changes than are followed, and a library put back to an earlier state among them."""
    draw = random.Random(seed)
    place = await Place(folder).open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "SEARCH_LIMIT", 2 if full else 1000)
        patch.setattr(subject, "_PAGE", resource_pb2.PageRequest(size=page))
        inventory = Inventory(place)
        for _ in range(30):
            what = draw.random()
            if what < 0.05:
                place.save()
            elif what < 0.1:
                await place.put_back()
            elif what < 0.7:
                await change(place, draw)
            else:
                await check(place, inventory)
        await check(place, inventory)
    await place.library.close()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """The templates, a design of each run, and two blueprints of people."""
    made = await Place(tmp_path).open()
    await offer_templates(made.library)
    for need in NEEDS:
        await offer_generated(made.library, need)
    await made.add_people(0)
    yield made
    await made.library.close()


async def test_where_nothing_changed_the_ledger_alone_is_asked_once_for_all_interfaces(place: Place) -> None:
    inventory = Inventory(place)
    await check(place, inventory)
    place.asked.clear()
    await inventory.look(NEEDS)
    assert place.asked == ["list_ledger"]


async def test_a_verdict_is_seen_at_the_next_question_and_nothing_else_is_read(place: Place) -> None:
    inventory = Inventory(place)
    before = (await check(place, inventory))[0]
    name = await place.add_kernel(next(iter(own(NEEDS[0]))), MAP)
    place.asked.clear()
    for status in (pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_QUARANTINED):
        await place.move_kernel(name, status)
        found = (await inventory.look(NEEDS))[0]
        assert [one.artifact_id for one in found.ready] == ([name] if status == pb.KERNEL_STATUS_VALIDATED else [])
        assert found.being_made == before[1] - len(found.ready)
    assert set(place.asked) == {"list_ledger", "get_kernel"}


async def test_what_was_read_from_an_undone_state_is_read_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    name = await place.add_kernel(next(iter(own(NEEDS[0]))), MAP)
    place.save()
    inventory, search = Inventory(place), place.library.search_kernels
    await inventory.look([])

    async def promoted_just_before(request: pb.SearchKernelsRequest) -> pb.SearchKernelsResponse:
        if request.status == pb.KERNEL_STATUS_VALIDATED:
            await place.move_kernel(name, pb.KERNEL_STATUS_VALIDATED)
        return await search(request)

    monkeypatch.setattr(place.library, "search_kernels", promoted_just_before)
    [found] = await inventory.look(NEEDS[:1])  # its kernels are of a later state than the ledger was read up to
    assert found.ready
    await place.put_back()
    for number in range(5):  # as far as it was, and further, by another way
        await place.add_kernel(next(iter(own(NEEDS[1]))), MAP, number)
    [found] = await inventory.look(NEEDS[:1])
    assert not found.ready


async def test_what_is_moved_while_all_is_read_is_known(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(own(NEEDS[1])))  # another run's, with a kernel that was promoted
    await place.move_kernel(await place.add_kernel(name, MAP), pb.KERNEL_STATUS_VALIDATED)
    archive = pb.SetBlueprintStatusRequest(blueprint_id=name, status=pb.BLUEPRINT_STATUS_ARCHIVED, reason="r")
    await place.library.set_blueprint_status(archive)
    whole = place.library.list_blueprints

    async def back_in_between(request: pb.ListBlueprintsRequest) -> pb.ListBlueprintsResponse:
        reply = await whole(request)
        if not request.status:
            back = pb.SetBlueprintStatusRequest(
                blueprint_id=name, status=pb.BLUEPRINT_STATUS_UNVALIDATED, reason="r", request_id="once"
            )
            await place.library.set_blueprint_status(back)
        return reply

    monkeypatch.setattr(place.library, "list_blueprints", back_in_between)
    [mine, other] = await Inventory(place).look(NEEDS[:2])
    assert not mine.ready and len(other.ready) == 1


@pytest.mark.parametrize("call", ["list_ledger", "list_blueprints", "get_blueprint", "search_kernels", "get_kernel"])
async def test_a_question_that_failed_half_way_leaves_nothing_behind(place: Place, call: str) -> None:
    inventory = Inventory(place)
    if call.startswith("get"):
        await inventory.look(NEEDS)
    name = await place.add_kernel(next(iter(own(NEEDS[0]))), MAP)
    await place.move_kernel(name, pb.KERNEL_STATUS_REJECTED)
    await place.add_people(1)
    place.fails = call
    with pytest.raises(Unavailable, match=call):
        await inventory.look(NEEDS)
    place.fails = ""
    await check(place, inventory)


async def test_several_ask_at_once_while_it_changes_and_an_interface_let_go_is_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_MAX_INTERFACES", 1)
    inventory, draw = Inventory(place), random.Random(1)

    async def changes() -> None:
        for _ in range(20):
            try:
                await change(place, draw)
            except PreconditionFailed as error:
                raise AssertionError("a move that is not allowed was drawn") from error

    await asyncio.gather(changes(), *(inventory.look(NEEDS[i : i + 2]) for i in (0, 1, 2)))
    await check(place, inventory)
    assert len(inventory._kernels) == 1


async def test_over_a_channel_it_is_the_same(place: Place) -> None:
    server = Server(tokens=None)
    server.mount(library_pb2_grpc.add_LibraryServiceServicer_to_server, LibraryServicer(place.library))
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        inventory, draw = Inventory(LibraryClient(lambda: channel)), random.Random(2)
        for _ in range(5):
            await check(place, inventory)
            await change(place, draw)
        sites = [SiteState(layer_kind="Conv2d", interface=write_interface(MAP))]
        assert list(await inventory.of_sites(sites, 3)) == ["map2d[8] float32"]
    await server.stop(0)
