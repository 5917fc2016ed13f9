"""The states of the random generators a training step may draw from: torch's, Python's and numpy's."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CUDA = "rng.cuda."


def capture(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Generator states as named tensors, and what is beside them as JSON; of CUDA's, those of the model's devices."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    version, key, gauss = random.getstate()
    numpy: dict[str, Any] = dict(np.random.get_state(legacy=False))
    tensors = {
        "rng.cpu": torch.get_rng_state(),
        **{f"{_CUDA}{index}": torch.cuda.get_rng_state(index) for index in devices},
        "rng.python": torch.tensor(key),
        "rng.numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
    }
    numpy_beside = [int(numpy["state"]["pos"]), int(numpy["has_gauss"]), float(numpy["gauss"])]
    return tensors, {"python": [version, gauss], "numpy": numpy_beside}


def restore(tensors: Mapping[str, Tensor], beside: Mapping[str, Any]) -> None:
    """Put every generator back to what `capture` found."""
    torch.set_rng_state(tensors["rng.cpu"])
    for name, state in tensors.items():
        if name.startswith(_CUDA):
            torch.cuda.set_rng_state(state.cpu(), int(name.removeprefix(_CUDA)))
    version, gauss = beside["python"]
    random.setstate((version, tuple(tensors["rng.python"].tolist()), gauss))
    np.random.set_state(("MT19937", tensors["rng.numpy"].numpy().astype(np.uint32), *beside["numpy"]))
