"""What torch itself does not combine: pairs that the matrix leaves out, each shown on a model that never met Esper."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from tests import builders
from tests.matrix.covering import Pair
from tests.matrix.factors import DTYPES, HOSTS, make_optimizer
from tests.matrix.steps import Stepping


@dataclass(frozen=True)
class Exclusion:
    """Two values that cannot meet in a row, why, and the proof."""

    pair: Pair
    reason: str
    show: Callable[[], None]


def _converted(step: str, deed: str, message: str) -> None:
    """A plain host trains, is converted, and then cannot take the same step."""
    host, dtype = HOSTS["before_norm"], DTYPES[deed]
    model, x = builders.seeded(host.make), host.batch(0)
    optimizer, stepping = make_optimizer("sgd_single", model), Stepping(step, model)
    stepping.backward(x)
    stepping.prepare(optimizer)
    stepping.step(optimizer)
    optimizer.zero_grad()
    model.to(dtype)
    with pytest.raises((ValueError, RuntimeError), match=message):
        stepping.backward(x.to(dtype))
        stepping.prepare(optimizer)


def _fused_momentum_is_lost(deed: str) -> None:
    """Two steps of one parameter: torch's fused form does not carry the momentum, its plain form does."""
    dtype, gradients = DTYPES[deed], (torch.ones(16), torch.zeros(16))
    momenta = {}
    for name in ("sgd_single", "sgd_fused"):
        layer = torch.nn.Linear(16, 1, bias=False)
        torch.nn.init.zeros_(layer.weight).data = layer.weight.data.to(dtype)
        optimizer = make_optimizer(name, layer)
        for gradient in gradients:
            layer.weight.grad = gradient.to(dtype).reshape(1, 16)
            optimizer.step()
        momenta[name] = optimizer.state[layer.weight]["momentum_buffer"].float()
    torch.testing.assert_close(momenta["sgd_single"], torch.full((1, 16), 0.9), rtol=0.02, atol=0.01)
    assert not torch.allclose(momenta["sgd_fused"], momenta["sgd_single"], rtol=0.1)


_MIXED = "torch's batch norm takes no activations of one 16-bit type with parameters of another"
_LOST = "torch's fused SGD loses momenta of 16 bits on the CPU"
_CONVERSIONS = (
    (
        "autocast_float16_scaler",
        "half",
        "a scaler unscales gradients of float32 parameters; a model in half precision has none",
        "Attempting to unscale FP16 gradients",
    ),
    ("autocast_bfloat16", "half", _MIXED, "mixed dtype"),
    ("autocast_float16_scaler", "bfloat16", _MIXED, "mixed dtype"),
)
EXCLUSIONS = (
    *(
        Exclusion(frozenset({("step", step), ("deed", deed)}), why, functools.partial(_converted, step, deed, message))
        for step, deed, why, message in _CONVERSIONS
    ),
    *(
        Exclusion(
            frozenset({("optimizer", "sgd_fused"), ("deed", deed)}),
            _LOST,
            functools.partial(_fused_momentum_is_lost, deed),
        )
        for deed in ("bfloat16", "half")
    ),
)
EXCLUDED = frozenset(exclusion.pair for exclusion in EXCLUSIONS)
