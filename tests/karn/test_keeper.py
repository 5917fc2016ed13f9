"""The archive follows what grafts gained, lives in the library, and is quiet while nothing changes."""

import asyncio
import hashlib
import logging

import pytest

from esper.api.simic.v1 import replay_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.keys import TrustRoots
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_graph, write_interface
from esper.blueprint.interface import Interface, Kind
from esper.errors import NotFound, Unavailable
from esper.karn.archive import candidate
from esper.karn.keeper import ArchiveKeeper
from esper.karn.parts import graph_of, linear
from esper.karn.templates import TEMPLATES
from esper.simic.store import ReplayStore
from esper.urza.service import open_library
from tests.simic.reports import at_noon, report

MAP, TOKENS = Interface(Kind.MAP2D, 16), Interface(Kind.TOKENS, 8)
# both are in one cell
RIVALS = ("glu_mlp", "swiglu_mlp")


class World:
    """A library and a replay store on disk that can be closed and opened again. Kernels need not be built."""

    def __init__(self, folder):
        self.folder, self.kernels, self.count, self.silent = folder, {}, 0, False

    async def open(self):
        (self.folder / "blobs").mkdir(exist_ok=True)
        url = f"sqlite+aiosqlite:///{self.folder / 'library.db'}"
        self.library = await open_library(url, (self.folder / "blobs").as_uri(), TrustRoots())
        self.replay = ReplayStore(self.folder / "simic.db", at_noon)
        for method in ("get_blueprint", "set_alias", "list_aliases"):
            setattr(self, method, getattr(self.library, method))

    async def close(self):
        self.replay.close()
        await self.library.close()

    async def get_kernel(self, request):
        if request.artifact_id not in self.kernels:
            raise NotFound(f"kernels/{request.artifact_id}: no such kernel in this library")
        return pb.GetKernelResponse(kernel=self.kernels[request.artifact_id])

    async def gains(self):
        if self.silent:
            raise Unavailable("simic restarts")
        wanted = replay_pb2.Filter(only_judged=True)
        return replay_pb2.SummariseExperiencesResponse(
            header={"revision": self.replay.last_position}, summaries=self.replay.summaries(wanted, by_kernel=True)
        )

    async def graft(self, graph, gain, interface=MAP, **fields):
        """A kernel of the graph was grafted and judged; the blueprint's id."""
        self.count += 1
        request = pb.CreateBlueprintRequest(graph=write_graph(graph), title="any", author="ada")
        name = (await self.library.create_blueprint(request)).blueprint.blueprint_id
        artifact_id = hashlib.sha256(f"{name} {interface} {self.count}".encode()).hexdigest()
        self.kernels[artifact_id] = pb.Kernel(
            artifact_id=artifact_id, blueprint_id=name, interface=write_interface(interface)
        )
        self.replay.add(report(self.count, artifact_id=artifact_id, **({"gain": gain} | fields)))
        return name

    async def aliases(self):
        entries = (await self.library.list_aliases(pb.ListAliasesRequest())).aliases
        return {entry.alias: entry.target_name for entry in entries}


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    await made.open()
    yield made
    await made.close()


def graph(title):
    return TEMPLATES[title].graph


def cell(title, kind=Kind.MAP2D):
    return candidate(graph(title), kind)[0].cell


def worth(keeper):
    return {elite.blueprint_id: pytest.approx(elite.worth) for elite in keeper.archive.values()}


async def test_a_design_is_worth_the_mean_of_its_grafts_whatever_the_kernel_and_the_task(world):
    name = await world.graft(graph("conv3"), 0.1)
    await world.graft(graph("conv3"), 0.3, task_name="faces", interface=Interface(Kind.MAP2D, 32))
    await world.graft(graph("conv3"), 0.8, interface=TOKENS)
    await world.graft(graph("low_rank"), float("nan"))
    keeper = ArchiveKeeper(world, world.gains)
    await keeper.update()
    assert {at: pytest.approx(elite.worth) for at, elite in keeper.archive.items()} == {
        cell("conv3"): 0.2,
        cell("conv3", Kind.TOKENS): 0.8,
    }
    assert {at.alias for at in keeper.archive} == set(await world.aliases())
    assert set(keeper.parents(Kind.MAP2D)) == {name} and keeper.parents(Kind.VECTOR) == {}
    assert blueprint_id(keeper.parents(Kind.MAP2D)[name]) == name


async def test_it_is_the_same_after_a_restart_and_there_while_the_replay_store_is_silent(world):
    for title, gain in (("conv3", 0.1), ("low_rank", -0.2), ("wide_mlp", 0.3)):
        await world.graft(graph(title), gain)
    before = ArchiveKeeper(world, world.gains)
    await before.update()
    assert len(before.archive) == 3
    await world.close()
    await world.open()
    world.silent = True
    after = ArchiveKeeper(world, world.gains)
    with pytest.raises(Unavailable):
        await after.update()
    assert after.parents(Kind.MAP2D) == before.parents(Kind.MAP2D)
    assert not any(elite.observed for elite in after.archive.values())
    world.silent = False
    await after.update()
    assert after.archive == before.archive


async def test_a_design_whose_grafts_fail_later_loses_its_place_to_the_next(world):
    assert len({cell(title) for title in RIVALS}) == 1
    first, second = [await world.graft(graph(title), gain) for title, gain in zip(RIVALS, (0.3, 0.1), strict=True)]
    keeper = ArchiveKeeper(world, world.gains)
    await keeper.update()
    assert worth(keeper) == {first: 0.3}
    await world.graft(graph(RIVALS[0]), -0.5)
    await keeper.update()
    assert worth(keeper) == {second: 0.1}
    assert await world.aliases() == {cell(RIVALS[0]).alias: f"blueprints/{second}"}


async def test_nothing_is_asked_or_written_while_nothing_changed(world, monkeypatch):
    await world.graft(graph("conv3"), 0.1)
    keeper = ArchiveKeeper(world, world.gains)
    await keeper.update()

    async def never(request):
        raise AssertionError(f"asked {request}")

    for method in ("get_blueprint", "get_kernel", "set_alias", "list_aliases"):
        monkeypatch.setattr(world, method, never)
    archive = keeper.archive
    await keeper.update()
    world.replay.add(report(99))  # a seed ended that was not judged
    await keeper.update()
    assert keeper.archive == archive


async def test_what_nothing_can_be_bred_from_is_in_no_cell(world, caplog):
    caplog.set_level(logging.INFO)
    mine = graph_of(linear("inside"), linear("out", "inside"))  # a person's: not zero at birth
    name = await world.graft(mine, 0.9)
    world.replay.add(report(98, artifact_id="d" * 64, gain=0.9))  # of a kernel of another library
    keeper = ArchiveKeeper(world, world.gains)
    await keeper.update()
    assert keeper.archive == {} and await world.aliases() == {}
    assert any(name in r.message and "must be exactly 0" in r.message for r in caplog.records)
    assert any("no such kernel" in r.message for r in caplog.records)


async def test_an_alias_that_somebody_set_to_what_cannot_be_there_counts_as_empty(world, caplog):
    name = await world.graft(graph("conv3"), 0.1)
    wrong = cell("low_rank").alias
    await world.set_alias(pb.SetAliasRequest(alias=wrong, target_name=f"blueprints/{name}"))
    await world.set_alias(pb.SetAliasRequest(alias="best/conv", target_name=f"blueprints/{name}"))
    keeper = ArchiveKeeper(world, world.gains)
    await keeper.update()
    assert set(keeper.archive) == {cell("conv3")}
    assert [r.message for r in caplog.records if wrong in r.message and cell("conv3").alias in r.message]


async def test_what_was_looked_up_before_the_library_fell_silent_is_not_asked_again(world, monkeypatch):
    for title in ("conv3", "low_rank", "wide_mlp"):
        await world.graft(graph(title), 0.1)
    keeper, asked, whole = ArchiveKeeper(world, world.gains), list[str](), world.get_kernel

    async def breaks(request):
        asked.append(request.artifact_id)
        if len(asked) == 3:
            raise Unavailable("the library restarts")
        return await whole(request)

    monkeypatch.setattr(world, "get_kernel", breaks)
    with pytest.raises(Unavailable):
        await keeper.update()
    assert keeper.archive == {}  # some of a design's grafts would give it another worth
    await keeper.update()
    assert len(keeper.archive) == 3 and asked[2:] == [asked[2]] * 2


async def test_it_goes_on_after_the_replay_store_was_silent_and_says_so_once(world, caplog):
    await world.graft(graph("conv3"), 0.1)
    world.silent = True
    keeper = ArchiveKeeper(world, world.gains)
    task = asyncio.create_task(keeper.run(0.01))
    try:
        await asyncio.sleep(0.1)
        assert [r.message for r in caplog.records] == ["the archive waits: simic restarts"]
        world.silent = False
        async with asyncio.timeout(30):
            while not keeper.archive:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
