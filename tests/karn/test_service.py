"""The architect over a wire: Esper's own server and channel."""

import pytest

from esper.api.common.v1 import interface_pb2
from esper.api.karn.v1 import architect_pb2 as pb
from esper.api.karn.v1 import architect_pb2_grpc as pb_grpc
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph, write_interface
from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
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
    assert [d.title for d in reply.designs] == ["bottleneck_mlp", "low_rank", "normalisation", "wide_mlp"]


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
