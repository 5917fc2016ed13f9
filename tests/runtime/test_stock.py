"""Kernels in stock: verified before anything is parsed, fetched once, ordered once; what is damaged is put aside."""

import asyncio
import errno
import logging
from pathlib import Path

import pytest

from esper.api.common.v1 import resource_pb2
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact import folder as folder_module
from esper.artifact.bundle import Artifact
from esper.artifact.folder import read_folder, write_folder
from esper.errors import Corrupt, Exhausted, NotFound, Untrusted
from esper.karn.opportunity import Opportunity
from esper.karn.templates import TEMPLATES
from esper.kasmina.cache import folder_of
from esper.runtime.assortment import Assortment, Need
from esper.runtime.stock import Stock, lineage_of, offer_templates
from tests.artifact.samples import MAP, ROOTS, built, flipped, promoted

KERNEL = promoted()
NEED = Need(MAP, (Opportunity.CAPACITY,), 0, Assortment(generated=0))
NAME = KERNEL.artifact_id


class Library:
    """Holds blueprints and kernels in memory; a download can be changed on its way."""

    def __init__(self, *kernels: Artifact) -> None:
        self.kernels = {kernel.artifact_id: kernel for kernel in kernels}
        self.blueprints: dict[str, pb.Blueprint] = {}
        self.ready: list[pb.Kernel] = []
        self.refused: list[pb.Kernel] = []
        self.for_devices: list[pb.Kernel] = []
        self.downloads: list[str] = []

    async def create_blueprint(self, request):
        blueprint = pb.Blueprint(blueprint_id=request.request_id.removeprefix("template-"), title=request.title)
        self.blueprints.setdefault(blueprint.blueprint_id, blueprint)
        return pb.CreateBlueprintResponse(blueprint=blueprint)

    async def list_blueprints(self, request):
        return pb.ListBlueprintsResponse(blueprints=self.blueprints.values())

    async def search_kernels(self, request):
        assert request.target  # what is for one device must not be taken for what runs on another
        if request.target != resource_pb2.TARGET_CPU:
            found = self.for_devices if request.status == pb.KERNEL_STATUS_PENDING_BENCHMARKING else []
        else:
            found = self.ready if request.status == pb.KERNEL_STATUS_VALIDATED else self.refused
        return pb.SearchKernelsResponse(matches=[pb.KernelMatch(kernel=kernel) for kernel in found])

    async def download_kernel(self, request):
        self.downloads.append(request.artifact_id)
        await asyncio.sleep(0)
        if request.artifact_id not in self.kernels:
            raise NotFound(f"kernels/{request.artifact_id}: no such kernel")
        kernel = self.kernels[request.artifact_id]
        return kernel.manifest, dict(kernel.files)


@pytest.fixture
def library() -> Library:
    return Library(KERNEL)


@pytest.fixture
def stock(library: Library, tmp_path: Path) -> Stock:
    return Stock(library, tmp_path / "kernels", ROOTS)


def place(stock: Stock) -> Path:
    return folder_of(stock.folder, NAME)


async def test_a_kernel_is_fetched_once_however_many_ask(stock, library):
    await asyncio.gather(*(stock.provide([NAME, NAME]) for _ in range(5)))
    await stock.provide([NAME])
    assert library.downloads == [NAME]
    assert read_folder(place(stock)).files == KERNEL.files


@pytest.mark.parametrize("name", [*KERNEL.files, "body.json"])
async def test_a_flipped_byte_on_disk_is_put_aside_said_and_fetched_again(stock, library, caplog, name):
    await stock.provide([NAME])
    path = place(stock) / name
    path.write_bytes(flipped(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        await stock.provide([NAME])
    assert library.downloads == [NAME, NAME]
    assert read_folder(place(stock)).files == KERNEL.files
    aside = list((stock.folder / "quarantine").iterdir())
    assert len(aside) == 1 and aside[0].name.startswith(NAME)
    assert NAME in caplog.text and "put aside" in caplog.text


@pytest.mark.parametrize("name", KERNEL.files)
async def test_a_flipped_byte_from_the_library_is_refused_and_not_kept(stock, library, name, monkeypatch):
    files = KERNEL.files | {name: flipped(KERNEL.files[name])}
    library.kernels[NAME] = Artifact(KERNEL.manifest, files)
    parsed: list[object] = []
    monkeypatch.setattr("torch.jit.load", lambda *args, **options: parsed.append(args))
    monkeypatch.setattr("safetensors.torch.load", lambda *args, **options: parsed.append(args))
    with pytest.raises(Corrupt, match=NAME[:12]):
        await stock.provide([NAME])
    assert not place(stock).exists()
    assert not parsed


async def test_a_kernel_that_was_not_promoted_is_refused_and_not_kept(stock, library):
    library.kernels[NAME] = built()
    assert built().artifact_id == NAME
    with pytest.raises(Untrusted):
        await stock.provide([NAME])
    assert not place(stock).exists()


async def test_an_unpromoted_kernel_put_on_the_disk_by_hand_is_not_used(stock, library):
    write_folder(built(), place(stock))
    await stock.provide([NAME])
    assert library.downloads == [NAME]
    assert len(read_folder(place(stock)).manifest.attestations) == 2


async def test_another_kernel_than_was_asked_for_is_refused(stock, library):
    library.kernels[NAME] = promoted("low_rank")
    with pytest.raises(Exception, match=NAME):
        await stock.provide([NAME])
    assert not place(stock).exists()


async def test_a_kernel_nobody_has_is_not_found(stock):
    with pytest.raises(NotFound, match="no such kernel"):
        await stock.provide(["0" * 64])


async def test_a_full_disk_is_said_and_leaves_nothing_half_written(stock, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "_write_file", full)
        with pytest.raises(Exhausted, match="No space left on device"):
            await stock.provide([NAME])
    assert not [p for p in stock.folder.rglob("*") if p.is_file()]
    await stock.provide([NAME])
    assert place(stock).is_dir()


async def test_templates_are_offered_once_under_one_request_each(library):
    await offer_templates(library)
    await offer_templates(library)
    assert len(library.blueprints) == len(TEMPLATES) >= 8


async def test_a_site_has_every_fitting_blueprint_ordered_that_has_no_kernel_yet(stock, library):
    await offer_templates(library)
    made, *rest = library.blueprints
    library.ready = [pb.Kernel(artifact_id=NAME, blueprint_id=made)]
    orders: list[str] = []

    async def submit(submitted):
        orders.extend(order.blueprint_id for order in submitted)

    await stock.order(NEED, submit)
    await stock.order(NEED, submit)
    assert sorted(orders) == sorted(rest)


async def test_a_run_on_a_device_has_the_choice_left_to_the_forge_for_what_is_of_interest(stock, library):
    await offer_templates(library)
    dull, keen, there, *rest = library.blueprints
    library.ready = [
        pb.Kernel(artifact_id="1" * 64, blueprint_id=dull),
        pb.Kernel(artifact_id="2" * 64, blueprint_id=keen, interest=0.4),
        pb.Kernel(artifact_id="3" * 64, blueprint_id=there, interest=0.9),
    ]
    library.for_devices = [pb.Kernel(artifact_id="4" * 64, blueprint_id=there)]
    orders: list[tuple[str, int, int]] = []

    async def submit(submitted):
        orders.extend((order.blueprint_id, order.pipeline, order.target) for order in submitted)

    await stock.order(NEED, submit, resource_pb2.TARGET_SM_90)
    fast = [(name, forge_pb2.PIPELINE_FAST, resource_pb2.TARGET_CPU) for name in rest]
    assert sorted(orders) == sorted([*fast, (keen, forge_pb2.PIPELINE_AUTO, resource_pb2.TARGET_SM_90)])
    orders.clear()
    await stock.order(NEED, submit)
    assert sorted(orders) == sorted(fast)  # a CPU run orders nothing of it


async def test_an_order_that_could_not_be_sent_is_sent_with_the_next_run(stock, library):
    await offer_templates(library)
    orders: list[str] = []

    async def fail(submitted):
        raise Exhausted("the bus is full")

    async def submit(submitted):
        orders.extend(order.blueprint_id for order in submitted)

    with pytest.raises(Exhausted):
        await stock.order(NEED, fail)
    await stock.order(NEED, submit)
    assert len(orders) == len(TEMPLATES)


async def test_a_blueprint_comes_before_all_it_descends_from_over_pages(library, monkeypatch):
    requests = []
    family = {name: pb.Blueprint(blueprint_id=name, title=f"design {name}") for name in "abc"}

    async def get_lineage(request):
        requests.append((request.blueprint_id, request.common_with_blueprint_id, request.page.token))
        at = int(request.page.token or 0)
        reply = pb.GetLineageResponse(entries=[pb.LineageEntry(blueprint_id="abc"[at])])
        reply.page.next_token = str(at + 1) if at < 2 else ""
        return reply

    async def get_blueprint(request):
        return pb.GetBlueprintResponse(blueprint=family[request.blueprint_id])

    monkeypatch.setattr(library, "get_lineage", get_lineage, raising=False)
    monkeypatch.setattr(library, "get_blueprint", get_blueprint, raising=False)
    assert await lineage_of(library, "a") == list(family.values())
    assert requests == [("a", "a", ""), ("a", "a", "1"), ("a", "a", "2")]
