"""What a model with a seed must compute: the plain host's output, the branch added by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from esper.host.graft import Graft, Strategy
from esper.kasmina.lifecycle import IN_HOST, State
from tests.matrix.steps import loss_of

if TYPE_CHECKING:
    from tests.matrix.life import Life

# relative and absolute, by the narrowest type that a value passed through
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_NARROW = {"autocast_bfloat16": torch.bfloat16, "autocast_float16_scaler": torch.float16}


def as_spliced(life: Life) -> None:
    """In train mode with gradients, in eval, and without grad. What is compiled is called as training calls it."""
    compiled = life.row["step"] == "compile"
    for training in (True, False):
        expected = _spliced(life, training)
        life.model.train(training)
        x = life.batch(1)
        theirs = life.stepping.forward(x, expected)
        if training or not compiled:
            ours = life.stepping.forward(x)
            agrees(ours, theirs, life, exactly=life.graft is None)
            _gradients_agree(life, ours, theirs, expected)
        if not training or not compiled:
            with torch.no_grad():
                agrees(life.stepping.forward(x), theirs, life, exactly=life.graft is None)
    if not compiled:
        with torch.inference_mode():
            agrees(life.stepping.forward(x), theirs, life, exactly=life.graft is None)
    assert (life.graft is not None) == (life.record.state in IN_HOST and not life.record.folded)


def agrees(ours: Tensor, theirs: Tensor, life: Life, *, exactly: bool = False) -> None:
    assert ours.dtype is theirs.dtype and ours.shape == theirs.shape
    if exactly:
        assert torch.equal(ours, theirs)
    tolerance = _tolerance(life)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def _tolerance(life: Life) -> float:
    return max(_TOLERANCE[life.dtype], _TOLERANCE[_NARROW.get(life.row["step"], torch.float64)])


def _gradients_agree(life: Life, ours: Tensor, theirs: Tensor, expected: nn.Module) -> None:
    """Of every parameter that learns, host's and graft's; in half precision they would only show its rounding."""
    if _tolerance(life) > 1e-3:
        return
    grown = [] if life.graft is None else [p for p in life.graft.parameters() if p.requires_grad]
    pairs = [(p, _of(life.model, name)) for name, p in expected.named_parameters() if p.requires_grad]
    mine = torch.autograd.grad(loss_of(ours), [q for _, q in pairs] + grown)
    wanted = torch.autograd.grad(loss_of(theirs), [p for p, _ in pairs] + grown)
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * _tolerance(life), atol=10 * _tolerance(life))


def _of(model: nn.Module, name: str) -> nn.Parameter:
    return model.get_parameter(name)


def _spliced(life: Life, training: bool) -> nn.Module:
    """A host made anew with the model's weights; its site's output is joined by a hook."""
    plain = life.host.make().to(life.dtype).to(memory_format=life.memory_format)
    own = plain.state_dict().keys()
    state = life.model.state_dict()
    assert {name for name in state if "esper_" not in name} == set(own)
    plain.load_state_dict({name: state[name] for name in own})
    if life.graft is not None:
        alpha = 1.0 if life.record.state is State.FOSSILIZED else life.record.alpha
        join = _Join(life.graft, alpha)
        plain.get_submodule(life.host.site).register_forward_hook(join)
    return plain.train(training)


class _Join:
    """host + alpha * delta in at least float32, on the graft's own channels, which are dimension 1 of every host's."""

    def __init__(self, graft: Graft, alpha: float) -> None:
        self.graft, self.alpha = graft, alpha

    def __call__(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        start, stop = self.graft.span or (0, out.shape[1])
        part = out[:, start:stop]
        branch = self.graft.body(part)
        wide = torch.promote_types(torch.promote_types(part.dtype, branch.dtype), torch.float32)
        host, delta = part.to(wide), branch.to(wide)
        if self.graft.strategy is Strategy.CONVEX:
            delta = delta - host
        elif self.graft.strategy is Strategy.GATED:
            delta = torch.tanh(self.graft.gamma) * delta
        joined = (host + self.alpha * delta).to(out.dtype)
        return torch.cat([out[:, :start], joined, out[:, stop:]], 1)
