"""Candidates of one site, trained side by side with the host held still."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from esper.host.graft import Graft
from esper.host.kept import kept_buffers, kept_generators
from esper.host.sites import Site
from esper.host.surgery import follow, home_group, sibling
from esper.kasmina.nursery.fan_out import FanOut
from esper.kasmina.nursery.port import TrialHost

if TYPE_CHECKING:
    from esper.kasmina.nursery.trial import Curve

Result = TypeVar("Result")


class Group:
    """The candidates of one site that are still in the running."""

    def __init__(self, run: TrialHost, site: Site, members: Sequence[tuple[Graft, Curve]]) -> None:
        self.run = run
        self.curves = [curve for _, curve in members]
        self.grafts = [graft for graft, _ in members]
        self.fan_out = FanOut(run, site, self.grafts)
        self._home = home_group(run.optimizer, run.model, site.module)
        flat = [p for graft in self.grafts for p in graft.parameters()]
        # candidates of fixed functions have nothing to train and are measured as they are
        self._optimizer = sibling(run.optimizer, flat, self._home) if flat else None

    def train(self, batches: Sequence[Any]) -> None:
        """One step of every candidate on the task's loss. One that raises ends its own trial."""
        if self._optimizer is not None:
            follow(self._optimizer, self.run.optimizer, self._home)
            self._without_failing(lambda: self._step(batches), batches)

    def read(self, batches: Sequence[Any]) -> list[list[Tensor]]:
        """The task's losses of each candidate on each batch: one row per batch."""
        return self._without_failing(lambda: [self.fan_out.losses(batch) for batch in batches], batches)

    def keep(self, curves: Iterable[Curve]) -> None:
        """Go on with these candidates only."""
        wanted = {id(curve) for curve in curves}
        kept = [i for i, curve in enumerate(self.curves) if id(curve) in wanted]
        if len(kept) < len(self.curves):
            self.grafts = [self.grafts[i] for i in kept]
            self.fan_out = FanOut(self.run, self.fan_out.site, self.grafts)
            self.curves = [self.curves[i] for i in kept]

    def _step(self, batches: Sequence[Any]) -> None:
        assert self._optimizer is not None
        self._optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            losses = [loss.mean() for loss in self.fan_out.losses(batch) if loss.requires_grad]
            if losses:
                # candidates share no parameter, so the gradient of the sum is each one's own
                (torch.stack(losses).sum() / len(batches)).backward()
        if self.run.clip_norm is not None:
            for graft in self.grafts:
                nn.utils.clip_grad_norm_(graft.parameters(), self.run.clip_norm)
        self._optimizer.step()

    def _without_failing(self, work: Callable[[], Result], batches: Sequence[Any]) -> Result:
        """Do `work`; if a candidate is to blame for its failing, do it again without that one."""
        try:
            return work()
        except Exception as error:  # a kernel may raise anything; the other candidates go on
            for graft, curve in zip(self.grafts, self.curves, strict=True):
                curve.failure = try_alone(self.run, self.fan_out.site, graft, batches)
            sound = [curve for curve in self.curves if not curve.failure]
            if len(sound) == len(self.curves):
                raise error
            self.keep(sound)
            return work()


def try_alone(run: TrialHost, site: Site, graft: Graft, batches: Iterable[Any]) -> str:
    """What stops a candidate on these batches, in the words of a graft in the host; empty if nothing does."""
    guarded = _Guarded(graft)
    try:
        with torch.no_grad(), still(run.model):
            losses = [loss for batch in batches for loss in FanOut(run, site, [guarded]).losses(batch)]
    except Exception as error:  # the host or the loss may not take what the candidate makes of them
        return f"raised {type(error).__name__}: {error}"
    if graft.fault:
        return graft.fault
    return "" if all(bool(torch.isfinite(loss).all()) for loss in losses) else "its loss is not finite"


@dataclass(frozen=True, slots=True)
class _Guarded:
    """A candidate under the guard of a graft in the host, which notes why its kernel cannot run."""

    graft: Graft

    def candidate(self, host: Tensor) -> Tensor:
        joined: Tensor = self.graft(host)
        return joined


@contextlib.contextmanager
def still(model: nn.Module, trainable: Sequence[nn.Parameter] = ()) -> Iterator[None]:
    """Hold a host: `trainable` take no gradient inside, and its buffers and the generators come back as they were."""
    with kept_generators(model), kept_buffers(model):
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
