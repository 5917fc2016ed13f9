"""A captured step on a CUDA device: no kernel more than the plain model's, ramps under replay, growth as in eager."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from esper.kasmina.capture import capture
from esper.kasmina.lifecycle import State
from tests import builders
from tests.requirements import require

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _device():
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")


def model_on_device():
    return builders.seeded(builders.perceptron).cuda()


def batches(count):
    return [builders.rows(seed=step).cuda() for step in range(count)]


def stepper(model, optimizer):
    def step(x):
        optimizer.zero_grad(set_to_none=True)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def wrapped():
    handle = builders.handle(model_on_device(), example=builders.rows().cuda())
    handle.optimizer = builders.adam(handle.model, capturable=True)
    handle.executor.use_compiled_forms = False
    return handle


def kernels_of(call):
    """Names of the kernels that `call` runs, sorted."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    on_device = [event.name for event in seen.events() if event.device_type is torch.autograd.DeviceType.CUDA]
    return sorted(name for name in on_device if not name.startswith(("Memcpy", "Memset")))


def test_a_captured_dormant_step_runs_the_kernels_of_the_plain_model():
    x = batches(1)[0]
    plain = model_on_device()
    step = stepper(plain, builders.adam(plain, capturable=True))
    handle = wrapped()
    captured = capture(stepper(handle.model, handle.optimizer), handle.executor)
    for _ in range(5):
        step(x)
        captured(x)
    assert captured.plan.captures == 1
    graph = captured._graph
    expected = kernels_of(lambda: step(x))
    assert expected and kernels_of(graph.replay) == expected


def test_a_ramp_advances_under_replay_without_another_capture():
    handle = wrapped()
    executor, model = handle.executor, handle.model
    seed = builders.lead(executor, State.GRAFTING, handle.optimizer)
    look = capture(lambda x: model(x).detach(), executor)
    x = batches(1)[0]
    for _ in range(5):
        look(x)
    seen = []
    for alpha in (0.0, 0.25, 1.0):
        executor.hold_alpha(seed, alpha)
        seen.append(look(x).clone())
        torch.testing.assert_close(seen[-1], model(x).detach())
    assert look.plan.captures == 1
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_growing_and_culling_captured_gives_the_losses_of_eager():
    losses, captures = {}, 0
    for how in ("eager", "captured"):
        handle = wrapped()
        executor, optimizer = handle.executor, handle.optimizer
        step = stepper(handle.model, optimizer)
        call = capture(step, executor) if how == "captured" else step
        losses[how] = []
        for at, x in enumerate(batches(30)):
            if at == 10:
                seed = builders.lead(executor, State.GRAFTING, optimizer, step=at)
            if 10 < at < 20:
                executor.step_ramps(at)
            if at == 20:
                executor.cull(seed, optimizer, at, "test")
            losses[how].append(call(x).clone())
        captures = call.plan.captures if how == "captured" else captures
    assert captures == 3
    torch.testing.assert_close(torch.stack(losses["captured"]), torch.stack(losses["eager"]), rtol=1e-5, atol=1e-6)
