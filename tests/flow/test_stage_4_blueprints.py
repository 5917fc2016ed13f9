"""Stage 4, blueprints: the library holds them as graphs, and search gives what fits and is validated."""

import pytest

from esper.api.karn.v1 import architect_pb2, architect_pb2_grpc
from esper.api.urza.v1 import library_pb2, library_pb2_grpc
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph, write_graph, write_interface
from esper.errors import InvalidRequest
from esper.karn.templates import TEMPLATES


@pytest.fixture
async def library(channel):
    return library_pb2_grpc.LibraryServiceStub(channel)


async def test_a_blueprint_is_its_graph_and_carries_where_it_comes_from(library):
    template = TEMPLATES["conv3"]
    request = library_pb2.GetBlueprintRequest(blueprint_id=blueprint_id(template.graph))
    blueprint = (await library.GetBlueprint(request)).blueprint
    assert read_graph(blueprint.graph) == template.graph
    assert blueprint.title == "conv3" and blueprint.family and blueprint.author and blueprint.source


async def test_an_unknown_operator_is_refused(library):
    graph = write_graph(TEMPLATES["conv3"].graph)
    graph.nodes[0].operator = "telepathy"
    request = library_pb2.CreateBlueprintRequest(graph=graph, title="odd", author="test")
    with pytest.raises(InvalidRequest, match="telepathy"):
        await library.CreateBlueprint(request)


async def test_a_search_by_interface_status_and_tag_gives_only_what_has_them(library, loop):
    interface = write_interface(loop.handle["conv1"].site.interface)
    request = library_pb2.SearchKernelsRequest(
        interface=interface, status=library_pb2.KERNEL_STATUS_VALIDATED, limit=100
    )
    found = [match.kernel for match in (await library.SearchKernels(request)).matches]
    assert found
    assert all(k.status == library_pb2.KERNEL_STATUS_VALIDATED and k.interface == interface for k in found)
    tag = next(iter(found[0].tags))
    request.required_tags.append(tag)
    tagged = [match.kernel for match in (await library.SearchKernels(request)).matches]
    assert tagged and all(tag in kernel.tags for kernel in tagged)


async def test_the_architect_proposes_what_the_library_accepts(channel, library, loop):
    architect = architect_pb2_grpc.ArchitectServiceStub(channel)
    interface = write_interface(loop.handle["conv2"].site.interface)
    request = architect_pb2.ProposeBlueprintsRequest(interface=interface, limit=2)
    designs = (await architect.ProposeBlueprints(request)).designs
    assert len(designs) == 2
    for design in designs:
        made = await library.CreateBlueprint(
            library_pb2.CreateBlueprintRequest(graph=design.graph, title=design.title, author="karn")
        )
        assert made.blueprint.blueprint_id == blueprint_id(read_graph(design.graph))
