"""The twin is the run that never grew, bit for bit."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina.nursery.control_run import run_control
from esper.kasmina.nursery.flops import FlopMeter
from esper.kasmina.nursery.measure import measure, read
from esper.kasmina.nursery.twin import run_twin
from esper.stats.paired import compare
from esper.tolaria.replay import Replay
from esper.tolaria.snapshot import capture, load
from tests.kasmina.nursery.runs import Residual, host_state, pictures, plain, reading, regression, run_of, same_host

TASKS = {
    "regression": lambda: regression(plain, clip_norm=1.0),
    "dropout and norm": lambda: regression(lambda: Residual(norm=True, dropout=0.4)),
    "schedule": lambda: regression(plain, make_scheduler=lambda o: LambdaLR(o, lambda e: 0.9**e)),
    "momentum": lambda: regression(plain, make_optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.05, 0.9)),
    "convolutions": pictures,
    "attention": lambda: reading(dropout=0.3),
}
every_task = pytest.mark.parametrize("name", TASKS)


def go_on(run, steps):
    for _ in range(steps):
        run.update(run.gradients())
    return run


@every_task
def test_a_twin_is_the_undisturbed_continuation_bit_for_bit(name, tmp_path):
    task = TASKS[name]()
    torch.manual_seed(3)
    run = go_on(run_of(task), 4)
    point = capture(run.parts, run.step)
    go_on(run, 7)
    torch.rand(5)
    twin = Replay(task, point)  # as a worker would, in whatever state its generators are
    outcome = run_twin(twin, [6, 11], tmp_path, "twin")
    go_on_state = host_state(run)
    assert same_host(host_state(twin), go_on_state)
    assert [saved.step for saved in outcome.saved] == [6, 11]
    last = load(outcome.saved[1].path)
    assert last.step == 11
    assert all(torch.equal(last.tensors[f"model.{n}"], v) for n, v in go_on_state["model"].items())
    assert same_host(host_state(Replay(task, last)), go_on_state)


def test_a_twin_tells_of_each_state_when_it_is_there(tmp_path):
    run, told = run_of(regression(plain)), []
    run_twin(
        run, [2, 3], tmp_path, "t", on_saved=lambda saved, flops: told.append((saved.step, saved.path.exists(), flops))
    )
    assert [(step, there) for step, there, _ in told] == [(2, True), (3, True)]
    assert told[1][2] == pytest.approx(1.5 * told[0][2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t-2.safetensors", "t-3.safetensors"]


def test_a_twin_stops_on_request_between_two_steps(tmp_path):
    run, asked = run_of(regression(plain)), []
    outcome = run_twin(run, [2, 100], tmp_path, "t", stop=lambda: asked.append(1) or len(asked) > 5)
    assert run.step < 100 and [saved.step for saved in outcome.saved] == [2]
    with FlopCounterMode(display=False) as counter:
        run.gradients()
    assert outcome.flops == run.step * counter.get_total_flops()


def test_a_twin_already_past_a_step_saves_where_it_is(tmp_path):
    run = go_on(run_of(regression(plain)), 5)
    assert [saved.step for saved in run_twin(run, [5], tmp_path, "t").saved] == [5]


# The meter


def test_the_meter_counts_the_first_of_a_kind_and_takes_the_rest_to_cost_the_same():
    meter, layer, x = FlopMeter(), nn.Linear(5, 3), torch.randn(4, 5)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    once = counter.get_total_flops()
    assert once == 2 * 2 * 4 * 5 * 3
    assert meter.run("step", lambda: layer(x).sum().backward() or "result") == "result"
    assert meter.total == once
    meter.run("step", lambda: None)
    assert meter.total == 2 * once
    meter.run("other", lambda: layer(x))
    assert meter.total == 2.5 * once


def test_counting_changes_no_number():
    model, x = Residual(), torch.randn(4, 5)
    assert torch.equal(FlopMeter().run("x", lambda: model(x)), model(x))


# Measuring


def test_arms_and_controls_are_paired_example_by_example():
    task = regression(plain)
    early, late = run_of(task), go_on(run_of(task), 30)
    found = measure([lambda: late], [lambda: early], ("judge",))
    with torch.no_grad():
        losses = {
            name: torch.cat([task.loss(run.model.eval()(b[0]), b) for b in task.held_out("judge")])
            for name, run in (("early", early), ("late", late))
        }
    assert found.paired == compare(losses["late"], losses["early"])
    assert found.paired.gain > 0 and found.paired.pairs == 32
    assert torch.equal(found.arms[0].losses, losses["late"])
    assert found.arms[0].loss == pytest.approx(float(losses["late"].mean()))


def test_several_snapshots_are_averaged_before_they_are_paired():
    task = regression(plain)
    runs = [go_on(run_of(task), steps) for steps in (0, 5, 10, 15)]
    found = measure([lambda: runs[2], lambda: runs[3]], [lambda: runs[0], lambda: runs[1]], ("select", "judge"))
    arms = torch.stack([reading.losses.double() for reading in found.arms]).mean(0)
    controls = torch.stack([reading.losses.double() for reading in found.controls]).mean(0)
    assert found.paired == compare(arms, controls) and found.paired.pairs == 64


def test_without_controls_there_is_nothing_to_pair():
    assert measure([lambda: run_of(regression(plain))], [], ("test",)).paired is None


def test_reading_is_in_eval_without_grad_and_leaves_the_mode():
    run = run_of(regression(lambda: Residual(dropout=0.5)))
    first, second = read(run, ("test",)), read(run, ("test",))
    assert torch.equal(first.losses, second.losses) and not first.losses.requires_grad
    assert run.model.training and first.score is None
    run.model.eval()
    read(run, ("test",))
    assert not run.model.training


def test_scores_are_read_where_the_task_has_some():
    run = run_of(pictures())
    found = read(run, ("test",))
    (batch,) = run.held_out(("test",))
    expected = (run.model.eval()(batch[0]).argmax(1) == batch[1]).float()
    assert torch.equal(found.scores, expected) and found.score == pytest.approx(float(expected.mean()))


def test_the_cost_of_measuring_is_counted_for_each_model_as_it_is():
    """Models are made and dropped one after the other, so that one may lie where another did."""
    made = [
        lambda width=width: run_of(regression(lambda: nn.Sequential(nn.Linear(5, width), nn.Linear(width, 3))))
        for width in (2, 40, 7)
    ]
    with FlopCounterMode(display=False) as counter:
        found = measure(made, made[:1], ("test",))
    assert found.flops == counter.get_total_flops() == sum(2 * 32 * (5 * w + w * 3) for w in (2, 40, 7, 2))


# Control runs


class Scripted:
    """A run whose validation losses are given."""

    def __init__(self, losses):
        self.losses_by_step, self.step, self.model, self.saved, self.loaded = losses, 0, nn.Linear(1, 1), {}, None

    def gradients(self):
        return torch.tensor(1.0 / (self.step + 1))

    def update(self, loss):
        self.step += 1

    def held_out(self, slices):
        return [self.step if "select" in slices else "test"]

    def outputs(self, model, batch):
        return batch

    def losses(self, outputs, batch):
        at = self.loaded if batch == "test" else batch
        return torch.tensor([self.losses_by_step.get(at, 9.0)])

    def scores(self, outputs, batch):
        return None

    def save(self, path, *, model_only):
        assert model_only
        self.saved[path] = self.step

    def load(self, path):
        self.loaded = self.saved[path]


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({2: 3.0, 4: 1.0, 6: 2.0}, 4),
        ({2: 3.0, 4: 1.0, 6: math.nan}, 4),
        ({2: math.nan, 4: 1.0, 6: 2.0}, 4),
        ({2: math.nan, 4: math.nan, 6: math.nan}, 6),
        ({2: 1.0, 4: 1.0, 6: 1.0}, 2),
    ],
)
def test_a_control_run_returns_to_its_best_validation(losses, best, tmp_path):
    run = Scripted(losses)
    found = run_control(run, 6, 2, tmp_path / "best")
    assert found.best_step == run.loaded == best
    assert [step for step, _, _ in found.losses] == [2, 4, 6]
    assert found.test.loss == losses[best] or math.isnan(losses[best])
    assert found.parameter_count == 2


def test_a_control_run_validates_at_its_end_whatever_the_period(tmp_path):
    found = run_control(Scripted({3: 1.0, 5: 0.5}), 5, 3, tmp_path / "best")
    assert [step for step, _, _ in found.losses] == [3, 5] and found.best_step == 5


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_control_run_that_is_stopped_reads_what_it_has(after, tmp_path):
    asked = []
    run = Scripted({})
    found = run_control(run, 100, 50, tmp_path / "best", stop=lambda: asked.append(1) or len(asked) > after)
    assert run.step == after and [step for step, _, _ in found.losses] == [after]
    assert found.best_step == after


def test_a_control_run_of_a_task_learns_and_counts_its_cost(tmp_path):
    run = run_of(regression(plain))
    found = run_control(run, 40, 10, tmp_path / "best.safetensors")
    assert found.losses[-1][2] < found.losses[0][2] and found.best_validation_loss == min(v for _, _, v in found.losses)
    assert found.test.loss == pytest.approx(read(run, ("test",)).loss)
    with FlopCounterMode(display=False) as counter:
        run.gradients()
    assert found.flops == 40 * counter.get_total_flops()
