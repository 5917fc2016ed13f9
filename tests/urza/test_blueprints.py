"""Blueprints: added once, moved by the rules, listed without shifting."""

import pytest

from esper.api.common.v1.resource_pb2 import PageRequest
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Conflict, InvalidBlueprint, InvalidRequest, NotFound, PreconditionFailed
from esper.urza.library import CentralLibrary

from .fakes import add_blueprint, add_kernel, graph, identify, interface, promotion

ABSENT = "f" * 64


def creation(number: int = 0, **changes: object) -> pb.CreateBlueprintRequest:
    fields = {"graph": graph(number), "title": "t", "family": "f", "author": "karn"}
    return pb.CreateBlueprintRequest(**(fields | changes))


async def move(library: CentralLibrary, blueprint_id: str, status: int, **fields: str) -> pb.Blueprint:
    request = pb.SetBlueprintStatusRequest(blueprint_id=blueprint_id, status=status, reason="because", **fields)
    return (await library.set_blueprint_status(request)).blueprint


async def test_a_blueprint_is_stored_under_its_graphs_id(library: CentralLibrary) -> None:
    reply = await library.create_blueprint(creation(source="arXiv:1502.01852"))
    assert not reply.existed
    assert reply.header.revision == 1
    assert reply.blueprint.blueprint_id == identify(graph())
    assert reply.blueprint.status == pb.BLUEPRINT_STATUS_UNVALIDATED
    got = await library.get_blueprint(pb.GetBlueprintRequest(blueprint_id=reply.blueprint.blueprint_id))
    assert got.blueprint == reply.blueprint
    assert got.blueprint.source == "arXiv:1502.01852"
    assert got.header.revision == 1


async def test_the_same_graph_is_there_already_and_changes_nothing(library: CentralLibrary) -> None:
    first = await library.create_blueprint(creation(title="first"))
    again = await library.create_blueprint(creation(title="second"))
    assert again.existed
    assert again.blueprint == first.blueprint
    assert again.header.revision == 1


async def test_a_bad_graph_is_refused(library: CentralLibrary) -> None:
    bad = graph()
    bad.version = 2
    with pytest.raises(InvalidBlueprint, match="version is 2"):
        await library.create_blueprint(creation(graph=bad))
    assert (await library.verify_ledger()).revision == 0


async def test_parents_must_be_here(library: CentralLibrary) -> None:
    parent = await add_blueprint(library, 1)
    with pytest.raises(InvalidRequest, match=ABSENT) as caught:
        await library.create_blueprint(creation(2, parent_ids=[parent, ABSENT]))
    assert "parent_ids" in caught.value.fields
    reply = await library.create_blueprint(creation(2, parent_ids=[parent]))
    assert reply.blueprint.parent_ids == [parent]


async def test_one_request_id_one_reply(library: CentralLibrary) -> None:
    first = await library.create_blueprint(creation(request_id="r1"))
    await add_blueprint(library, 5)
    again = await library.create_blueprint(creation(request_id="r1"))
    assert again == first, "the first reply, not the state of now"
    with pytest.raises(Conflict, match="'r1'"):
        await library.create_blueprint(creation(7, request_id="r1"))
    with pytest.raises(Conflict, match="'r1'"):
        await move(library, first.blueprint.blueprint_id, pb.BLUEPRINT_STATUS_COMPILING, request_id="r1")
    assert (await library.verify_ledger()).revision == 2


async def test_a_refused_request_id_can_be_used_again(library: CentralLibrary) -> None:
    with pytest.raises(InvalidRequest):
        await library.create_blueprint(creation(request_id="r1", parent_ids=[ABSENT]))
    assert not (await library.create_blueprint(creation(request_id="r1"))).existed


async def test_status_moves_by_the_rules_and_is_written_down(library: CentralLibrary) -> None:
    blueprint_id = await add_blueprint(library)
    moved = await move(library, blueprint_id, pb.BLUEPRINT_STATUS_COMPILING)
    assert (moved.status, moved.status_reason) == (pb.BLUEPRINT_STATUS_COMPILING, "because")
    with pytest.raises(PreconditionFailed, match="is COMPILING and cannot become COMPILING"):
        await move(library, blueprint_id, pb.BLUEPRINT_STATUS_COMPILING)
    with pytest.raises(NotFound, match=ABSENT):
        await move(library, ABSENT, pb.BLUEPRINT_STATUS_COMPILING)
    entries = (await library.list_ledger(pb.ListLedgerRequest())).entries
    assert [entry.action for entry in entries] == ["blueprint.create", "blueprint.status"]
    assert entries[1].detail_json == '{"from":"UNVALIDATED","reason":"because","to":"COMPILING"}'


async def test_validated_needs_a_promoted_kernel(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    blueprint_id = identify(graph())
    with pytest.raises(PreconditionFailed, match="no kernel that is VALIDATED"):
        await move(library, blueprint_id, pb.BLUEPRINT_STATUS_VALIDATED)
    await library.set_kernel_status(promotion(artifact_id))
    assert (await move(library, blueprint_id, pb.BLUEPRINT_STATUS_VALIDATED)).status == pb.BLUEPRINT_STATUS_VALIDATED


async def test_a_missing_blueprint_is_not_found(library: CentralLibrary) -> None:
    with pytest.raises(NotFound, match=f"blueprints/{ABSENT}"):
        await library.get_blueprint(pb.GetBlueprintRequest(blueprint_id=ABSENT))


async def titles(library: CentralLibrary, size: int, token: str = "", **filters: object) -> tuple[list[str], str]:
    page = PageRequest(size=size, token=token)
    reply = await library.list_blueprints(pb.ListBlueprintsRequest(page=page, **filters))
    return [one.title for one in reply.blueprints], reply.page.next_token


async def test_pages_do_not_shift_when_blueprints_arrive_between_them(library: CentralLibrary) -> None:
    for number in range(5):
        await add_blueprint(library, number)
    first, token = await titles(library, 2)
    for number in range(5, 9):
        await add_blueprint(library, number)
    second, token = await titles(library, 2, token)
    third, end = await titles(library, 2, token)
    assert first + second + third == [f"blueprint {number}" for number in (4, 3, 2, 1, 0)]
    assert end == ""


async def test_an_exact_last_page_has_no_next(library: CentralLibrary) -> None:
    for number in range(4):
        await add_blueprint(library, number)
    _, token = await titles(library, 2)
    assert await titles(library, 2, token) == (["blueprint 1", "blueprint 0"], "")


async def test_a_token_of_another_list_is_refused(library: CentralLibrary) -> None:
    for number in range(3):
        await add_blueprint(library, number)
    _, token = await titles(library, 1)
    for filters in ({"family": "norm"}, {"status": pb.BLUEPRINT_STATUS_INVALID}, {"interface": interface()}):
        with pytest.raises(InvalidRequest, match="not issued for this list"):
            await titles(library, 1, token, **filters)
    with pytest.raises(InvalidRequest, match="not issued for this list"):
        await titles(library, 1, "nonsense")
    with pytest.raises(InvalidRequest, match="not issued for this list"):
        await library.list_ledger(pb.ListLedgerRequest(page=PageRequest(token=token)))
    with pytest.raises(InvalidRequest, match="at most 1000"):
        await titles(library, 1001)


async def test_an_interface_lists_those_that_can_be_lowered_across_pages(library: CentralLibrary) -> None:
    for number in range(6):
        await add_blueprint(library, number, graph=graph(number, nodes=1 + number % 2 * 20))
    first, token = await titles(library, 2, interface=interface(channels=8))
    second, end = await titles(library, 2, token, interface=interface(channels=8))
    assert (first, second, end) == (["blueprint 4", "blueprint 2"], ["blueprint 0"], "")
    everything, _ = await titles(library, 10, interface=interface(channels=64))
    assert len(everything) == 6
    with pytest.raises(InvalidRequest, match=r"interface\.kind is not set"):
        await titles(library, 2, interface=interface(kind=0))


async def test_archived_blueprints_are_listed_when_asked_for(library: CentralLibrary) -> None:
    blueprint_id = await add_blueprint(library)
    await move(library, blueprint_id, pb.BLUEPRINT_STATUS_ARCHIVED)
    assert await titles(library, 5) == ([], "")
    assert await titles(library, 5, status=pb.BLUEPRINT_STATUS_ARCHIVED) == (["blueprint 0"], "")
