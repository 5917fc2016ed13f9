"""What a watcher sees now, folded from recorded events."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.nissa.live import MAX_LINES, Live, advance
from esper.nissa.seeds import DORMANT, FOSSILIZED, Histories
from esper.nissa.translate import event_of_decision

from .feed import recorded
from .scenario import STATES, at, hello, moved, nothing, progress
from .strategies import events


def after(made, state=None):
    state = state or Live()
    for event in made:
        state = advance(state, event)
    return state


def test_the_scenario_when_it_is_over():
    state = after(recorded())
    assert (state.run_id, state.task, state.policy, state.random_seed) == ("run-1", "digits", "heuristic", 7)
    assert (state.step, state.total_steps, state.train_loss, state.parameters) == (1000, 1000, 0.65, 1000)
    assert state.validations == {"run": (900, 0.62), "never-grown": (500, 0.8), "static-final": (1000, 0.7)}
    assert state.stay("fc1/0").state == FOSSILIZED
    assert state.stay("fc1/1").reason == "gain 0.10 % is below 1 %"
    assert state.stay("nobody/0").state == DORMANT
    assert state.titles == {"fc1/0": "bottleneck 4", "conv/0": "gate"}
    assert state.queues == (2, 1, 3)
    kinds = [(line.head, line.step) for line in state.decisions]
    assert kinds == [("ADD_SEED", 200), ("MODIFY", 400), ("REMOVE_SEED", 700), ("NONE", 720)]
    assert [line.head for line in state.notes] == ["rollback", "refused", "warning"]
    assert state.goodbye.completed and state.summary.fossilised == 1


def test_a_decision_reads_with_its_verdict():
    texts = [line.text for line in after(recorded()).decisions]
    assert "keep fc1/0 (+3.10 % ± 0.60 %): gain above 1 %" in texts


def test_the_same_said_again_is_counted_and_old_lines_go():
    state = after([event_of_decision(nothing(step), at(0)) for step in range(5)])
    (line,) = state.decisions
    assert (line.step, line.count) == (4, 5)
    notes = [pb.RunEvent(note={"level": "info", "text": str(number)}) for number in range(20)]
    assert [line.text for line in after(notes).notes] == [str(n) for n in range(20 - MAX_LINES, 20)]


def test_a_rollback_puts_step_and_seeds_back():
    state = after(
        [
            pb.RunEvent(progress=progress(100)),
            pb.RunEvent(transition=moved("DORMANT", "GERMINATED", 40)),
            pb.RunEvent(transition=moved("GERMINATED", "GRAFTING", 90)),
            pb.RunEvent(rollback=state_pb2.Rollback(step=100, restored_step=50, reason="loss is NaN")),
        ]
    )
    assert (state.step, state.stay("fc1/0").state) == (50, STATES["GERMINATED"])
    assert state.notes[-1].text == "back to step 50: loss is NaN"


def test_a_resumed_run_goes_on():
    state = after([*recorded(), pb.RunEvent(hello=hello())])
    assert state.goodbye is None


def test_a_state_is_never_changed_by_the_next_event():
    state = after(recorded()[:9])
    before = repr(state)
    after(recorded()[9:], state)
    assert repr(state) == before


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None, max_examples=80)
@given(st.lists(events(), max_size=6))
def test_any_events_give_a_state_whose_seeds_are_where_their_history_says(made):
    state, histories = after(made), Histories()
    for event in made:
        if event.HasField("transition"):
            histories.move(event.transition)
        elif event.HasField("rollback"):
            histories.roll_back(event.rollback)
    assert {name: state.stay(name) for name in state.stays} == {name: histories.now(name) for name in histories.stays}
