"""What people do to a model once, in the middle of its training, each with what must hold of it."""

import copy

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests import builders
from tests.matrix.factors import DTYPES
from tests.matrix.life import Life


def do(life: Life) -> None:
    """The row's deed. The seed is in the row's state."""
    DEEDS[life.row["deed"]](life)


def _flip_modes(life: Life) -> None:
    before = life.evaluated()
    for training in (True, False, True, False):
        life.model.train(training)
        assert all(graft.training is training for graft in life.executor.grafts.values())
    assert torch.equal(life.evaluated(), before)


def _evaluate(life: Life) -> None:
    """Evaluation leaves no trace, and says the same every time."""
    before = builders.state_of(life.model)
    first = life.evaluated()
    with torch.inference_mode():
        assert torch.equal(life.stepping.forward(life.batch()), first)
    assert torch.equal(life.evaluated(), first)
    after = life.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def _deepcopy(life: Life) -> None:
    """The copy computes the same, and each of the two can be trained without the other noticing."""
    copied = copy.deepcopy(life.model)
    before = life.evaluated(life.model)
    assert torch.equal(life.evaluated(copied.eval()), before)
    life.train_step()
    assert torch.equal(life.evaluated(copied), before)
    ours = life.evaluated(life.model)
    own = torch.optim.SGD([p for p in copied.parameters() if p.requires_grad], lr=0.1)
    copied(life.batch()).float().square().mean().backward()
    own.step()
    assert not torch.equal(life.evaluated(copied), before)
    assert torch.equal(life.evaluated(life.model), ours)


def _average(life: Life) -> None:
    """A moving average of the model as it is now follows every parameter of it, the graft's too."""
    averaged = AveragedModel(life.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(life.model)  # the first one copies
    before = {name: p.detach().clone() for name, p in life.model.named_parameters()}
    life.train_step()
    averaged.update_parameters(life.model)
    mean = dict(averaged.module.named_parameters())
    assert mean.keys() == before.keys()
    for name, parameter in life.model.named_parameters():
        wanted = torch.lerp(parameter.detach().double(), before[name].double(), 0.5).to(parameter.dtype)
        torch.testing.assert_close(mean[name].detach(), wanted)
    assert torch.isfinite(life.evaluated(averaged.eval())).all()


def _convert(dtype: torch.dtype):
    def deed(life: Life) -> None:
        before = life.evaluated(life.model)
        life.convert(dtype)
        after = life.evaluated(life.model)
        tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 0.1}[dtype]
        torch.testing.assert_close(after.double(), before.double(), rtol=tolerance, atol=tolerance)
        assert {p.dtype for p in life.model.parameters()} == {dtype}

    return deed


def _channels_last(life: Life) -> None:
    before = life.evaluated()
    life.model.to(memory_format=torch.channels_last)
    life.memory_format = torch.channels_last
    after = life.evaluated()
    tolerance = 0.1 if life.row["step"].startswith("autocast") else 1e-5
    torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)


def _reload(life: Life) -> None:
    """Model, optimiser and scheduler through their own state dicts, as after a crash."""
    before = life.evaluated()
    life.model.load_state_dict(builders.state_of(life.model))
    life.reload_optimizer()
    life.scheduler.load_state_dict(copy.deepcopy(life.scheduler.state_dict()))
    assert torch.equal(life.evaluated(), before)


DEEDS = {
    "flip_modes": _flip_modes,
    "evaluate": _evaluate,
    "deepcopy": _deepcopy,
    "average": _average,
    **{name: _convert(dtype) for name, dtype in DTYPES.items()},
    "channels_last": _channels_last,
    "reload": _reload,
}
