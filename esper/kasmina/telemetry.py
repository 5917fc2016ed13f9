"""Sample a model's sites: keep hold of one step's activations and gradients, reduce them elsewhere.

Between sampled steps nothing is swapped in. On a sampled step the training thread
only remembers references; `reduce` computes the statistics, on the tensors' device,
wherever it is called.
"""

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.api.kasmina.v1 import telemetry_pb2
from esper.host.forward import carries_grafts, install, join_grafts, own_forward, restore
from esper.host.layout import Layout
from esper.host.sites import Site
from esper.ops import seed_stats
from esper.ops.seed_stats import ABS_MAX, COLUMNS, DEAD_RATIO, ENTROPY, MEAN, NON_FINITE, VARIANCE, ZERO_RATIO


@dataclass(slots=True)
class Sample:
    """What one site did on one step. `version` tells whether the activation was changed in place since."""

    site: str
    layout: Layout
    activation: Tensor
    version: int
    gradient: Tensor | None = None


class Sampler:
    """Arms sites for one forward and backward, then lets go of them."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = sites
        # One partial serves a site for as long as it lives: arming is on the training thread.
        self._watched = {
            name: functools.partial(_sampled_forward, site.module, self, site) for name, site in sites.items()
        }
        self._samples: dict[str, Sample] = {}
        self._stance: Any = None
        self.armed = False

    def arm(self) -> None:
        """Watch the next forward and backward in train mode. What torch.compile made stays and rests meanwhile."""
        self._stance = _uncompiled()
        for name, site in self.sites.items():
            vars(site.module)["forward"] = self._watched[name]
        self.armed = True

    def disarm(self) -> list[Sample]:
        """Give the forwards back and return what was seen."""
        for site in self.sites.values():
            if carries_grafts(site.module):
                install(site.module)
            else:
                restore(site.module)
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
        self.armed = False
        samples, self._samples = list(self._samples.values()), {}
        return samples

    def saw(self, site: Site, output: Any) -> None:
        """Keep hold of a site's output; of several calls or micro-batches the last one counts."""
        if _inside_backward() and site.name in self._samples:
            return  # activation checkpointing computes it again, on a graph that no gradient runs through
        tensor = output[0] if isinstance(output, tuple) else output
        sample = Sample(site.name, site.layout, tensor.detach(), tensor._version)
        self._samples[site.name] = sample
        if tensor.requires_grad:
            tensor.register_hook(functools.partial(_keep_gradient, sample))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sampler":
        """A copied model keeps its own samples, which nobody reads."""
        return Sampler({})


def _uncompiled() -> Any:
    """Let compiled code that the armed forwards do not fit run eagerly, instead of being compiled once more.

    Returns what ends it, or None where nothing is compiled in this process.
    """
    if "torch._dynamo" not in sys.modules:
        return None
    stance = torch.compiler.set_stance("eager_on_recompile")
    if stance.prev.stance == "default":
        return stance
    stance.__exit__(None, None, None)  # the user has chosen another
    return None


def _inside_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _sampled_forward(module: nn.Module, sampler: Sampler, site: Site, *args: Any, **kwargs: Any) -> Any:
    output = join_grafts(module, own_forward(module, *args, **kwargs))
    if module.training and torch.is_grad_enabled():
        sampler.saw(site, output)
    return output


def _keep_gradient(sample: Sample, gradient: Tensor) -> None:
    sample.gradient = gradient.detach()


def reduce(samples: Sequence[Sample], step: int, active_seeds: Mapping[str, int]) -> list[telemetry_pb2.HealthSignal]:
    """Statistics of one step's samples. What was not seen, was overwritten since, or is not finite, is left unset.

    `non_finite` counts over activation and gradient as far as these were seen. Each device is waited for once.
    """
    seen = [tensor for sample in samples for tensor in (_activation(sample), _gradient(sample))]
    rows = _rows(seen, [sample.layout.channel_dim for sample in samples])
    signals = []
    for place, sample in enumerate(samples):
        signal = telemetry_pb2.HealthSignal(site=sample.site, step=step, active_seeds=active_seeds[sample.site])
        activation, gradient = rows.get(2 * place), rows.get(2 * place + 1)
        if activation is not None:
            _write_activation(activation, signal)
        if gradient is not None:
            _write_gradient(gradient, seen[2 * place + 1].numel(), signal)  # type: ignore[union-attr]
        found = [int(row[NON_FINITE]) for row in (activation, gradient) if row is not None]
        if found:
            signal.non_finite = sum(found)
        signals.append(signal)
    return signals


def _activation(sample: Sample) -> Tensor | None:
    there = sample.activation._version == sample.version and sample.activation.numel()
    return sample.activation if there else None


def _gradient(sample: Sample) -> Tensor | None:
    return sample.gradient if sample.gradient is not None and sample.gradient.numel() else None


def _rows(seen: Sequence[Tensor | None], channel_dims: Sequence[int]) -> dict[int, list[float]]:
    """Place -> its row of seed_stats; even places are activations."""
    rows: dict[int, list[float]] = {}
    places: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(seen):
        if tensor is not None:
            places.setdefault(tensor.device, []).append(place)
    for device, here in places.items():
        table = torch.zeros(len(here), COLUMNS, device=device)
        for row, place in enumerate(here):
            tensor = seen[place]
            assert tensor is not None
            dim = 0 if place % 2 else channel_dims[place // 2]
            # An activation is read twice: the first call finds the histogram's range, the second uses it. A range kept
            # from earlier samples would save a read, and make a resumed run tell the controller something else.
            for _ in range(1 if place % 2 else 2):
                seed_stats(tensor, table[row : row + 1], channel_dim=dim)
        rows.update(zip(here, table.tolist(), strict=True))
    return rows


def _write_activation(row: Sequence[float], signal: telemetry_pb2.HealthSignal) -> None:
    if not math.isnan(row[ZERO_RATIO]):
        signal.zero_ratio = row[ZERO_RATIO]
    signal.dead_ratio = row[DEAD_RATIO]
    if row[NON_FINITE]:
        return
    signal.activation_mean = row[MEAN]
    signal.activation_variance = row[VARIANCE]
    signal.activation_abs_max = row[ABS_MAX]
    if row[ABS_MAX] == 0:
        signal.activation_entropy = 0  # one bin holds all
    elif not math.isnan(row[ENTROPY]):
        signal.activation_entropy = max(0.0, row[ENTROPY])


def _write_gradient(row: Sequence[float], count: int, signal: telemetry_pb2.HealthSignal) -> None:
    if not row[NON_FINITE]:
        signal.gradient_norm = math.sqrt(count * (row[VARIANCE] + row[MEAN] ** 2))
        signal.gradient_variance = row[VARIANCE]
