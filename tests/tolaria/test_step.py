"""One training step: accumulation, clipping, autocast, schedules; each against the same written by hand."""

import pytest
import torch
from torch import nn

from esper.tolaria.loop import train_bare
from esper.tolaria.step import backward, build_parts, mean_loss, step_flops, train_step
from tests import builders


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_step_is_forward_backward_step():
    task = builders.task()
    parts, by_hand = build_parts(task), task.build_model()
    optimizer = task.make_optimizer(by_hand)
    for step in range(5):
        loss = train_step(parts, task, task.micro_batches(step))
        batch = task.batch(step)
        optimizer.zero_grad()
        expected = task.loss(by_hand(batch[0]), batch).mean()
        expected.backward()
        optimizer.step()
        assert float(loss) == float(expected.detach())
        assert not loss.requires_grad
    assert same(parameters(parts.model), parameters(by_hand))


def test_accumulated_micro_batches_are_one_large_batch():
    whole = builders.task()
    parts_of = [slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16)]
    cut = builders.task(
        accumulate=4, batch=lambda step: [tuple(t[rows] for t in whole.batch(step)) for rows in parts_of]
    )
    one, four = build_parts(whole), build_parts(cut)
    for step in range(5):
        first = train_step(one, whole, whole.micro_batches(step))
        second = train_step(four, cut, cut.micro_batches(step))
        assert float(first) == pytest.approx(float(second), rel=1e-5)
    for a, b in zip(parameters(one.model), parameters(four.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_to_the_norm_and_no_further():
    free = builders.task(make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0))
    clipped = builders.task(make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0), clip_norm=0.01)
    for task, limit in ((free, None), (clipped, 0.01)):
        parts = build_parts(task)
        before = parameters(parts.model)
        train_step(parts, task, task.micro_batches(0))
        moved = torch.cat([(a - b).flatten() for a, b in zip(parameters(parts.model), before, strict=True)]).norm()
        if limit is None:
            assert moved > 0.1
        else:
            assert float(moved) == pytest.approx(limit, rel=1e-3)


def test_accumulated_gradients_are_clipped_once_as_a_whole():
    task = builders.task(
        accumulate=2,
        batch=lambda step: [(builders.rows(seed=i), torch.ones(4, 3)) for i in range(2)],
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0),
        clip_norm=0.01,
    )
    parts = build_parts(task)
    before = parameters(parts.model)
    train_step(parts, task, task.micro_batches(0))
    moved = torch.cat([(a - b).flatten() for a, b in zip(parameters(parts.model), before, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


class Spy(nn.Linear):
    """Remembers the element type it computed in."""

    def forward(self, x):
        out = super().forward(x)
        self.seen = out.dtype
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_autocast_is_on_where_the_task_wants_it(dtype):
    task = builders.task(lambda: Spy(5, 3), autocast_dtype=dtype)
    parts = build_parts(task)
    loss = train_step(parts, task, task.micro_batches(0))
    assert parts.model.seen is (dtype or torch.float32)
    assert parts.model.weight.dtype is torch.float32
    assert parts.model.weight.grad.dtype is torch.float32
    assert bool(torch.isfinite(loss))
    assert (parts.scaler is not None) == (dtype is torch.float16)


def test_bfloat16_learns_what_float32_learns():
    losses = {}
    for dtype in (None, torch.bfloat16):
        task = builders.task(autocast_dtype=dtype)
        parts = build_parts(task)
        losses[dtype] = [float(train_step(parts, task, task.micro_batches(step))) for step in range(150)]
    assert losses[torch.bfloat16][-1] < 0.7 * losses[torch.bfloat16][0]
    assert losses[torch.bfloat16][-1] == pytest.approx(losses[None][-1], rel=0.05)
    assert losses[torch.bfloat16] != losses[None]


def test_a_scaled_loss_is_unscaled_before_it_is_clipped_and_reported():
    task = builders.task(
        autocast_dtype=torch.float16,
        clip_norm=0.01,
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0),
    )
    parts = build_parts(task)
    parts.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = parameters(parts.model)
    loss = train_step(parts, task, task.micro_batches(0))
    moved = torch.cat([(a - b).flatten() for a, b in zip(parameters(parts.model), before, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-2)
    assert float(loss) < 10


def test_a_step_with_gradients_that_overflow_is_skipped_and_the_scale_falls():
    task = builders.task(autocast_dtype=torch.float16)
    parts = build_parts(task)
    parts.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = parameters(parts.model)
    task_loss = train_step(parts, task, task.micro_batches(0))
    assert same(parameters(parts.model), before)
    assert parts.scaler.get_scale() < 2.0**40
    assert bool(torch.isfinite(task_loss))


@pytest.mark.filterwarnings("default:Detected call of")
def test_a_scheduler_moves_once_per_step_not_per_micro_batch():
    task = builders.task(
        accumulate=2,
        batch=lambda step: [(builders.rows(seed=i), torch.ones(4, 3)) for i in range(2)],
        make_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
    )
    parts = build_parts(task)
    for step in range(3):
        train_step(parts, task, task.micro_batches(step))
    assert parts.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 8)


def test_a_plateau_scheduler_gets_the_loss():
    task = builders.task(
        loss=lambda outputs, batch: outputs.square().mean() * 0 + 1.0,
        make_scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.1),
    )
    parts = build_parts(task)
    for step in range(4):
        train_step(parts, task, task.micro_batches(step))
    assert parts.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_backward_leaves_gradients_and_no_step():
    task = builders.task()
    parts = build_parts(task)
    before = parameters(parts.model)
    backward(parts, task, task.micro_batches(0))
    assert same(parameters(parts.model), before)
    assert all(p.grad is not None for p in parts.model.parameters())


def test_flops_are_counted_on_a_copy_and_drawn_from_nobodys_generator():
    task = builders.task(lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    parts = build_parts(task)
    state = torch.get_rng_state()
    flops, rows = step_flops(parts, task)
    assert rows == 16
    # per row 2 x weights forward, the same for weights backward, and for inputs backward but of the first layer
    assert flops == 16 * (2 * (40 + 24) + 2 * (40 + 24) + 2 * 24)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in parts.model.parameters())


def test_the_bare_loop_is_the_same_steps():
    task = builders.task()
    first, second = build_parts(task), build_parts(task)
    last = train_bare(task, first, 4)
    for step in range(4):
        loss = train_step(second, task, task.micro_batches(step))
    assert float(last) == float(loss)
    assert same(parameters(first.model), parameters(second.model))


def test_a_scalar_loss_and_a_vector_are_trained_on_alike():
    vector = builders.task()
    scalar = builders.task(loss=lambda outputs, batch: (outputs - batch[1]).square().mean(1).mean())
    model = vector.build_model()
    batch = vector.batch(0)
    assert torch.equal(mean_loss(model, vector, batch), mean_loss(model, scalar, batch))
