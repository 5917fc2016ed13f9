"""One run from germination to a fossil, and the same run resumed from wherever it may have died."""

import pytest
from torch._dynamo import eval_frame

from esper.kasmina.lifecycle import State
from esper.tolaria.journal import NAME, read_journal
from esper.tolaria.task import load_task
from tests.flow.local import start
from tests.tolaria.runs import begin, crash_to, follow, go_on, let_go, same_parameters

# A crash after the first of these steps resumes from the second; the seed that is grafted is then in the third.
CRASHES = [
    (27, 20, State.LOADING),
    (37, 30, State.TRAINING),
    (53, 50, State.GRAFTING),
    (64, 60, State.STABILIZATION),
    (97, 90, State.EVALUATING),
    (107, 100, State.FINE_TUNING),
    (117, 110, State.FOSSILIZED),
]
STEPS = 135


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted, and what crashes on its way would have left."""
    base = tmp_path_factory.mktemp("whole")
    images = {step: base / f"crash-{step}" for step, *_ in CRASHES}
    local = begin(base / "run", checkpoint_every_steps=10)
    course = follow(local, STEPS, images=images)
    let_go(local)
    return base, images, local, course


@pytest.fixture(scope="module")
def culled(tmp_path_factory):
    """A run whose graft is culled; checkpoints are written at changes of the model only."""
    base = tmp_path_factory.mktemp("culled")
    images = {step: base / f"crash-{step}" for step in (57, 104, 126)}
    local = begin(base / "run", keep=False)
    course = follow(local, STEPS, images=images)
    let_go(local)
    return base, images, local, course


def test_the_run_goes_through_every_state_of_a_seed(whole):
    _, _, local, course = whole
    fossil = next(t for t in course.transitions if t.target is State.FOSSILIZED)
    states = [t.target for t in course.transitions if t.seed == fossil.seed]
    assert states == list(State)[1:9]
    assert [command for command in local.line.decide.asked if command.WhichOneof("action") == "insert"]
    outcomes = [m.outcome for m in local.heard if m.HasField("outcome")]
    assert outcomes and all(outcome.applied for outcome in outcomes)


def test_the_graft_changes_what_is_learnt(whole, culled):
    assert not same_parameters(whole[3], culled[3])
    inserted = next(t.step for t in whole[3].transitions if t.target is State.GRAFTING)
    grown, plain = whole[3].losses, culled[3].losses
    assert all(grown[s] == plain[s] for s in range(1, inserted + 1))


def test_two_runs_are_equal_bit_for_bit(whole, tmp_path):
    _, _, _, first = whole
    local = begin(tmp_path / "again", run_id="another-run", checkpoint_every_steps=10)
    second = follow(local, STEPS)
    let_go(local)
    assert second.losses == first.losses
    assert second.transitions == first.transitions
    assert same_parameters(first, second)


@pytest.mark.parametrize(("crash", "checkpoint", "state"), CRASHES)
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(whole, crash, checkpoint, state):
    base, images, first, course = whole
    fossil = next(t.seed for t in course.transitions if t.target is State.FOSSILIZED)
    crash_to(images[crash], base / "run")
    local = go_on(base / "run", first.shelf, checkpoint_every_steps=10)
    assert local.session.steps_done == checkpoint
    assert local.run.executor.table[fossil].state is state
    again = follow(local, STEPS)
    let_go(local)
    assert again.losses == {step: loss for step, loss in course.losses.items() if step > checkpoint}
    assert again.transitions == [t for t in course.transitions if t.step > checkpoint]
    assert same_parameters(course, again)


@pytest.mark.parametrize(("crash", "checkpoint"), [(57, 50), (104, 50), (126, 110)])
def test_a_resumed_run_repeats_what_its_journal_says_before_it_goes_live(culled, crash, checkpoint):
    base, images, first, course = culled
    crash_to(images[crash], base / "run")
    journaled = list(read_journal(base / "run" / NAME))
    local = go_on(base / "run", first.shelf, keep=False)
    assert local.session.steps_done == checkpoint
    replaying = local.session.arrivals.journal.replaying
    assert replaying == any(entry.step > checkpoint for entry in journaled)
    again = follow(local, STEPS)
    let_go(local)
    assert again.losses == {step: loss for step, loss in course.losses.items() if step > checkpoint}
    assert again.transitions == [t for t in course.transitions if t.step > checkpoint]
    assert same_parameters(course, again)
    heard = [message.job.job_id for message in local.heard if message.HasField("job")]
    answered = {entry.result.job_id for entry in journaled if entry.HasField("result")}
    partial = {entry.result.job_id for entry in journaled if entry.result.twin.partial}
    assert not set(heard) & (answered - partial)  # nothing is asked for that is known


@pytest.mark.slow
def test_a_resumed_run_writes_the_journal_it_would_have_written(whole, tmp_path):
    base, images, first, _ = whole
    crash_to(images[97], base / "run")
    local = go_on(base / "run", first.shelf, checkpoint_every_steps=10)
    follow(local, STEPS)
    let_go(local)
    resumed = [_timeless(entry) for entry in read_journal(base / "run" / NAME)]
    fresh = begin(tmp_path / "fresh", checkpoint_every_steps=10)
    follow(fresh, STEPS)
    let_go(fresh)
    written = [_timeless(entry) for entry in read_journal(tmp_path / "fresh" / NAME)]
    assert [entry.position for entry in resumed] == list(range(1, len(resumed) + 1))
    assert [_brief(entry) for entry in resumed] == [_brief(entry) for entry in written]
    assert [e.result.measure for e in resumed] == [e.result.measure for e in written]


def _brief(entry):
    return entry.step, entry.phase, entry.WhichOneof("event"), entry.result.job_id


def _timeless(entry):
    entry.result.ClearField("wall_s")
    return entry


def test_a_closed_session_leaves_the_compiler_and_the_layers_as_they_were(tmp_path):
    before = eval_frame._stance.stance
    task = load_task("esper.tolaria.tasks.digits:task", {"batch_size": 16})
    run = start(task, tmp_path, growth={"sample_every_steps": 4})
    run.train(3)  # the next step is to be sampled
    assert run.session.reports.sampler.armed
    run.session.close()
    assert eval_frame._stance.stance == before
    assert all("forward" not in vars(site.module) for site in run.run.executor.sites.values())
    run.close()
