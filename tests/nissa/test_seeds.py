"""Where seeds were, and where a rollback puts them back."""

from esper.api.tolaria.v1 import state_pb2
from esper.nissa.seeds import DORMANT, Histories

from .scenario import STATES, hello, moved, seed


def states(histories):
    return {name: histories.now(name).state for name in histories.known()}


def test_announced_seeds_are_dormant_until_they_move():
    histories = Histories()
    histories.begin(hello())
    assert states(histories) == {"fc1/0": DORMANT, "fc1/1": DORMANT, "conv/0": DORMANT}
    histories.move(moved("DORMANT", "GERMINATED", 5))
    assert histories.counts() == {DORMANT: 2, STATES["GERMINATED"]: 1}


def test_a_rollback_undoes_what_came_after_the_restored_step_and_nothing_else():
    histories = Histories()
    histories.move(moved("DORMANT", "GERMINATED", 5))
    histories.move(moved("GERMINATED", "GRAFTING", 10))
    histories.move(moved("DORMANT", "GERMINATED", 11, seed("conv")))
    histories.roll_back(state_pb2.Rollback(step=12, restored_step=10))
    assert states(histories) == {"fc1/0": STATES["GRAFTING"], "conv/0": DORMANT}
    histories.roll_back(state_pb2.Rollback(step=11, restored_step=9))
    assert states(histories)["fc1/0"] == STATES["GERMINATED"]


def test_the_offender_is_locked_after_the_rollback():
    histories = Histories()
    histories.move(moved("DORMANT", "GERMINATED", 5))
    histories.move(moved("GERMINATED", "GRAFTING", 10))
    histories.roll_back(state_pb2.Rollback(step=12, restored_step=4))
    histories.move(moved("GRAFTING", "ROLLED_BACK", 12))
    assert states(histories) == {"fc1/0": STATES["ROLLED_BACK"]}


def test_a_seed_whose_past_was_not_heard_begins_where_its_first_move_says():
    histories = Histories()
    histories.move(moved("GRAFTING", "CULLED", 10))
    assert [stay.state for stay in histories.stays["fc1/0"]] == [STATES["GRAFTING"], STATES["CULLED"]]


def test_unknown_seeds_are_counted_too():
    histories = Histories()
    histories.begin(hello())
    histories.move(moved("DORMANT", "GERMINATED", 5, seed("other")))
    assert sum(histories.counts().values()) == 4
