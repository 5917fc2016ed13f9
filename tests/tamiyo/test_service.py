"""The controller over a wire: Esper's own server and channel."""

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from esper.api.common.v1 import resource_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2_grpc as pb_grpc
from esper.errors import InvalidRequest, NotFound, PreconditionFailed
from esper.rpc.client import open_channel
from esper.rpc.server import Server
from esper.tamiyo.policies import POLICIES
from esper.tamiyo.service import ControllerServicer, decision_log

from .scenes import RUN, answer, controller, packet

NAME = "esper.api.tamiyo.v1.ControllerService"


@pytest.fixture
def decisions(tmp_path):
    log = decision_log(tmp_path / "decisions.sqlite")
    yield log
    log.close()


@pytest.fixture
async def channel(decisions):
    server = Server(tokens=None)
    server.mount(pb_grpc.add_ControllerServiceServicer_to_server, ControllerServicer(controller(), decisions))
    port = await server.start("127.0.0.1:0")
    channel = open_channel(f"127.0.0.1:{port}", token=None)
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(grace_s=0)


@pytest.fixture
def stub(channel):
    return pb_grpc.ControllerServiceStub(channel)


def store(log, count, *, run_id=RUN):
    """Decisions of so many decision points; every third one changes something."""
    for number in range(1, count + 1):
        policy = "heuristic" if number % 3 == 0 else "never"
        for decision in answer(packet(policy, sequence=number, run_id=run_id)).decisions:
            log.append(decision)


async def listed(stub, size, **fields):
    """Sequences, page by page."""
    found, token = [], ""
    while True:
        page = resource_pb2.PageRequest(size=size, token=token)
        reply = await stub.ListDecisions(pb.ListDecisionsRequest(page=page, **({"run_id": RUN} | fields)))
        found.append([decision.sequence for decision in reply.decisions])
        token = reply.page.next_token
        if not token:
            return found


async def test_it_is_serving(channel):
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME))
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_decision_point_is_answered_as_in_process(stub):
    reply = await stub.Decide(pb.DecideRequest(state=packet()))
    expected = answer(packet())
    expected.header.SetInParent()
    assert reply == expected


async def test_asking_records_nothing(stub, decisions):
    await stub.Decide(pb.DecideRequest(state=packet()))
    assert decisions.last_position == 0


@pytest.mark.parametrize(
    "state, error, said",
    [
        (None, InvalidRequest, "state"),
        (packet(run_id="No Such Run"), InvalidRequest, "run_id"),
        (packet(sequence=0), InvalidRequest, "sequence"),
        (packet(settings={"min_gain": 1.0}), InvalidRequest, "min_gain"),
        (packet("gnn"), InvalidRequest, "'gnn' is not in this release"),
        (packet("greedy"), InvalidRequest, "there are never, "),
        (packet(controller_state=b"nonsense"), InvalidRequest, "not what a controller wrote"),
        (packet(controller_state=b'{"version":9}'), PreconditionFailed, "version 9"),
    ],
)
async def test_a_packet_that_cannot_be_answered_says_why(stub, state, error, said):
    with pytest.raises(error, match=said):
        await stub.Decide(pb.DecideRequest(state=state))


async def test_a_decision_is_found_with_all_it_rested_on(stub, decisions):
    store(decisions, 3)
    reply = await stub.GetDecision(pb.GetDecisionRequest(decision_id="run-1/3/1"))
    assert reply.decision == answer(packet(sequence=3)).decisions[0]
    assert reply.header.revision == 3


async def test_a_decision_that_was_not_made_is_not_found(stub):
    with pytest.raises(NotFound, match="no decision 'run-1/9/1'; ids are <run>/<decision point>/<number>"):
        await stub.GetDecision(pb.GetDecisionRequest(decision_id="run-1/9/1"))
    with pytest.raises(InvalidRequest, match="decision_id"):
        await stub.GetDecision(pb.GetDecisionRequest())


async def test_decisions_are_listed_newest_first_and_the_last_page_is_never_empty(stub, decisions):
    store(decisions, 6)
    store(decisions, 2, run_id="run-2")
    assert await listed(stub, 4) == [[6, 5, 4, 3], [2, 1]]
    assert await listed(stub, 3) == [[6, 5, 4], [3, 2, 1]]
    assert await listed(stub, 0) == [[6, 5, 4, 3, 2, 1]]
    assert await listed(stub, 4, run_id="run-3") == [[]]


async def test_only_those_that_change_something_are_listed_on_request(stub, decisions):
    store(decisions, 6)
    assert await listed(stub, 1, only_changes=True) == [[6], [3]]


async def test_a_page_does_not_move_when_newer_decisions_come(stub, decisions):
    store(decisions, 3)
    page = resource_pb2.PageRequest(size=2)
    first = await stub.ListDecisions(pb.ListDecisionsRequest(run_id=RUN, page=page))
    store(decisions, 5)
    page.token = first.page.next_token
    second = await stub.ListDecisions(pb.ListDecisionsRequest(run_id=RUN, page=page))
    assert [d.sequence for d in second.decisions] == [1]


async def test_a_token_of_another_list_is_refused(stub, decisions):
    store(decisions, 3)
    page = resource_pb2.PageRequest(size=1)
    page.token = (await stub.ListDecisions(pb.ListDecisionsRequest(run_id=RUN, page=page))).page.next_token
    with pytest.raises(InvalidRequest, match="not issued for this list"):
        await stub.ListDecisions(pb.ListDecisionsRequest(run_id=RUN, page=page, only_changes=True))
    with pytest.raises(InvalidRequest, match="run_id"):
        await stub.ListDecisions(pb.ListDecisionsRequest())


async def test_the_policies_are_listed_with_what_they_do(stub):
    reply = await stub.ListPolicies(pb.ListPoliciesRequest())
    assert [p.name for p in reply.policies] == list(POLICIES)
    assert {p.name for p in reply.policies if p.uses_nursery} == {"heuristic", "bandit"}
    assert all(p.description for p in reply.policies)
