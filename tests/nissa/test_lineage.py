"""lineage.json: what the model has grown, removals and rollbacks included."""

import json

from hypothesis import given
from hypothesis import strategies as st

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.api.urza.v1.library_pb2 import Blueprint
from esper.nissa.lineage import Lineage, lineage_of
from esper.nissa.seeds import FOSSILIZED, Histories

from .feed import recorded
from .scenario import BAD, GOOD, RUN, ancestors, moved, seed, status
from .strategies import lives


def transition(*args, **kwargs):
    return pb.RunEvent(run_id=RUN, transition=moved(*args, **kwargs))


def rollback(step, restored_step):
    return pb.RunEvent(run_id=RUN, rollback=state_pb2.Rollback(step=step, restored_step=restored_step, reason="NaN"))


def document(events, kernels=None, pedigrees=None):
    return json.loads(lineage_of(RUN, events).write(kernels or {}, pedigrees or {}))


def test_the_scenarios_lineage():
    found = document(recorded(), {GOOD: status(GOOD, "bottleneck 4")})
    assert found["run_id"] == RUN
    assert found["transitions"] == 14
    assert found["removed"] == []
    (fossil,) = found["fossils"]
    assert fossil == {
        "seed": "fc1/0",
        "site": "fc1",
        "slot": 0,
        "artifact_id": GOOD,
        "step": 450,
        "reason": "to FOSSILIZED",
        "blueprint_id": "c" * 64,
        "title": "bottleneck 4",
        "parameters": 64,
    }


def test_a_blueprint_that_is_not_known_is_absent():
    assert "blueprint_id" not in document([transition("FINE_TUNING", "FOSSILIZED", 5)])["fossils"][0]


def test_it_has_what_the_fossils_descend_from_and_nothing_else():
    known = {entry.blueprint_id: entry for entry in ancestors()} | {"9" * 64: Blueprint(blueprint_id="9" * 64)}
    found = document(recorded(), {GOOD: status(GOOD, "karn_1")}, known)
    assert list(found["blueprints"]) == ["c" * 64, "d" * 64, "e" * 64]
    assert found["blueprints"]["c" * 64] == {
        "title": "karn_1 of low_rank and <i>gate</i>",
        "family": "gate",
        "author": "karn",
        "source": "made for map[8] float32; add gelu; remove add",
        "parents": ["d" * 64, "e" * 64],
    }
    assert found["fossils"][0]["blueprint_id"] in found["blueprints"]


def test_without_fossils_or_answers_there_is_no_genealogy():
    known = {entry.blueprint_id: entry for entry in ancestors()}
    assert document([], {GOOD: status(GOOD, "karn_1")}, known)["blueprints"] == {}
    assert document(recorded(), {GOOD: status(GOOD, "karn_1")})["blueprints"] == {}


def test_a_late_cull_moves_a_fossil_to_the_removed():
    found = document(
        [transition("FINE_TUNING", "FOSSILIZED", 5), transition("FOSSILIZED", "CULLED", 9, reason="no use")]
    )
    assert found["fossils"] == []
    (removed,) = found["removed"]
    assert (removed["step"], removed["removed_step"], removed["to"], removed["removed_reason"]) == (
        5,
        9,
        "CULLED",
        "no use",
    )


def test_a_seed_may_carry_a_second_fossil_after_the_first_was_removed():
    found = document(
        [
            transition("FINE_TUNING", "FOSSILIZED", 5),
            transition("FOSSILIZED", "CULLED", 9),
            transition("FINE_TUNING", "FOSSILIZED", 20, artifact_id=BAD),
        ]
    )
    assert [f["artifact_id"] for f in found["fossils"]] == [BAD]
    assert [f["artifact_id"] for f in found["removed"]] == [GOOD]


def test_a_rollback_takes_back_the_fossils_that_came_after_and_brings_back_those_removed_since():
    events = [
        transition("FINE_TUNING", "FOSSILIZED", 5),
        transition("FINE_TUNING", "FOSSILIZED", 20, seed("conv")),
        transition("FOSSILIZED", "CULLED", 25),
        rollback(30, 10),
    ]
    found = document(events)
    assert [f["seed"] for f in found["fossils"]] == ["fc1/0"]
    assert [(f["seed"], f["to"]) for f in found["removed"]] == [("conv/0", "ROLLED_BACK")]


def test_a_fossil_that_was_undone_never_comes_back():
    events = [transition("FINE_TUNING", "FOSSILIZED", 50), rollback(60, 40), rollback(58, 52)]
    assert document(events)["fossils"] == []


def test_only_events_that_change_the_fossils_say_so():
    lineage = Lineage(RUN)
    assert not lineage.take(transition("DORMANT", "GERMINATED", 1))
    assert lineage.take(transition("FINE_TUNING", "FOSSILIZED", 5))
    assert not lineage.take(rollback(7, 6))
    assert lineage.take(transition("FOSSILIZED", "ROLLED_BACK", 9))


@given(lives())
def test_fossils_are_the_seeds_that_are_fossilised_now(events):
    lineage, histories = lineage_of(RUN, events), Histories()
    for event in events:
        histories.move(event.transition)
    now = {seed for seed in histories.known() if histories.now(seed).state == FOSSILIZED}
    assert {f.seed for f in lineage.fossils if f.removed_step is None} == now
    assert lineage.transitions == len(events)
    entered = sum(event.transition.to == FOSSILIZED for event in events)
    assert len(lineage.fossils) == entered


@given(lives(), st.integers(0, 60))
def test_a_rollback_leaves_the_fossils_of_the_restored_step(events, restored):
    before = [event for event in events if event.transition.step <= restored]
    now = lineage_of(RUN, [*events, rollback(1000, restored)])
    then = lineage_of(RUN, before)
    assert [(f.seed, f.step) for f in now.fossils if f.removed_step is None] == [
        (f.seed, f.step) for f in then.fossils if f.removed_step is None
    ]


@given(lives(), st.integers(0, 25))
def test_folding_in_two_parts_is_folding_at_once(events, cut):
    lineage = lineage_of(RUN, events[:cut])
    for event in events[cut:]:
        lineage.take(event)
    assert lineage.write({}) == lineage_of(RUN, events).write({})
