"""Sample a model's sites: keep hold of one step's activations and gradients, reduce them elsewhere.

Between sampled steps nothing is swapped in. On a sampled step the training thread
only remembers references; `reduce` computes the statistics, on the tensors' device,
wherever it is called.
"""

import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.api.kasmina.v1 import telemetry_pb2
from esper.host.forward import carries_grafts, install, join_grafts, own_forward, restore
from esper.host.layout import Layout
from esper.host.sites import Site

BINS = 32  # of the histogram whose entropy is taken


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


def reduce(sample: Sample, step: int, active_seeds: int) -> telemetry_pb2.HealthSignal:
    """Statistics of one sample. What was not seen, was overwritten since, or is not finite, is left unset.

    `non_finite` counts over activation and gradient as far as these were seen.
    """
    signal = telemetry_pb2.HealthSignal(site=sample.site, step=step, active_seeds=active_seeds)
    seen = []
    if sample.activation._version == sample.version and sample.activation.numel():
        seen.append(_reduce_activation(sample.activation.float(), sample.layout, signal))
    if sample.gradient is not None and sample.gradient.numel():
        seen.append(_reduce_gradient(sample.gradient.float(), signal))
    if seen:
        signal.non_finite = sum(seen)
    return signal


def _reduce_activation(values: Tensor, layout: Layout, signal: telemetry_pb2.HealthSignal) -> int:
    bad = _count_non_finite(values)
    zero = values == 0
    others = [dim for dim in range(values.ndim) if dim != layout.channel_dim % values.ndim]
    signal.zero_ratio = float(zero.float().mean())
    signal.dead_ratio = float((~(~zero).any(dim=others)).float().mean())
    if not bad:
        limit = float(values.abs().max())
        signal.activation_mean = float(values.mean())
        signal.activation_variance = float(values.var(correction=0))
        signal.activation_abs_max = limit
        signal.activation_entropy = histogram_entropy(values, limit)
    return bad


def _reduce_gradient(gradient: Tensor, signal: telemetry_pb2.HealthSignal) -> int:
    bad = _count_non_finite(gradient)
    if not bad:
        signal.gradient_norm = float(gradient.norm())
        signal.gradient_variance = float(gradient.var(correction=0))
    return bad


def _count_non_finite(values: Tensor) -> int:
    return int((~torch.isfinite(values)).sum())


def histogram_entropy(values: Tensor, limit: float) -> float:
    """Entropy in nats of a 32-bin histogram of `values` over [-limit, limit], 0 to ln 32; 0 for a constant."""
    if not math.isfinite(limit) or limit == 0:
        return 0.0
    counts = torch.histc(values, BINS, -limit, limit)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())
