"""The architect over a wire: Esper's own server and channel."""

import pytest

from esper.api.common.v1 import interface_pb2
from esper.api.karn.v1 import architect_pb2 as pb
from esper.api.karn.v1 import architect_pb2_grpc as pb_grpc
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph, write_interface
from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.matching import match
from esper.errors import InvalidRequest
from esper.karn.service import ArchitectServicer
from esper.karn.templates import TEMPLATES
from esper.rpc.client import open_channel
from esper.rpc.server import Server

MAP = Interface(Kind.MAP2D, 16)


@pytest.fixture
async def stub():
    server = Server(tokens=None)
    server.mount(pb_grpc.add_ArchitectServiceServicer_to_server, ArchitectServicer())
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
        await ArchitectServicer().ProposeBlueprints(pb.ProposeBlueprintsRequest(), None)
    causal = interface_pb2.Interface(kind=4, channels=8, element_type=1, causal=True)
    with pytest.raises(InvalidRequest, match="interface is causal on map2d"):
        await ArchitectServicer().ListTemplates(pb.ListTemplatesRequest(interface=causal), None)


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
