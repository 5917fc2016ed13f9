"""The controller keeps nothing: what the run carries is all there is."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import InvalidRequest, PreconditionFailed
from esper.tamiyo.memory import VERSION, Memory, load
from esper.tamiyo.policies import POLICIES

from .scenes import answer, controller, memory, packet, tracked
from .toy import ToyRun

numbers = st.floats(allow_nan=False)
names = st.text(max_size=8)


@given(
    st.builds(
        Memory,
        last_event_step=st.integers(-1, 1 << 40),
        events=st.integers(0, 99),
        fruitless_events=st.integers(0, 99),
        turn=st.integers(0, 99),
        tracked=st.lists(
            st.builds(
                tracked,
                slot=st.integers(0, 9),
                features=st.dictionaries(names, numbers),
                isolated_steps=st.lists(st.integers(0, 999)),
                isolated_gains=st.lists(numbers),
                gain=st.none() | numbers,
                control=st.sampled_from(["", "twin", "ablation"]),
                confounded=st.booleans(),
            ),
            max_size=3,
        ),
        losses=st.lists(st.tuples(st.integers(0, 999), numbers), max_size=5),
        masked=st.dictionaries(names, st.integers(0, 999), max_size=3),
        tries=st.dictionaries(names, st.integers(0, 999), max_size=3),
        passed=st.dictionaries(names, st.lists(st.integers(1, 2)), max_size=3),
        host_step_flops=numbers,
    )
)
def test_a_memory_comes_back_as_it_was_bit_for_bit(kept):
    again = load(kept.dump())
    assert again == kept
    assert again.dump() == kept.dump()


def test_a_new_run_has_an_empty_memory():
    assert load(b"") == Memory()


def test_a_memory_of_another_version_is_refused_with_the_remedy():
    other = json.dumps({"version": VERSION + 1}).encode()
    with pytest.raises(PreconditionFailed, match="of version 2, this controller reads 1; resume the run with the rele"):
        answer(packet(controller_state=other))


@pytest.mark.parametrize(
    "data",
    [b"{", b"\xff\xfe", b"5", b"[1]", b'{"version":1}', memory()[:-1] + b',"what":1}', b'{"version":1,"tracked":5}'],
)
def test_what_no_controller_wrote_is_an_invalid_request(data):
    with pytest.raises(InvalidRequest, match="bytes of controller state are not what a controller wrote"):
        answer(packet(controller_state=data))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_answers_after_a_restart_are_those_without_one(policy):
    def story(restarts):
        run = ToyRun(policy, random.Random(3))
        told = []
        for _ in range(40):
            if restarts:
                run.state = load(run.state).dump()
            told.append(run.decide())
        return told

    assert story(restarts=True) == story(restarts=False)


def test_two_runs_on_one_controller_do_not_hear_each_other():
    from .scenes import at_once

    shared = controller()
    alone = answer(packet())
    for other in range(3):
        at_once(shared.answer(packet(run_id=f"other-{other}", step=1000 + other)))
    assert at_once(shared.answer(packet())) == alone


def test_the_losses_that_are_remembered_are_bounded():
    state = b""
    for sequence in range(1, 40):
        state = answer(packet("never", sequence=sequence, step=100 * sequence, controller_state=state)).controller_state
    kept = load(state).losses
    assert len(kept) == 20
    assert kept[-1] == (3900, 0.5)
