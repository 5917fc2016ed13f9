"""What rules make of NaN, infinities, kinks and large values, beside torch: one JSON object, operator -> differences.

TRITON_INTERPRET=1 python -m tests.tezzeret.interpreted_extremes FOLDER
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from esper.artifact.agree import draw_weights
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.lower import lower
from tests.tezzeret.fusable_bends import BENDS, ROW_RULES, alone
from tests.tezzeret.interpreted_graphs import form_of

INF, NAN = math.inf, math.nan
_SIDES = [[np.nextafter(np.float32(k), np.float32(side)) for side in (-INF, INF)] for k in (-3, 0, 3, 6, 20)]
VALUES = [NAN, INF, *(v for pair in _SIDES for v in pair), 3.0, 6.0, 20.0, 88.0, 104.0, 1e20, 3e38, 1e-8, 1e-30, 0.0]
VALUES += [0.24, 0.26, 0.77, 0.79, 1.5707964, 3.1415927, 12345.678, 16777215.0, 1e9, 7.3e22]
VALUES = sorted({sign * float(value) for value in VALUES for sign in (1, -1)}, key=repr)
ROWS = [
    [1.0, 2.0, -3.0, 0.5],
    [1e20, -1e20, 3.0, 1e19],
    [300.0, -300.0, 299.0, 0.0],
    [INF, 1.0, 2.0, 3.0],
    [-INF, 1.0, 2.0, 3.0],
    [-INF, -INF, -INF, -INF],
    [NAN, 1.0, 2.0, 3.0],
    [0.0, 0.0, 0.0, 0.0],
    [1e-30, -1e-30, 1e-25, 0.0],
]
# 1 or 2 roundings of a tanh, which are of 2^-24
ROUNDINGS = {"tanh": 2e-7, "gelu_tanh": 4e-7}
ACTIVATIONS = ("gelu", "relu", "sigmoid", "silu", "tanh")


def outcome(call, h: Tensor, parameters: list[Tensor]) -> Tensor:
    """[2, *h.shape]: value, and the input's gradient under output gradients that count up over the channels."""
    leaf = h.clone().requires_grad_()
    out = call(leaf, *parameters)
    (gradient,) = torch.autograd.grad((out * torch.arange(1, h.shape[-1] + 1)).sum(), leaf)
    return torch.stack([out.detach(), gradient])


def differences(operator: str, folder: Path) -> list[str]:
    """Where the kernel's value or gradient is not torch's, which has each position alone.

    Of many values at once its CPU code has gradients of its own at NaN; of one, those of its CUDA code.
    """
    rows = torch.tensor(ROWS) if operator in ROW_RULES else torch.tensor(VALUES).unsqueeze(1)
    interface = Interface(Kind.TOKENS, rows.shape[1])
    graph = alone(operator)
    reference = lower(graph, interface)
    parameters = draw_weights(reference, torch.Generator().manual_seed(0))
    parameters[reference.parameter_names.index("ones")].fill_(1)
    got = outcome(form_of(graph, interface, folder), rows.unsqueeze(0), parameters)[:, 0]
    found = []
    for at, row in enumerate(rows):
        want = outcome(lambda x, *p: reference.functional(p, x), row.view(1, 1, -1), parameters)[:, 0, 0]
        if not torch.allclose(got[:, at], want, rtol=1e-5, atol=ROUNDINGS.get(operator, 1e-12), equal_nan=True):
            found.append(f"{row.tolist()}: {got[:, at].tolist()}, torch {want.tolist()}")
    return found


if __name__ == "__main__":
    home = Path(sys.argv[1])
    print(json.dumps({name: differences(name, home / name) for name in (*BENDS, *ROW_RULES, *ACTIVATIONS)}))
