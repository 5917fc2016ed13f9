"""Run several candidates of one site in as few passes through the host as its structure allows.

"site"   the host runs once up to the site, then every candidate's rows go on together;
"input"  the batch is repeated first, for hosts whose later layers see earlier ones;
"serial" one pass per candidate, for hosts that mix examples (batch normalisation).

The first batch decides: a mode is used only if it gives what "serial" gives, for stand-ins
that change the site's output each in its own way. (Candidates are no test: at birth they
are all zero, so that even a host that mixed their rows would look as if it did not.)
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from esper.host.forward import join_grafts, own_forward, with_first
from esper.host.fused import off_fused_paths
from esper.host.kept import kept_generators, kept_modes
from esper.host.sites import Site
from esper.kasmina.nursery.port import TrialHost

BATCHED = ("site", "input")


class Joins(Protocol):
    """What goes on from the site: a candidate, or a stand-in for one."""

    def candidate(self, host: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _StandIn:
    place: int

    def candidate(self, host: Tensor) -> Tensor:
        return host * (1.1 + 0.1 * self.place)


class FanOut:
    """Candidates of one site, and the mode found for this host."""

    def __init__(self, run: TrialHost, site: Site, grafts: Sequence[Joins]) -> None:
        self.run = run
        self.site = site
        self.grafts = list(grafts)
        self.mode: str | None = "serial" if len(self.grafts) < 2 else None

    def losses(self, batch: Any) -> list[Tensor]:
        """The task's losses of each candidate on one batch, in order."""
        if not self.grafts:
            return []
        return self._losses(self.prepare(batch), self.grafts, batch)

    def prepare(self, batch: Any) -> str:
        """Find the mode, unless it is known."""
        if self.mode is None:
            self.mode = self._find_mode(batch)
        return self.mode

    def _find_mode(self, batch: Any) -> str:
        if _mixes_examples(self.run.model):
            return "serial"
        stand_ins = [_StandIn(place) for place in range(len(self.grafts))]
        with kept_modes(self.run.model), torch.no_grad(), kept_generators(self.run.model):
            self.run.model.eval()  # dropout would make equal modes look different
            want = self._losses("serial", stand_ins, batch)
            return next((mode for mode in BATCHED if self._agrees(mode, stand_ins, batch, want)), "serial")

    def _agrees(self, mode: str, stand_ins: Sequence[Joins], batch: Any, want: list[Tensor]) -> bool:
        try:
            got = self._losses(mode, stand_ins, batch)
        except Exception:  # the host's shapes do not allow this mode, and whatever checks them may raise anything
            return False
        return all(
            g.shape == w.shape and torch.allclose(g.float(), w.float(), rtol=1e-4, atol=1e-5)
            for g, w in zip(got, want, strict=True)
        )

    def _losses(self, mode: str, grafts: Sequence[Joins], batch: Any) -> list[Tensor]:
        run, count = self.run, len(grafts)
        if mode == "serial":
            first = [self._alone(graft, batch) for graft in grafts[:-1]]
            return [*first, run.losses(self._outputs(grafts[-1:], "site", batch), batch)]
        outputs = self._outputs(grafts, mode, _repeat(batch, count) if mode == "input" else batch)
        return [run.losses(part, batch) for part in _split(outputs, count)]

    def _alone(self, graft: Joins, batch: Any) -> Tensor:
        """One candidate's losses; the next one draws the same dropout masks."""
        with kept_generators(self.run.model):
            return self.run.losses(self._outputs([graft], "site", batch), batch)

    def _outputs(self, grafts: Sequence[Joins], mode: str, batch: Any) -> Any:
        with _fanned(self.site, grafts, mode), off_fused_paths(self.run.model, self.site):
            return self.run.outputs(self.run.model, batch)


@contextlib.contextmanager
def _fanned(site: Site, grafts: Sequence[Joins], mode: str) -> Iterator[None]:
    module = site.module
    kept = vars(module).get("forward")
    module.forward = functools.partial(_fan_out_forward, module, grafts, mode, site.layout.batch_dim)
    try:
        yield
    finally:
        if kept is None:
            del module.forward
        else:
            module.forward = kept


def _fan_out_forward(
    module: nn.Module, grafts: Sequence[Joins], mode: str, batch_dim: int, *args: Any, **kwargs: Any
) -> Any:
    output = join_grafts(module, own_forward(module, *args, **kwargs))
    host = output[0] if isinstance(output, tuple) else output
    parts = [host] * len(grafts) if mode == "site" else host.chunk(len(grafts), batch_dim)
    joined = torch.cat([graft.candidate(part) for graft, part in zip(grafts, parts, strict=True)], batch_dim)
    return with_first(output, joined)


def _mixes_examples(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def _repeat(batch: Any, count: int) -> Any:
    def repeat(leaf: Any) -> Any:
        return torch.cat([leaf] * count) if isinstance(leaf, Tensor) and leaf.ndim else leaf

    return _pytree.tree_map(repeat, batch)


def _split(outputs: Any, count: int) -> list[Any]:
    leaves, spec = _pytree.tree_flatten(outputs)
    parts = [leaf.chunk(count) if isinstance(leaf, Tensor) and leaf.ndim else [leaf] * count for leaf in leaves]
    return [_pytree.tree_unflatten([part[i] for part in parts], spec) for i in range(count)]
