"""Masks and budgets at their boundaries, each with its reason, the same for every policy."""

import pytest

from esper.api.urza.v1 import library_pb2
from esper.tamiyo.policies import POLICIES

from .scenes import (
    KERNELS,
    SITES,
    VECTOR16,
    answer,
    commands,
    germinated,
    kernel,
    memory,
    only,
    packet,
    seed,
    seeds,
    site,
    summary,
)

GROWING = sorted(set(POLICIES) - {"never"})
LOSSES = [(100 * i, 0.5) for i in range(6)]


def asked(policy="largest-on-schedule", kernels=KERNELS, being_made=0, **changes):
    changes = {"controller_state": memory(losses=LOSSES)} | changes
    return answer(packet(policy, **changes), kernels, [summary(1)], being_made=being_made)


def refused(response):
    """Why nothing was germinated."""
    assert not commands(response)
    return only(response).reason


@pytest.mark.parametrize("policy", GROWING)
@pytest.mark.parametrize(
    "changes, said",
    [
        ({"paused": True}, "growth is paused by an operator"),
        ({"final": True}, "training is over"),
        ({"step": 499}, "step 499; the first event is at 500"),
        ({"budget": {"max_events": 2}, "spending": {"events": 2}}, "2 events; the budget allows 2"),
        ({"seeds": seeds(fc1_0="LOADING")}, "seed fc1/0 is LOADING; one event at a time"),
        ({"seeds": seeds(fc2_1="STABILIZATION")}, "seed fc2/1 is STABILIZATION; one event at a time"),
        (
            {"controller_state": memory(losses=LOSSES, last_event_step=301)},
            "cooldown of 700 steps since the event of step 301",
        ),
        (
            {"controller_state": memory(losses=LOSSES, last_event_step=0, fruitless_events=1)},
            "cooldown of 1400 steps since the event of step 0 after 1 fruitless events",
        ),
        ({"budget": {"max_added_parameters": 99}}, "300 added parameters; the budget is 99|100 added parameters"),
        ({"budget": {"max_total_flops_ratio": 1.0}}, "the budget is 1"),
    ],
)
def test_no_policy_begins_outside_the_masks(policy, changes, said):
    assert any(part in refused(asked(policy, **changes)) for part in said.split("|"))


@pytest.mark.parametrize("policy", GROWING)
@pytest.mark.parametrize(
    "changes",
    [
        {"step": 500},
        {"budget": {"max_events": 3}, "spending": {"events": 2}},
        {"controller_state": memory(losses=LOSSES, last_event_step=300)},
        {"budget": {"max_added_parameters": 100}},
        {"total_steps": 0},
    ],
)
def test_every_policy_begins_at_the_edge_of_them(policy, changes):
    assert germinated(asked(policy, **changes))


@pytest.mark.parametrize("policy, needed", [("heuristic", 800), ("largest-on-schedule", 500)])
def test_an_event_needs_room_for_its_last_verdict(policy, needed):
    assert germinated(asked(policy, total_steps=1000 + needed))
    late = {"total_steps": 1000 + needed - 1}
    assert f"{needed - 1} steps are left; an event needs {needed}" in refused(asked(policy, **late))
    assert germinated(asked(policy, **late, settings={"ignore_end_of_run": True}))


def test_a_kernel_over_the_parameter_budget_is_left_out():
    spent = {"parameters": 1150, "initial_parameters": 1000}
    assert germinated(asked(budget={"max_added_parameters": 350}, spending=spent)) == [("fc1", 0, 2)]
    assert germinated(asked(budget={"max_added_parameters": 349}, spending=spent)) == [("fc1", 0, 1)]


def test_bytes_are_bounded_and_unmeasured_bytes_are_not_within_a_budget():
    assert germinated(asked(budget={"max_graft_bytes": 2000})) == [("fc1", 0, 2)]
    response = asked(kernels=[kernel(1, peak_bytes=0)], budget={"max_graft_bytes": 2000})
    assert "the peak bytes of title-1 were not measured" in refused(response)


def test_forward_time_is_bounded_and_unmeasured_time_is_not_within_a_budget():
    assert germinated(asked(budget={"max_added_forward_us": 20})) == [("fc1", 0, 2)]
    response = asked(kernels=[kernel(1, forward_us_p50=0)], budget={"max_added_forward_us": 20})
    assert "the forward time of title-1 was not measured" in refused(response)


def test_the_time_of_the_fossils_counts_too():
    fossil = [seed("fc1", 0, "FOSSILIZED"), seed("fc1", 1), seed("fc2", 0)]  # kernel 1: 10 us
    assert germinated(asked(seeds=fossil, budget={"max_added_forward_us": 30})) == [("fc1", 1, 2)]
    assert "20 us added forward; the budget is 15" in refused(asked(seeds=fossil, budget={"max_added_forward_us": 15}))
    folded = [seed("fc1", 0, "FOSSILIZED", folded=True), seed("fc1", 1), seed("fc2", 0)]
    assert germinated(asked(seeds=folded, budget={"max_added_forward_us": 15})) == [("fc1", 1, 1)]
    unknown = asked(kernels=[kernel(2)], seeds=fossil, budget={"max_added_forward_us": 100})
    assert "the forward time of title-1 was not measured" in refused(unknown)


def test_a_culled_kernel_is_not_tried_again_at_its_site_for_a_while():
    masked = {f"fc1 {KERNELS[2].artifact_id}": 1001}
    assert germinated(asked(controller_state=memory(masked=masked))) == [("fc1", 0, 2)]
    masked = {f"fc1 {KERNELS[2].artifact_id}": 1000}
    assert germinated(asked(controller_state=memory(masked=masked))) == [("fc1", 0, 3)]
    everything = {f"{name} {k.artifact_id}": 1001 for name in SITES for k in KERNELS}
    assert "title-1 was culled at fc1; not again before step 1001" in refused(
        asked(controller_state=memory(masked=everything))
    )


# The run's FLOPs: 1e6 per step, 10000 steps, so 1e10 if it never grew; a twin costs 500 steps


@pytest.mark.parametrize(
    "limit, spent, grows", [(1.05, 0.0, True), (1.0499, 0.0, False), (2.05, 1e10, True), (2.0, 1e10, False)]
)
def test_growth_ends_before_the_budget_of_flops_is_overrun(limit, spent, grows):
    response = asked(budget={"max_total_flops_ratio": limit}, spending={"nursery_flops": spent})
    assert bool(germinated(response)) is grows
    if not grows:
        assert f"with another event; the budget is {limit:g}" in refused(response)


def test_an_event_has_no_more_candidates_than_the_budget_of_flops_allows():
    # trial and twin: 300 steps for the host and 300 for each candidate, 500 for the twin
    response = asked("heuristic", budget={"max_total_flops_ratio": 1.14 + 1e-9})
    assert len(germinated(response)) == 2
    assert only(response).plan.cost.flops == pytest.approx(1e6 * (300 * 3 + 500))
    assert {name for name, _, _ in germinated(response)} == set(SITES)
    assert "with another event" in refused(asked("heuristic", budget={"max_total_flops_ratio": 1.1}))


def test_the_cost_of_a_step_before_growth_is_what_the_budget_is_a_multiple_of():
    grown = {"train_flops": 2e9}  # steps cost more since the first graft
    kept = memory(losses=LOSSES, host_step_flops=1e6)
    assert refused(asked(budget={"max_total_flops_ratio": 1.5}, spending=grown, controller_state=kept))
    assert germinated(asked(budget={"max_total_flops_ratio": 2.06}, spending=grown, controller_state=kept))


def test_a_budget_of_flops_that_are_not_counted_allows_no_growth():
    response = asked(budget={"max_total_flops_ratio": 9.0}, spending={"train_flops": 0.0})
    assert "the run's FLOPs are not counted" in refused(response)


def test_a_command_carries_at_most_256_candidates_and_sites_take_turns():
    names = [f"fc{n:03}" for n in range(300)]
    state = {
        "sites": [site(name) for name in names],
        "seeds": [seed(name, slot) for name in names for slot in range(2)],
    }
    first = germinated(asked("heuristic", **state))
    assert len(first) == 256
    assert len({name for name, _, _ in first}) == 256
    later = germinated(asked("heuristic", **state, controller_state=memory(turn=1)))
    assert {name for name, _, _ in first} | {name for name, _, _ in later} == set(names)


# The library


def test_the_stock_is_waited_for_while_kernels_are_made_and_not_for_ever():
    # both sites have one interface, so that it is counted once
    waiting = asked(being_made=2)
    assert "2 kernels for this run's sites are still being made; waiting until step 1500" in refused(waiting)
    assert germinated(asked(being_made=2, step=1500))


def test_a_kernel_that_is_not_promoted_is_not_used_whatever_the_library_says():
    statuses = [status for status in library_pb2.KernelStatus.values() if status != library_pb2.KERNEL_STATUS_VALIDATED]
    unpromoted = [kernel(n, status=status) for n, status in enumerate(statuses, start=1)]
    assert "the library has no promoted kernel for fc1 (vector[8] float32) yet" in refused(asked(kernels=unpromoted))
    assert germinated(asked(kernels=[*unpromoted[:-1], kernel(9)])) == [("fc1", 0, 9)]


def test_a_kernel_of_another_interface_is_not_used_whatever_the_library_says():
    assert "no promoted kernel" in refused(asked(kernels=[kernel(1, interface=VECTOR16), kernel(2, interface=None)]))
    mixed = [site("fc1"), site("fc2", interface=VECTOR16)]
    tried = germinated(asked("heuristic", [kernel(1), kernel(2, interface=VECTOR16)], sites=mixed))
    assert tried == [("fc1", 0, 1), ("fc2", 0, 2)]


def test_a_site_without_a_free_seed_is_left_out():
    taken = [seed("fc1", 0, "FOSSILIZED"), seed("fc1", 1, "ROLLED_BACK"), seed("fc2", 0), seed("fc2", 1, "CULLED")]
    assert germinated(asked("heuristic", seeds=taken)) == [("fc2", 0, 3)]
    none = [seed("fc1", 0, "FOSSILIZED"), seed("fc2", 0, "ROLLED_BACK")]
    assert "fc1 has no free seed" in refused(asked(seeds=none))
