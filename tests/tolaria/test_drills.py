"""Drills, a row of the table of faults in docs/lifecycle.md each: seen in time, undone bit for bit, the seed locked."""

import math

import pytest
import torch

from esper.kasmina.lifecycle import LIVE, State
from esper.tolaria.step import train_step
from esper.tolaria.task import load_task
from tests.flow.local import start
from tests.tolaria.quiet import seed_in, session_of, train
from tests.tolaria.runs import begin
from tests.tolaria.script import Script
from tests.tolaria.test_rollback import at, everything, rollbacks, spoil

NAN = float("nan")
# Two verdicts that never come: the graft stays on trial. Validations would only cost time.
GROWTH = {"verdict_steps": 400, "validate_every_steps": 10_000}
GERMINATE_AT, FAULT_AT, REPEATED = 120, 154, 50


def start_run(directory, germinate_at=GERMINATE_AT):
    local = begin(directory, growth=GROWTH, steps=1000)
    local.line.decide.germinate_at = germinate_at
    return local


def trial_of(local):
    (seed,) = local.run.executor.table.in_states(LIVE)
    return seed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that never grew nor failed: its loss at every step, and all of it at every tenth."""
    local = start_run(tmp_path_factory.mktemp("undisturbed"), germinate_at=10_000)
    states = {0: everything(local)}

    def keep(run):
        if run.session.due:
            states[run.session.steps_done] = everything(run)

    local.train(FAULT_AT + REPEATED, after_step=keep)
    assert not rollbacks(local)
    local.close()
    return local.losses, states


@pytest.fixture
def run(tmp_path):
    local = start_run(tmp_path / "run")
    yield local
    local.close()


def one_step(local, fault):
    """A step, then `fault(local)`, then a decision where one is due. Not past a rollback."""
    batches = local.task.micro_batches(local.session.steps_done)
    loss = train_step(local.run.parts, local.task, batches)
    if local.session.step(batches[0], loss) is None:
        fault(local)
        if local.session.due:
            local.session.decide()


def drill(local, undisturbed, fault, within):
    """Train through `fault`; check all that a rollback promises. Returns its report.

    `fault(local)` is called after every step until the run has gone back.
    """
    losses, states = undisturbed
    local.train(FAULT_AT)
    on_trial = local.run.executor.table.in_states(LIVE)
    fault(local)
    for _ in range(within):
        one_step(local, fault)
        if rollbacks(local):
            break
    (said,) = rollbacks(local)
    assert said.restored_step <= FAULT_AT < said.step <= FAULT_AT + within
    assert repr(everything(local)) == repr(states[said.restored_step])
    assert list(said.locked_seeds) == [str(seed.id) for seed in on_trial]
    assert all(seed.state is State.ROLLED_BACK for seed in on_trial)
    local.losses.clear()
    local.train(said.restored_step + REPEATED)
    assert local.losses == losses[said.restored_step : said.restored_step + REPEATED]
    assert len(rollbacks(local)) == 1
    return said


def once(act):
    return at(FAULT_AT, act)


def poison(value):
    """The next batch, and only that one, is `value` throughout."""

    def act(local):
        def replace(module, inputs):
            hook.remove()
            return (torch.full_like(inputs[0], value),)

        hook = local.run.parts.model.register_forward_pre_hook(replace)

    return act


def grow_weights(local):
    spoil(local, 1.02)


def kill_units(local):
    """No unit of the first layer is ever active again: no gradient reaches it, and the output is a constant."""
    with torch.no_grad():
        local.run.parts.model.conv1.bias.fill_(-1e3)


def wrong_alpha_on_device(local):
    seed = trial_of(local)
    seed.held = True  # a ramp would write it again at the next step
    local.run.executor.table.layout.alpha_blend[seed.index] = NAN


@pytest.mark.parametrize(
    ("fault", "within", "reason"),
    [
        pytest.param(once(lambda local: spoil(local, NAN)), 2, "the loss is nan", id="nan"),
        pytest.param(once(poison(NAN)), 2, "the loss is nan", id="poisoned batch, nan", marks=pytest.mark.slow),
        pytest.param(once(poison(3e38)), 2, "the loss is", id="poisoned batch, huge"),
        pytest.param(once(lambda local: spoil(local, 30.0)), 4, "over 20 times its mean", id="explosion"),
        pytest.param(grow_weights, 250, "4 times its best", id="slow divergence", marks=pytest.mark.slow),
        pytest.param(once(kill_units), 140, "the output has collapsed", id="collapse"),
        pytest.param(once(wrong_alpha_on_device), 2, "the loss is nan", id="device alpha of a graft on trial"),
    ],
)
def test_a_lost_run_is_seen_in_time_and_put_back(run, undisturbed, fault, within, reason):
    said = drill(run, undisturbed, fault, within)
    assert reason in said.reason
    assert len(said.locked_seeds) == 1


def test_a_collapse_without_a_graft_is_put_back_though_all_latest_points_are_of_it(tmp_path, undisturbed):
    local = start_run(tmp_path, germinate_at=10_000)
    said = drill(local, undisturbed, once(kill_units), 140)
    assert "the output has collapsed" in said.reason and not said.locked_seeds
    local.close()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("state", 99, "state 99, which does not exist"),
        pytest.param("alpha", NAN, "alpha nan, which is not within [0, 1]", marks=pytest.mark.slow),
        pytest.param("alpha", 1.5, "alpha 1.5, which is not within [0, 1]", marks=pytest.mark.slow),
        pytest.param("errors", -1, "-1 errors, which cannot be negative", marks=pytest.mark.slow),
    ],
)
def test_a_record_that_cannot_be_is_seen_at_the_next_decision_point(run, undisturbed, field, value, reason):
    def damage(local):
        seed = trial_of(local)
        seed.held = True
        setattr(seed, field, value)

    said = drill(run, undisturbed, once(damage), 10)
    assert said.step == 160
    assert said.reason.startswith("the seed table was damaged: the record of seed ") and reason in said.reason
    assert not math.isnan(run.run.executor.table.layout.alpha_blend.sum())


def test_a_damaged_device_is_written_again_at_the_next_decision_point(tmp_path):
    session = session_of(tmp_path)
    seed = session.run.executor.table[seed_in(session, State.EVALUATING)]
    train(session, 10)
    layout = session.run.executor.table.layout
    for column, value in zip(columns(layout), (200, 0.25, -7, 40), strict=True):
        column[seed.index] = value
    model, line = session.run.parts.model.state_dict(), session.run.line
    model = {name: tensor.clone() for name, tensor in model.items()}
    session.decide()
    wanted = (int(seed.state), seed.alpha, seed.state_step, seed.errors)
    assert tuple(column[seed.index].item() for column in columns(layout)) == wanted
    assert session.run.executor.grafts[seed.id].alpha.item() == 1.0
    (note,) = line.said("note")
    assert note.text == (
        "the seed table was damaged and is written again from its records: the device has state 200 instead of 7, "
        f"alpha 0.25 instead of 1, step -7 instead of 10, error count 40 instead of 0 for seed {seed.id}"
    )
    assert line.said("performance")[-1].recoveries == {"fallback": 1}
    assert not line.said("rollback") and session.steps_done == 10
    assert all(torch.equal(tensor, model[name]) for name, tensor in session.run.parts.model.state_dict().items())
    session.decide()
    assert len(line.said("note")) == 1
    session.close()


def columns(layout):
    return layout.lifecycle_states, layout.alpha_blend, layout.state_steps, layout.error_counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "steps"), [("digits", 500), ("tabular", 1000), ("text", 250)])
def test_growth_on_the_demo_tasks_raises_no_alarm(tmp_path, name, steps, seed):
    task = load_task(f"esper.tolaria.tasks.{name}:task", {"seed": seed})
    local = start(task, tmp_path / "run", steps=steps)
    local.line.decide = Script(local.shelf, germinate_at=100)  # inserts its best candidate and keeps it
    try:
        local.train(steps)
    finally:
        local.close()
    assert any(move.target is State.FOSSILIZED for move in local.transitions)
    assert not rollbacks(local)
    assert not [message for message in local.heard if "seed table" in message.note.text]
    window = local.session.governor.window
    assert window.diverging_steps == window.collapsed_steps == 0
