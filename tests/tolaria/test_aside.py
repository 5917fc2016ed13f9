"""What a checkpoint keeps besides the run: states to go back to, fossils that may be put back, what is frozen."""

from pathlib import Path

import pytest

from esper.kasmina.lifecycle import State
from esper.tolaria.checkpoint import CheckpointStore
from tests.tolaria.runs import let_go
from tests.tolaria.saga import RESTORED, SPOILED, begin, follow
from tests.tolaria.told import SETTING, points_of


@pytest.fixture
def resumed(told):
    """Resumes the run as it was left after a step, and lets go of it at the end."""
    made = []

    def resume(step=0):
        if step:
            told.put_back(step)
        made.append(begin(told.directory, SETTING, resumed=True))
        return made[-1]

    yield resume
    for local in made:
        let_go(local)


def notes(local):
    return [m.note.text for m in local.heard if m.HasField("note")]


@pytest.mark.parametrize("step", [175, 233])
def test_a_resumed_run_has_the_states_that_the_run_had_to_go_back_to(told, resumed, step):
    checkpoint = resumed(step).session.steps_done
    found = points_of(resumed())
    assert found == told.points[told.put_back(checkpoint + 1)]
    assert len(found) > 2 and any(certified for *_, certified in found)
    assert (checkpoint in [at for at, *_ in found]) == (step == 233)  # that from before the graft


def test_a_resumed_run_goes_back_to_before_its_checkpoint(resumed):
    local = resumed(SPOILED)
    assert local.session.steps_done > 220
    follow(local, SETTING, SPOILED + 10)
    said = [m.rollback for m in local.heard if m.HasField("rollback")]
    assert [(rollback.step, rollback.restored_step) for rollback in said] == [(SPOILED + 2, 220)]


def test_a_state_whose_file_is_gone_is_left_out_and_a_note_says_so(resumed):
    first = resumed(175).session
    path, step = first.aside.write()["points"][0]["path"], first.points.latest[0].step
    Path(path).unlink()
    local = resumed()
    assert points_of(local) and step not in [at for at, *_ in points_of(local)]
    assert [text for text in notes(local) if path in text and "the run cannot go back to it" in text]


def test_states_take_no_more_than_half_of_the_spool(resumed):
    local = resumed(175)
    local.session.points.latest[0].snapshot = local.run.capture()
    local.session.points.resume(local.run, local.session.governor.window, [], 0)  # a new one, without a file
    local.run.spool.max_bytes = 1
    local.session.aside.save(local.run.capture(), None)
    assert [text for text in notes(local) if "has no room for the point of step" in text]
    assert local.session.aside.write()["points"] == []


def test_a_frozen_fossil_stays_frozen(resumed):
    local = resumed(130)
    (fossil,) = local.run.executor.table.in_states((State.FOSSILIZED,))
    assert fossil.frozen
    held = {id(p) for group in local.run.parts.optimizer.param_groups for p in group["params"]}
    parameters = list(local.run.executor.grafts[fossil.id].parameters())
    assert parameters and not any(p.requires_grad or id(p) in held for p in parameters)


def test_a_removed_fossil_can_be_put_back_by_a_resumed_run(told, resumed):
    local = resumed(RESTORED - 5)
    assert CheckpointStore(told.directory / "checkpoints").latest()[0].step == local.session.steps_done
    ((graft, record),) = local.run.executor.removed.values()
    weights = {name: tensor.clone() for name, tensor in graft.state_dict().items()}
    assert record.frozen and any(bool(tensor.any()) for tensor in weights.values())
    follow(local, SETTING, RESTORED + 1)
    back = local.run.executor.grafts[record.id].state_dict()
    assert local.run.executor.table[record.id].state is State.FOSSILIZED
    assert back.keys() == weights.keys() and all(back[name].equal(weights[name]) for name in back)
