"""The architect over a wire: Esper's own server and channel."""

from random import Random

import pytest

from esper.api.common.v1 import interface_pb2
from esper.api.karn.v1 import architect_pb2 as pb
from esper.api.karn.v1 import architect_pb2_grpc as pb_grpc
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph, write_interface
from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.errors import InvalidRequest, PreconditionFailed
from esper.karn.generate import generate
from esper.karn.measured import Measurements
from esper.karn.opportunity import Found, Opportunity
from esper.karn.service import ArchitectServicer
from esper.karn.templates import TEMPLATES
from esper.rpc.client import open_channel
from esper.rpc.server import Server
from tests.karn.designs import PARENTS
from tests.karn.evaluations import BATCH, SIDE, TARGET, Evaluations, law

MAP = Interface(Kind.MAP2D, 16)


def architect(library=None, tried=None):
    """Without measurements and with an empty archive, but for what is given."""
    return ArchitectServicer(Measurements(library or Evaluations()), lambda kind: (tried or {}).get(kind, {}))


@pytest.fixture
async def stub():
    server = Server(tokens=None)
    server.mount(pb_grpc.add_ArchitectServiceServicer_to_server, architect())
    port = await server.start("127.0.0.1:0")
    channel = open_channel(f"127.0.0.1:{port}", token=None)
    try:
        yield pb_grpc.ArchitectServiceStub(channel)
    finally:
        await channel.close()
        await server.stop(grace_s=0)


async def test_the_library_is_listed_by_title(stub):
    reply = await stub.ListTemplates(pb.ListTemplatesRequest())
    assert [design.title for design in reply.designs] == sorted(TEMPLATES)
    assert all(design.parameter_count == 0 for design in reply.designs)
    assert reply.header.revision == 0


async def test_with_an_interface_only_what_fits_is_listed(stub):
    request = pb.ListTemplatesRequest(interface=write_interface(Interface(Kind.VECTOR, 8)))
    reply = await stub.ListTemplates(request)
    fitting = [t for t in sorted(TEMPLATES) if match(TEMPLATES[t].graph, Interface(Kind.VECTOR, 8))[0]]
    assert [d.title for d in reply.designs] == fitting
    assert {"low_rank", "wide_mlp"} < set(fitting) < set(TEMPLATES)


async def test_a_proposal_is_a_graph_with_its_own_id_and_cost(stub):
    reply = await stub.ProposeBlueprints(pb.ProposeBlueprintsRequest(interface=write_interface(MAP), limit=3))
    assert [design.title for design in reply.designs] == ["conv3", "depthwise_separable", "causal_depthwise"]
    for design in reply.designs:
        graph, template = read_graph(design.graph), TEMPLATES[design.title]
        assert design.blueprint_id == blueprint_id(graph)
        assert design.parameter_count == infer(graph, MAP).parameter_count
        assert design.forward_flops_per_position == infer(graph, MAP).forward_flops_per_position
        assert (design.family, design.source) == (template.family, template.source)
        assert design.reason.startswith("prior rank ")


async def test_zero_limit_stands_for_eight_and_the_budget_is_kept(stub):
    request = pb.ProposeBlueprintsRequest(interface=write_interface(MAP))
    assert len((await stub.ProposeBlueprints(request)).designs) == 8
    request.max_parameters = 200
    found = await stub.ProposeBlueprints(request)
    assert 0 < len(found.designs) < 8
    assert all(design.parameter_count <= 200 for design in found.designs)
    request.max_parameters = 1
    assert not (await stub.ProposeBlueprints(request)).designs


@pytest.mark.parametrize(
    "request_",
    [
        pb.ProposeBlueprintsRequest(),
        pb.ProposeBlueprintsRequest(interface=interface_pb2.Interface(channels=8)),
        pb.ProposeBlueprintsRequest(interface=write_interface(MAP), limit=65),
    ],
)
async def test_a_wrong_request_is_invalid(stub, request_):
    with pytest.raises(InvalidRequest):
        await stub.ProposeBlueprints(request_)


async def test_the_servicer_names_what_is_missing():
    with pytest.raises(InvalidRequest, match="interface is not set; say what the site offers"):
        await architect().ProposeBlueprints(pb.ProposeBlueprintsRequest(), None)
    causal = interface_pb2.Interface(kind=4, channels=8, element_type=1, causal=True)
    with pytest.raises(InvalidRequest, match="interface is causal on map2d"):
        await architect().ListTemplates(pb.ListTemplatesRequest(interface=causal), None)


def asked(**fields):
    values = {"interface": write_interface(MAP), "kind": pb.OPPORTUNITY_KIND_CAPACITY, "limit": 3} | fields
    return pb.GenerateBlueprintsRequest(**values)


async def test_designs_are_made_for_an_opportunity_with_their_genealogy(stub):
    reply = await stub.GenerateBlueprints(asked(evidence="grows slowly", max_parameters=2000, seed=5))
    assert len(reply.designs) == 3 and reply.reason == ""
    library = {blueprint_id(template.graph) for template in TEMPLATES.values()}
    for design in reply.designs:
        assert design.blueprint_id == blueprint_id(read_graph(design.graph)) not in library
        assert design.title.startswith(f"karn_{design.blueprint_id[:8]}")
        assert 0 < design.parameter_count <= 2000
        assert set(design.parent_ids) <= library and design.moves
        assert "grows slowly" in design.reason
    again = await stub.GenerateBlueprints(asked(evidence="grows slowly", max_parameters=2000, seed=5))
    assert again == reply
    assert await stub.GenerateBlueprints(asked(seed=6)) != reply


async def test_preferred_families_come_first_and_what_is_excluded_does_not_come(stub):
    plain = (await stub.GenerateBlueprints(asked(limit=8))).designs
    last = plain[-1].family
    reply = await stub.GenerateBlueprints(asked(limit=8, preferred_tags=[last]))
    count = sum(design.family == last for design in plain)
    assert [design.family for design in reply.designs[:count]] == [last] * count
    others = await stub.GenerateBlueprints(asked(excluded_blueprint_ids=[d.blueprint_id for d in plain]))
    assert not {d.blueprint_id for d in others.designs} & {d.blueprint_id for d in plain}


async def test_nothing_to_make_is_a_reply_that_says_why(stub):
    vector = write_interface(Interface(Kind.VECTOR, 8))
    reply = await stub.GenerateBlueprints(asked(interface=vector, kind=pb.OPPORTUNITY_KIND_ATTENTION, limit=1))
    assert not reply.designs
    assert "0 of 1 designs" in reply.reason


@pytest.mark.parametrize("wrong", [{"kind": 0}, {"kind": 9}, {"interface": None}, {"limit": 65}])
async def test_a_wrong_opportunity_is_invalid(stub, wrong):
    with pytest.raises(InvalidRequest):
        await stub.GenerateBlueprints(asked(**wrong))


@pytest.fixture(scope="module")
def measured():
    """A library of 48 designs that were measured."""
    library = Evaluations()
    for design in generate(Found("", MAP, Opportunity.CAPACITY, "e"), Random(0), PARENTS, 48)[0]:
        library.measure(design.graph)
    return library


def budget(**fields):
    return pb.Budget(**({"target": TARGET, "batch": BATCH, "positions": SIDE * SIDE} | fields))


async def test_a_budget_is_obeyed_and_each_reply_says_what_was_predicted_and_how_far_that_is_off(measured):
    karn = architect(measured)
    free = await karn.GenerateBlueprints(asked(budget=budget(), limit=12), None)
    times = sorted(design.prediction.forward_us for design in free.designs)
    limit_us, peaks = times[4], [design.prediction.peak_bytes for design in free.designs]
    tight = budget(max_forward_us=limit_us, max_peak_bytes=max(peaks))
    reply = await karn.GenerateBlueprints(asked(budget=tight, limit=12), None)
    assert len(reply.designs) == 12 and times[-1] > limit_us
    for design in reply.designs:
        said = design.prediction
        assert said.forward_us <= limit_us and said.peak_bytes <= max(peaks)
        assert (said.target, said.measurement_count, said.input_measured) == (TARGET, 48, True)
        assert 0 < said.forward_us_error < 0.5 and 0 < said.peak_bytes_error < 0.5
        assert (said.forward_us, said.peak_bytes) == pytest.approx(law(read_graph(design.graph)), rel=0.5)
    assert await karn.GenerateBlueprints(asked(budget=tight, limit=12), None) == reply


async def test_a_budget_that_nothing_keeps_gets_nothing_and_the_reason(measured):
    small = budget(max_forward_us=0.001)
    reply = await architect(measured).GenerateBlueprints(asked(budget=small, limit=1), None)
    assert not reply.designs and f"predicted to take over 0.001 us on {TARGET}" in reply.reason
    small = budget(max_peak_bytes=7)
    reply = await architect(measured).GenerateBlueprints(asked(budget=small, limit=1), None)
    assert not reply.designs and f"predicted to need over 7 bytes on {TARGET}" in reply.reason


async def test_an_input_that_was_not_measured_is_said_to_be_one(measured):
    reply = await architect(measured).GenerateBlueprints(asked(budget=budget(batch=4), limit=1), None)
    assert [design.prediction.input_measured for design in reply.designs] == [False]


async def test_without_a_budget_nothing_is_predicted_and_no_measurement_is_needed(stub):
    reply = await stub.GenerateBlueprints(asked())
    assert reply.designs and not any(design.HasField("prediction") for design in reply.designs)


async def test_a_budget_is_refused_where_too_little_was_measured(stub):
    with pytest.raises(PreconditionFailed, match=f"0 measurements on {TARGET}, at least 40 are needed"):
        await stub.GenerateBlueprints(asked(budget=budget(max_forward_us=50)))


@pytest.mark.parametrize(
    "wrong", [{"target": ""}, {"batch": 0}, {"positions": 0}, {"max_forward_us": -1}, {"max_forward_us": float("inf")}]
)
async def test_a_wrong_budget_is_invalid(stub, wrong):
    with pytest.raises(InvalidRequest):
        await stub.GenerateBlueprints(asked(budget=budget(**wrong)))


async def test_a_budget_of_positions_that_an_interface_has_not_is_invalid(stub):
    vector = write_interface(Interface(Kind.VECTOR, 8))
    with pytest.raises(InvalidRequest, match=r"budget.positions is 64, and vector\[8\] float32 has none; say 1"):
        await stub.GenerateBlueprints(asked(interface=vector, budget=budget()))


async def test_what_was_tried_becomes_a_parent_for_its_kind():
    found = Found("", MAP, Opportunity.CAPACITY, "e")
    tried = {design.blueprint_id: design.graph for design in generate(found, Random(7), PARENTS, 8)[0]}
    karn = architect(tried={Kind.MAP2D: tried})
    reply = await karn.GenerateBlueprints(asked(limit=16), None)
    named = {parent for design in reply.designs for parent in design.parent_ids}
    assert named & set(tried) and named & set(PARENTS) and named <= {*tried, *PARENTS}
    assert not {design.blueprint_id for design in reply.designs} & set(tried)
    again = architect(tried={Kind.MAP2D: dict(reversed(tried.items()))})
    assert await again.GenerateBlueprints(asked(limit=16), None) == reply
    tokens = asked(limit=8, interface=write_interface(Interface(Kind.TOKENS, 16)))
    others = await karn.GenerateBlueprints(tokens, None)
    assert not {parent for design in others.designs for parent in design.parent_ids} & set(tried)
