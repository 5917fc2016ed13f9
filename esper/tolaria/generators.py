"""The states of the random generators a training step may draw from: torch's, Python's and numpy's."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CPU, _PYTHON, _NUMPY, _CUDA = "rng.cpu", "rng.python", "rng.numpy", "rng.cuda."


@dataclass(frozen=True, slots=True)
class GeneratorStates:
    """As the libraries hand them out; turned into tensors and JSON only where they are written, off the step."""

    cpu: Tensor
    cuda: dict[int, Tensor]  # by device index
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        return {
            _CPU: self.cpu,
            **{f"{_CUDA}{index}": state for index, state in self.cuda.items()},
            _PYTHON: torch.tensor(self.python[1]),
            _NUMPY: torch.from_numpy(self.numpy["state"]["key"].astype(np.int64)),
        }

    def beside(self) -> dict[str, Any]:
        """What is not a tensor, as plain data."""
        version, _, gauss = self.python
        numpy = [int(self.numpy["state"]["pos"]), int(self.numpy["has_gauss"]), float(self.numpy["gauss"])]
        return {"python": [version, gauss], "numpy": numpy}

    def restore(self) -> None:
        """Put every generator back to what `capture` found."""
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


def capture(model: nn.Module) -> GeneratorStates:
    """The generators' states now; of CUDA's, those of the model's devices."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    return GeneratorStates(
        cpu=torch.get_rng_state(),
        cuda={index: torch.cuda.get_rng_state(index) for index in sorted(devices)},
        python=random.getstate(),
        numpy=dict(np.random.get_state(legacy=False)),
    )


def read(tensors: Mapping[str, Tensor], beside: Mapping[str, Any]) -> GeneratorStates:
    """From what `tensors` and `beside` wrote."""
    version, gauss = beside["python"]
    position, has_gauss, cached = beside["numpy"]
    key = tensors[_NUMPY].numpy().astype(np.uint32)
    return GeneratorStates(
        cpu=tensors[_CPU],
        cuda={int(n.removeprefix(_CUDA)): t.cpu() for n, t in tensors.items() if n.startswith(_CUDA)},
        python=(version, tuple(tensors[_PYTHON].tolist()), gauss),
        numpy={
            "bit_generator": "MT19937",
            "state": {"key": key, "pos": position},
            "has_gauss": has_gauss,
            "gauss": cached,
        },
    )


def is_state(name: str) -> bool:
    """Whether a tensor of this name is one of `GeneratorStates.tensors`."""
    return name.startswith("rng.")
