"""Messages to values and back: nothing lost, nothing made up, nothing misread."""

import protovalidate
import pytest

from esper.api.common.v1 import interface_pb2, seed_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.errors import InvalidConfig, InvalidRequest
from esper.tamiyo.actions import Act, Advance, Cancel, Cull, Decided, Insert, Plan
from esper.tamiyo.codec import interface_key, parse_key, read_packet, write_decision
from esper.tamiyo.view import Limits, SeedKey

from .scenes import RUN, VECTOR8, answer, measured, noon, packet, seed, seeds, site, trial, verdict

PLAN = Plan(
    steps=("do it",), preconditions=("it can be done",), undo="undo it", parameters=5, flops=7.0, cooldown_steps=9
)


def test_a_packet_is_read_whole():
    rollback = state_pb2.Rollback(step=9, restored_step=5, reason="nan", locked_seeds=["a.b/1"])
    state = packet(
        "bandit",
        budget={
            "max_added_parameters": 1,
            "max_total_flops_ratio": 2.5,
            "max_events": 3,
            "max_added_forward_us": 4.5,
            "max_graft_bytes": 5,
        },
        spending={"parameters": 11, "initial_parameters": 10, "train_flops": 3.0, "nursery_flops": 4.0, "events": 2},
        rollbacks=[rollback],
        results=[trial({("fc1", 0): [0.1]}), verdict(measured(0.1), seed="a.b/3", round=2, control="ablation")],
        paused=True,
        final=True,
    )
    view = read_packet(state)
    assert (view.run_id, view.sequence, view.step, view.total_steps) == (RUN, 10, 1000, 10_000)
    assert (view.validation_loss, view.best_validation_step) == (0.55, 900)
    assert view.limits == Limits(
        max_added_parameters=1, max_total_flops_ratio=2.5, max_events=3, max_added_forward_us=4.5, max_graft_bytes=5
    )
    assert (view.parameters, view.initial_parameters, view.nursery_flops, view.events) == (11, 10, 4.0, 2)
    assert (view.scheme.policy, view.scheme.nursery_steps, view.scheme.rule.min_gain) == ("bandit", 300, 0.01)
    assert view.rollbacks[0].locked == (SeedKey("a.b", 1),)
    assert view.trials[0].curves[0].points[0][1].gain == pytest.approx(0.1)
    assert view.measures[0].seed == SeedKey("a.b", 3)
    assert (view.measures[0].round, view.measures[0].control) == (2, "ablation")
    assert view.paused and view.final


def test_what_was_not_measured_is_absent_and_zero_is_a_measurement():
    view = read_packet(packet(sites=[site(gradient_norm=None, dead_ratio=0.0, activation_mean=float("nan"))]))
    assert view.sites[0].health == {"dead_ratio": 0.0}
    assert read_packet(packet(validation_loss=None)).validation_loss is None


def test_results_that_say_nothing_to_a_controller_are_passed_over():
    validation = nursery_pb2.JobResult(measure=nursery_pb2.MeasureResult(label="validation", arm_losses=[0.5]))
    twin = nursery_pb2.JobResult(twin=nursery_pb2.TwinResult())
    view = read_packet(packet(results=[validation, twin]))
    assert not view.measures and not view.trials


def test_a_probe_is_no_verdict():
    probe = nursery_pb2.MeasureResult(label="probe:p1:fc1/0", paired=measured(-0.5))
    state = packet(seeds=seeds(fc1_0="EVALUATING"), results=[nursery_pb2.JobResult(measure=probe)])
    (found,) = read_packet(state).measures
    assert (found.kind, found.probe_id, found.seed) == ("probe", "p1", SeedKey("fc1", 0))
    assert not answer(state).decisions[0].plan.commands


@pytest.mark.parametrize(
    "label",
    [
        "verdict:",
        "verdict:fc1/0",
        "verdict:fc1/0:1",
        "verdict:fc1/0:one:twin",
        "verdict:fc1/0:1:guess",
        "verdict:fc1:1:twin",
        "verdict:fc1/x:1:twin",
        "verdict:/0:1:twin",
        "probe:p1:fc1",
    ],
)
def test_a_label_nobody_writes_is_an_invalid_request(label):
    result = nursery_pb2.JobResult(measure=nursery_pb2.MeasureResult(label=label, paired=measured(0.1)))
    with pytest.raises(InvalidRequest):
        read_packet(packet(results=[result]))


@pytest.mark.parametrize("number", [0, 13])
def test_a_state_that_does_not_exist_is_an_invalid_request(number):
    broken = seed()
    broken.state = number
    with pytest.raises(InvalidRequest, match=f"seed fc1/0 is in state {number}"):
        read_packet(packet(seeds=[broken]))


def test_a_strategy_that_does_not_exist_is_refused_by_name():
    with pytest.raises(InvalidConfig, match="no graft strategy 'additive'; there are residual, convex, gated"):
        read_packet(packet(settings={"strategy": "additive"}))


@pytest.mark.parametrize(
    "name, strategy",
    [
        ("", seed_pb2.GRAFT_STRATEGY_RESIDUAL),
        ("convex", seed_pb2.GRAFT_STRATEGY_CONVEX),
        ("gated", seed_pb2.GRAFT_STRATEGY_GATED),
    ],
)
def test_the_strategy_of_the_run_is_that_of_its_grafts(name, strategy):
    (command,) = answer(packet(settings={"strategy": name})).decisions[0].plan.commands
    assert {a.strategy for a in command.germinate.assignments} == {strategy}


@pytest.mark.parametrize("slot", [0, 12])
@pytest.mark.parametrize("name", ["fc1", "a.b.c", "odd/name"])
def test_a_seed_is_written_and_read_back(name, slot):
    assert parse_key(str(SeedKey(name, slot))) == SeedKey(name, slot)


def test_interfaces_that_differ_have_different_keys():
    def interface(**changes):
        made = interface_pb2.Interface()
        made.CopyFrom(VECTOR8)
        for name, value in changes.items():
            setattr(made, name, value)
        return interface_key(made)

    tokens = interface_pb2.TENSOR_KIND_TOKENS
    keys = [
        interface(),
        interface(channels=9),
        interface(kind=tokens),
        interface(kind=tokens, causal=True),
        interface(element_type=interface_pb2.ELEMENT_TYPE_BFLOAT16),
    ]
    assert len(set(keys)) == len(keys)
    assert interface() == interface()


@pytest.mark.parametrize(
    "order, action, expected",
    [
        (Insert(SeedKey("fc1", 2), "event-1", 30), "insert", {"ramp_steps": 30, "event_id": "event-1"}),
        (Advance(SeedKey("fc1", 2), "FOSSILIZED"), "advance", {"to": seed_pb2.SEED_STATE_FOSSILIZED}),
        (Cull(SeedKey("fc1", 2), True), "cull", {"return_to_twin": True}),
        (Cancel(SeedKey("fc1", 2)), "cancel", {}),
    ],
)
def test_every_order_is_a_command_the_contract_takes(order, action, expected):
    decided = Decided(Act.MODIFY, "because", ((order, "so"),), PLAN, 0.5, 0.25)
    decision = write_decision(decided, read_packet(packet()), 3, noon())
    protovalidate.validate(decision)
    (command,) = decision.plan.commands
    assert command.WhichOneof("action") == action
    said = getattr(command, action)
    assert (said.seed.run_id, said.seed.site, said.seed.slot) == (RUN, "fc1", 2)
    assert all(getattr(said, name) == value for name, value in expected.items())
    assert (command.command_id, command.decision_id) == ("run-1/10/3/0", "run-1/10/3")
    assert (command.issuer, command.reason) == ("tamiyo", "so")


def test_a_plan_is_written_whole():
    decided = Decided(Act.MODIFY, "because", ((Cancel(SeedKey("fc1", 2)), "so"),), PLAN)
    plan = write_decision(decided, read_packet(packet()), 1, noon()).plan
    assert (plan.steps, plan.preconditions, plan.undo) == (["do it"], ["it can be done"], "undo it")
    assert (plan.cost.parameters, plan.cost.flops, plan.cost.bytes, plan.cooldown_steps) == (5, 7.0, 60, 9)


def test_nothing_changes_without_a_plan():
    with pytest.raises(AssertionError, match="nothing changes without a plan"):
        Decided(Act.MODIFY, "because", ((Cancel(SeedKey("fc1", 2)), "so"),))


def test_every_kind_of_decision_has_a_number():
    written = [write_decision(Decided(act, "because"), read_packet(packet()), 1, noon()).kind for act in Act]
    assert written == sorted(set(pb.DecisionKind.values()) - {0})


def test_ids_are_the_runs_the_decision_points_and_the_counters():
    first, second = answer(packet(rollbacks=[state_pb2.Rollback(reason="a"), state_pb2.Rollback(reason="b")])).decisions
    assert (first.decision_id, second.decision_id) == ("run-1/10/1", "run-1/10/2")
    assert (first.sequence, first.step, first.policy, first.time) == (10, 1000, "heuristic", noon())
