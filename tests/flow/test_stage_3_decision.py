"""Stage 3, analysis and decision: every decision has its kind, confidence, reason and plan."""

import itertools

import pytest

from esper.api.tamiyo.v1 import controller_pb2, controller_pb2_grpc

KINDS = {
    controller_pb2.DECISION_KIND_ADD_SEED,
    controller_pb2.DECISION_KIND_REMOVE_SEED,
    controller_pb2.DECISION_KIND_MODIFY,
    controller_pb2.DECISION_KIND_OPTIMIZE,
    controller_pb2.DECISION_KIND_NONE,
}


@pytest.fixture
async def decisions(channel):
    stub = controller_pb2_grpc.ControllerServiceStub(channel)
    return list((await stub.ListDecisions(controller_pb2.ListDecisionsRequest(run_id="stages"))).decisions)


async def test_a_decision_is_of_a_known_kind_with_confidence_and_reason(decisions):
    assert decisions
    for decision in decisions:
        assert decision.kind in KINDS
        assert 0 <= decision.confidence <= 1 and 0 <= decision.urgency <= 1
        assert decision.reason and decision.policy == "bandit"


async def test_a_plan_stands_before_every_change(decisions):
    changes = [d for d in decisions if d.kind != controller_pb2.DECISION_KIND_NONE]
    assert changes
    for decision in changes:
        assert decision.plan.steps and decision.plan.preconditions and decision.plan.undo
        assert decision.plan.commands


async def test_a_growth_event_weighs_reward_against_exploration(decisions):
    chosen = [c for d in decisions if d.kind == controller_pb2.DECISION_KIND_ADD_SEED for c in d.candidates if c.chosen]
    assert chosen
    assert all(c.HasField("expected_reward") and c.HasField("exploration_bonus") for c in chosen)
    assert any(c.expected_reward > 0 and c.exploration_bonus > 0 for c in chosen)


async def test_events_keep_their_distance(stage):
    begun = sorted({e["step"] for e in stage.events("transition") if e["to"] == "GERMINATED"})
    assert begun and begun[0] >= 150
    assert all(later - earlier >= 250 for earlier, later in itertools.pairwise(begun))


async def test_a_decision_can_be_asked_for_by_its_id(channel, decisions):
    stub = controller_pb2_grpc.ControllerServiceStub(channel)
    request = controller_pb2.GetDecisionRequest(decision_id=decisions[0].decision_id)
    assert (await stub.GetDecision(request)).decision == decisions[0]
