"""What kernels are made of for an interface: bounded, the same for a seed, and Karn's beside the library's."""

from dataclasses import replace

import pytest

from esper.api.kasmina.v1.telemetry_pb2 import HealthSignal
from esper.api.tolaria.v1.state_pb2 import SiteState
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.keys import TrustRoots
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph, write_graph, write_interface
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.karn.opportunity import Opportunity, answers
from esper.karn.propose import propose
from esper.karn.templates import TEMPLATES
from esper.runtime import assortment
from esper.runtime.assortment import ASSORTMENT, Assortment, Need, designs, needs_of, offer_generated, own
from esper.runtime.stock import in_stock, offer_templates
from esper.tezzeret.check import check
from esper.urza.service import open_library

MAP, SMALLER, VECTOR = Interface(Kind.MAP2D, 16), Interface(Kind.MAP2D, 8), Interface(Kind.VECTOR, 16)
TOKENS = Interface(Kind.TOKENS, 16)
CONVOLUTION = (Opportunity.DECOMPOSITION, Opportunity.CAPACITY)


def need(interface, seed, limits=ASSORTMENT, kinds=CONVOLUTION):
    return Need(interface, kinds, seed, limits)


def site(layer_kind, interface=TOKENS, **read):
    return SiteState(layer_kind=layer_kind, interface=write_interface(interface), **read)


class Library:
    """Holds blueprints in memory, a page of ten at a time."""

    def __init__(self):
        self.blueprints = {}

    async def create_blueprint(self, request):
        # one id stands for one request, and which moves come to a design is no part of it
        assert not request.request_id or request.author == "library"
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


async def test_the_librarys_best_and_the_designs_of_the_interface_are_in_stock_over_all_pages():
    library, limits = Library(), Assortment(library=5, generated=2)
    await offer_templates(library)
    for interface in (MAP, SMALLER):
        await offer_generated(library, need(interface, 3, limits))
    found = await in_stock(library, need(MAP, 3, limits))
    best = [design.blueprint_id for design in propose(MAP)][:5]
    mine = [design.blueprint_id for design in designs(need(MAP, 3, limits))]
    assert len(found) == 7
    assert sorted(one.blueprint_id for one in found) == sorted(best + mine)


async def test_a_run_has_nothing_that_was_designed_for_another():
    library, mine, others = Library(), need(MAP, 3), need(MAP, 4)
    await offer_templates(library)
    await offer_generated(library, mine)
    alone = await in_stock(library, mine)
    await offer_generated(library, others)
    assert await in_stock(library, mine) == alone
    theirs = {one.blueprint_id for one in await in_stock(library, others)}
    assert theirs - {one.blueprint_id for one in alone} == own(others)


async def test_a_design_carries_its_author_its_parents_and_what_was_done():
    library = Library()
    await offer_generated(library, need(MAP, 1))
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
    assert await in_stock(library, need(MAP, 0, Assortment(library=1, generated=0))) == [mine]


def test_designs_follow_the_seed_and_stay_within_the_largest_of_the_library():
    def ids(seed, interface=MAP):
        return [design.blueprint_id for design in designs(need(interface, seed, Assortment(generated=3)))]

    assert ids(1) == ids(1) != ids(2)
    assert len(set(ids(1))) == 3
    most = max(design.inference.parameter_count for design in propose(MAP))
    assert all(design.inference.parameter_count <= most for design in designs(need(MAP, 1, Assortment(generated=6))))
    assert len(ids(1, VECTOR)) == 3
    assert designs(need(MAP, 1, Assortment(generated=0))) == ()


@pytest.mark.parametrize(
    ("layer_kind", "kinds"),
    [
        ("LayerNorm", {Opportunity.NORMALISATION}),
        ("MultiheadAttention", {Opportunity.ATTENTION}),
        ("GELU", {Opportunity.ACTIVATION}),
        ("Linear", {Opportunity.DECOMPOSITION, Opportunity.CAPACITY}),
        ("Block", {Opportunity.CAPACITY}),
    ],
)
def test_what_a_run_gets_from_karn_is_what_its_sites_could_be_grown_for(layer_kind, kinds):
    (one,) = needs_of([site(layer_kind)], 3)
    assert set(one.kinds) == kinds
    made = designs(one)
    assert len(made) == 2
    for wanted in kinds:
        assert any(answers(design.graph, TOKENS, wanted)[0] for design in made)


def test_sites_of_one_interface_share_a_need_and_every_kind_comes_first_for_some_seed():
    sites = [site("Linear", MAP), site("Linear"), site("LayerNorm"), site("Linear")]
    first, second = needs_of(sites, 0)
    assert (first.interface, first.kinds) == (MAP, CONVOLUTION)
    assert (second.interface, set(second.kinds)) == (TOKENS, {*CONVOLUTION, Opportunity.NORMALISATION})
    some = [needs_of(sites, seed)[1] for seed in range(12)]
    reasons = {designs(one)[0].reason.removeprefix("for ").partition(" ")[0] for one in some}
    assert reasons == {"decomposition", "capacity", "normalisation"}


def test_a_runs_needs_are_those_of_its_hello_whatever_it_has_grown_and_read_since():
    hello = [site("Linear", parameter_count=40), site("ReLU")]
    health = HealthSignal(dead_ratio=0.9)
    later = [site("Linear", parameter_count=4000, health=health), site("ReLU", parameter_count=9, health=health)]
    assert needs_of(hello, 1) == needs_of(later, 1) == needs_of([*later, *later], 1)


async def test_a_design_that_two_runs_come_to_by_other_moves_is_one_blueprint(tmp_path):
    library = await open_library(f"sqlite+aiosqlite:///{tmp_path}/library.db", f"file://{tmp_path}/blobs", TrustRoots())
    (mine, *_), moved = designs(need(MAP, 3)), []
    for moves in (("widen",), ("rank", "widen")):
        moved.append(replace(mine, parents=(), moves=moves))
    for one in moved:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(assortment, "designs", lambda _, one=one: (one,))
            await offer_generated(library, need(MAP, 3))
    found = (await library.list_blueprints(pb.ListBlueprintsRequest())).blueprints
    assert [one.source for one in found] == ["made for map2d[16] float32; widen"]
    await library.close()
