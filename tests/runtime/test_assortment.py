"""What kernels are made of for an interface: bounded, the same for a seed, and Karn's beside the library's."""

from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph, write_graph, write_interface
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.karn.propose import propose
from esper.karn.templates import TEMPLATES
from esper.runtime.assortment import Assortment, designs, offer_generated
from esper.runtime.stock import in_stock, kernel_stock, offer_templates
from esper.tezzeret.check import check

MAP, SMALLER, VECTOR = Interface(Kind.MAP2D, 16), Interface(Kind.MAP2D, 8), Interface(Kind.VECTOR, 16)


class Library:
    """Holds blueprints in memory, a page of ten at a time, and kernels of those in `promoted`."""

    def __init__(self):
        self.blueprints = {}
        self.promoted = []

    async def create_blueprint(self, request):
        assert set(request.parent_ids) <= set(self.blueprints), "a parent is not here"
        name = blueprint_id(read_graph(request.graph))
        made = pb.Blueprint(blueprint_id=name, graph=request.graph, title=request.title)
        made.author, made.source, made.family = request.author, request.source, request.family
        made.parent_ids.extend(request.parent_ids)
        return pb.CreateBlueprintResponse(blueprint=self.blueprints.setdefault(name, made))

    async def list_blueprints(self, request):
        wanted = [b for b in self.blueprints.values() if self._fits(b, request.interface)]
        start = int(request.page.token or 0)
        reply = pb.ListBlueprintsResponse(blueprints=wanted[start : start + 10])
        reply.page.next_token = str(start + 10) if start + 10 < len(wanted) else ""
        return reply

    def _fits(self, blueprint, interface):
        kinds = {write_interface(one).SerializeToString(): one for one in (MAP, SMALLER, VECTOR)}
        return match(read_graph(blueprint.graph), kinds[interface.SerializeToString()])[0]

    async def search_kernels(self, request):
        wanted = self.promoted if request.status == pb.KERNEL_STATUS_VALIDATED else []
        matches = [pb.KernelMatch(kernel=pb.Kernel(blueprint_id=one)) for one in wanted[: request.limit]]
        return pb.SearchKernelsResponse(matches=matches)


async def test_the_librarys_best_and_the_designs_of_the_interface_are_in_stock_over_all_pages():
    library, limits = Library(), Assortment(library=5, generated=2)
    await offer_templates(library)
    for interface in (MAP, SMALLER):
        await offer_generated(library, interface, 3, limits)
    found = await in_stock(library, write_interface(MAP), 3, limits)
    best = [design.blueprint_id for design in propose(MAP)][:5]
    mine = [design.blueprint_id for design in designs(MAP, 3, limits)]
    assert sorted(one.blueprint_id for one in found) == sorted(best + mine)
    assert (await kernel_stock(library, write_interface(MAP), 3, limits))[1] == 7


async def test_a_run_has_nothing_that_was_designed_for_another():
    library, limits, where = Library(), Assortment(library=5, generated=2), write_interface(MAP)
    await offer_templates(library)
    await offer_generated(library, MAP, 3, limits)
    alone = await in_stock(library, where, 3, limits)
    await offer_generated(library, MAP, 4, limits)
    assert await in_stock(library, where, 3, limits) == alone
    others = [one.blueprint_id for one in await in_stock(library, where, 4, limits)]
    assert set(others) - {one.blueprint_id for one in alone} == {one.blueprint_id for one in designs(MAP, 4, limits)}
    others = [one.blueprint_id for one in designs(MAP, 4, limits)]
    library.promoted = [*others * 200, *library.blueprints]  # however many stand before
    ready, _ = await kernel_stock(library, where, 3, limits)
    mine = {kernel.blueprint_id for kernel in ready}
    assert mine >= {one.blueprint_id for one in designs(MAP, 3, limits)}
    assert not mine & {one.blueprint_id for one in designs(MAP, 4, limits)}


async def test_a_design_carries_its_author_its_parents_and_what_was_done():
    library = Library()
    await offer_generated(library, MAP, 1, Assortment())
    karns = [one for one in library.blueprints.values() if one.author == "karn"]
    assert len(karns) == 2
    for one in karns:
        assert one.title.startswith(f"karn_{one.blueprint_id[:8]}")
        assert one.source.startswith("made for map2d[16] float32; ") and one.family
        assert all(library.blueprints[parent].author == "library" for parent in one.parent_ids)
        assert check(read_graph(one.graph), MAP) == (True, ())


async def test_what_people_put_in_is_in_stock():
    library = Library()
    graph = TEMPLATES["gated_attention"].graph
    mine = pb.Blueprint(blueprint_id=blueprint_id(graph), title="mine", author="ada")
    mine.graph.CopyFrom(write_graph(graph))
    library.blueprints[mine.blueprint_id] = mine
    assert await in_stock(library, write_interface(MAP), 0, Assortment(library=1, generated=0)) == [mine]


def test_designs_follow_the_seed_and_stay_within_the_largest_of_the_library():
    def ids(seed, interface=MAP):
        return [design.blueprint_id for design in designs(interface, seed, Assortment(generated=3))]

    assert ids(1) == ids(1) != ids(2)
    assert len(set(ids(1))) == 3
    most = max(design.inference.parameter_count for design in propose(MAP))
    assert all(design.inference.parameter_count <= most for design in designs(MAP, 1, Assortment(generated=6)))
    assert len(ids(1, VECTOR)) == 3
    assert designs(MAP, 1, Assortment(generated=0)) == ()
