"""A nursery in the training process: the host notices nothing, the cost has a bound, and a failure stays its own."""

import pytest
import torch

from esper.errors import InvalidConfig
from esper.kasmina.lifecycle import State
from esper.kasmina.nursery.trial import Trial
from esper.tolaria.measures import submit_validation
from esper.tolaria.shadow import ShadowNursery, refuse_ranks
from esper.tolaria.step import Parts, build_parts
from tests import builders
from tests.tolaria.quiet import seed_in, session_of, train
from tests.tolaria.shadowed import bent, curves, noisy, results, start

__all__ = ["start"]  # a fixture

STEPS = 90


def loop(parts: Parts, task, steps, session=None):
    """A loop of the user's, which never touches the modes. Returns losses and gradients of every step."""
    course = []
    for step in range(steps):
        batch = task.batch(step)
        parts.optimizer.zero_grad(set_to_none=True)
        loss = task.loss(task.forward(parts.model, batch), batch).mean()
        loss.backward()
        parts.optimizer.step()
        if session is not None:
            session.step(batch, loss)
        course.append((loss.item(), [p.grad.clone() for p in parts.model.parameters()]))
        if session is not None and session.due:
            session.decide()
    return course


def modes(model):
    return [module.training for module in model.modules()]


# The host


def test_the_host_trains_bit_for_bit_as_if_nobody_were_tried_beside_it(start):
    task = noisy()
    local = start(task, inserts=False, nursery_steps=40)
    parts = local.run.parts
    courses = []
    for beside in (local.session, None):
        parts = local.run.parts if beside else build_parts(task)
        parts.model.train()
        parts.model.frozen.eval()  # the user's own choice within a model in training
        torch.manual_seed(5)
        courses.append((loop(parts, task, STEPS, beside), parts.model, torch.get_rng_state()))
    (with_candidates, model, drawn), (alone, plain, drawn_alone) = courses
    assert len(curves(local)) == 2 and all(curve.points for curve in curves(local))  # somebody was tried
    assert [loss for loss, _ in with_candidates] == [loss for loss, _ in alone]
    for (_, ours), (_, theirs) in zip(with_candidates, alone, strict=True):
        assert all(map(torch.equal, ours, theirs))  # no candidate's gradient reached the host
    assert modes(model) == modes(plain)
    assert torch.equal(drawn, drawn_alone)
    ours, theirs = builders.state_of(model), builders.state_of(plain)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int(model.rows) == 16 * STEPS


def test_a_pass_leaves_parameters_trainable_as_they_were_and_the_module_plain(start):
    task = noisy()
    local = start(task, inserts=False)
    model = local.run.parts.model
    model.into.bias.requires_grad_(False)
    local.train(STEPS)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["into.bias"]
    assert not any("forward" in vars(module) for module in model.modules())


class Counting:
    """A compiler's backend that runs graphs as they are, and counts them and their calls."""

    def __init__(self):
        self.graphs, self.calls = 0, 0

    def __call__(self, graph, _inputs):
        self.graphs += 1
        return lambda *inputs: self._call(graph, inputs)

    def _call(self, graph, inputs):
        self.calls += 1
        return graph.forward(*inputs)


def test_what_was_compiled_of_the_host_stays_in_use_and_is_not_compiled_again(start):
    def course(germinate_at):
        backend = Counting()
        local = start(bent(), inserts=False, germinate_at=germinate_at)
        local.run.parts.model.compile(backend=backend)
        local.train(STEPS)
        torch.compiler.reset()
        return local.losses, backend.graphs, backend.calls

    with_candidates, alone = course(20), course(10 * STEPS)
    assert with_candidates == alone
    assert alone[1] == 1 and alone[2] > STEPS / 2


# The cost


@pytest.mark.parametrize(("every_steps", "passes"), [(1, 20), (4, 5), (7, 3), (100, 1)])
def test_candidates_take_a_step_on_one_step_of_so_many_and_on_none_without_a_trial(
    start, monkeypatch, every_steps, passes
):
    trained = []
    local = start(noisy(), every_steps=every_steps, inserts=False)
    monkeypatch.setattr(
        Trial, "train", lambda self, batches, plain=Trial.train: trained.append(local.run.step) or plain(self, batches)
    )
    local.train(STEPS)
    begins = 30  # germinated at 20, loaded and asked for at the decision point after
    assert trained == list(range(begins + 1, begins + 21, every_steps))
    assert len(trained) == passes and results(local, "trial")[0].trial.host_steps == 20


def test_the_host_is_called_once_a_step_but_for_sampled_steps_and_readings(start):
    local = start(noisy(), every_steps=5, inserts=False, growth={"measure_every_steps": 10, "validate_every_steps": 30})
    calls = []
    local.run.parts.model.register_forward_pre_hook(lambda *_: calls.append(local.run.step))
    local.train(STEPS)
    extra = {step for step in calls if calls.count(step) > 1}
    # a call counted at step n is the host's n+1st, or a pass after its nth
    assert extra <= {31, 36, 41, 46, 40, 50}


def test_what_it_costs_is_reported(start):
    local = start(noisy(), inserts=False)
    local.train(STEPS)
    (dense,) = results(local, "trial")
    sparse_run = start(noisy(), inserts=False, every_steps=10)
    sparse_run.train(STEPS)
    (sparse,) = results(sparse_run, "trial")
    assert 0 < sparse.flops < dense.flops / 2
    assert dense.wall_s > 0
    spent = [m.performance.inside_us for m in local.heard if m.HasField("performance")]
    inside_s = sum(sum(us) for us in spent) / 1e6
    assert inside_s > dense.wall_s  # it is time inside the session


# When something is wrong


def test_a_batch_that_the_task_does_not_take_ends_the_trial_and_not_the_training(start):
    local = start(noisy(), inserts=False)
    task, parts = local.task, local.run.parts
    for step in range(STEPS):
        batch = task.batch(step)
        loss = task.loss(parts.model(batch[0]), batch).mean()
        loss.backward()
        parts.optimizer.step()
        local.session.step(batch[0], loss)  # the inputs alone
        if local.session.due:
            local.session.decide()
    failures = [curve.failure for curve in curves(local)]
    assert len(failures) == 2 and all("raised ValueError: expected 2D or 3D input" in text for text in failures)


def test_a_loss_that_fails_later_ends_the_trial_and_not_the_training(start, monkeypatch):
    local = start(noisy(), inserts=False)
    monkeypatch.setattr(Trial, "passed", lambda self, plain=Trial.passed: 1 / 0 if self.done == 5 else plain(self))
    local.train(STEPS)
    (result,) = results(local, "trial")
    assert result.failure.message == "ZeroDivisionError: division by zero" and result.flops > 0
    notes = [m.note.text for m in local.heard if m.HasField("note")]
    assert any(result.failure.message in text for text in notes)


def test_a_trial_that_nobody_waits_for_any_more_ends(tmp_path):
    session = session_of(tmp_path / "run")
    run = session.run
    run.shadow = ShadowNursery(run, run.task)
    seed = seed_in(session, State.TRAINING)
    session.adaptations.begin_event("event", [session.adaptations._assignment(seed)], 100)
    session.adaptations.submit_trials()
    train(session, 3)
    assert run.shadow.collect() == []
    run.executor.cancel(seed, run.step, "not wanted")
    train(session, 2)
    (result,) = run.shadow.collect()
    assert result.trial.host_steps < 6
    session.close()


def test_a_measurement_waits_for_its_file_and_no_longer_than_to_the_next_decision_point(tmp_path):
    session = session_of(tmp_path / "run", deterministic=True)
    run = session.run
    run.shadow = ShadowNursery(run, run.task)
    train(session, 1)
    submit_validation(run)
    (job,) = [outstanding.job for outstanding in run.outstanding.values()]
    written = tmp_path / "run" / "spool" / "away"
    (tmp_path / "run" / "spool").joinpath(job.measure.arms[0].snapshot.path).rename(written)
    assert run.shadow.collect() == []
    run.step = job.due_step + 1
    (result,) = run.shadow.collect()
    assert result.failure.code and "no snapshot at" in result.failure.message
    session.close()


def test_several_ranks_are_refused_with_the_remedy():
    refuse_ranks(None)
    with pytest.raises(InvalidConfig, match="put the task in a module and pass task='module:callable'"):
        refuse_ranks(noisy())
