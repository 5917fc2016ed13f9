"""Try candidates in isolation on one shared copy of the host that moves on as it trains.

At every step the host copy computes its gradients on the batch; each candidate takes
a step of its own on the task's loss with the host held still; then the host takes
its step. Candidates never see each other and the host never sees a candidate.
(Where several go through the host in one pass, dropout draws one mask over all of
their rows, so that a candidate's noise, and nothing else, depends on its place.)
Measured in docs/growth.md; the straight-through alternative optimises a linearised loss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esper.host.graft import Graft, Strategy
from esper.host.kept import kept_modes
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import SeedId
from esper.kasmina.nursery.fan_out import BATCHED
from esper.kasmina.nursery.flops import FlopMeter
from esper.kasmina.nursery.group import Group, still, try_alone
from esper.kasmina.nursery.port import HostRun, TrialHost
from esper.kasmina.regrow import born, device_of
from esper.stats.paired import Paired, compare


@dataclass(frozen=True, slots=True)
class Candidate:
    """One seed with the kernel it would carry."""

    seed: SeedId
    kernel: Kernel
    weights_seed: int
    strategy: Strategy = Strategy.RESIDUAL
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOptions:
    steps: int = 300
    measure_every_steps: int = 30
    halving_step: int = 0  # 0: no halving
    keep_candidates: int = 0
    slices: tuple[str, ...] = ("select",)

    def reads(self, done: int) -> bool:
        """Whether candidates are read after `done` steps: at the period, at the end, and where the halving looks."""
        return done % self.measure_every_steps == 0 or done in (self.steps, self.halving_step)


@dataclass(slots=True)
class Curve:
    """Held-out readings of one candidate against the host copy at the same step."""

    seed: SeedId
    points: list[tuple[int, Paired]] = field(default_factory=list)
    stopped_early: bool = False
    failure: str = ""

    @property
    def gain(self) -> float:
        """Mean gain of the last two readings, as one alone is noisy; -inf where there is none or it is not finite."""
        last = [paired.gain for _, paired in self.points[-2:]]
        mean = sum(last) / len(last) if last and not self.failure else -math.inf
        return mean if math.isfinite(mean) else -math.inf


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    curves: list[Curve]
    host_steps: int
    flops: float
    batched: bool


class Trial:
    """Candidates under way beside a host that somebody else moves.

    After each step of the host: `train` on its batches, if the candidates are to take a step too, then `passed`.
    """

    def __init__(
        self, run: TrialHost, candidates: Sequence[Candidate], options: TrialOptions, batches: Sequence[Any]
    ) -> None:
        """`batches`: of a step; a candidate that cannot run on the first of them does not take part."""
        self.run = run
        self.options = options
        self.curves = [Curve(candidate.seed) for candidate in candidates]
        self.meter = FlopMeter()
        self.done = 0  # steps of the host
        self._batched = False
        self._groups = _groups(run, candidates, self.curves, self.meter, batches)

    @property
    def over(self) -> bool:
        return self.done >= self.options.steps

    def train(self, batches: Sequence[Any]) -> None:
        """One step of every candidate on the micro-batches of a step, with the host held still."""
        trainable = [p for p in self.run.model.parameters() if p.requires_grad]
        for group in self._groups:
            with still(self.run.model, trainable):
                _meter_mode(group, batches[0], self.meter)
                self.meter.run(("train", id(group), len(group.curves)), partial(group.train, batches))

    def passed(self) -> bool:
        """The host has taken a step: read the candidates, and let the worse ones go, where that is due.

        Returns whether they were read.
        """
        self.done += 1
        reads = self.options.reads(self.done)
        if reads:
            _measure(self.run, self._groups, self.done, self.options.slices, self.meter)
        self._batched = self._batched or any(group.fan_out.mode in BATCHED for group in self._groups)
        if self.done == self.options.halving_step and self.options.keep_candidates:
            _halve(self._groups, self.options.keep_candidates)
        self._groups = [group for group in self._groups if group.curves]
        return reads

    def outcome(self) -> TrialOutcome:
        """What has been found so far."""
        return TrialOutcome(self.curves, self.done, self.meter.total, self._batched)


def run_trial(
    run: HostRun,
    candidates: Sequence[Candidate],
    options: TrialOptions,
    *,
    progress: Callable[[int], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrialOutcome:
    """Train every candidate `options.steps` steps and return its gain curve, in the candidates' order.

    Ends sooner when `stop()` says so between two steps.
    """
    trial = Trial(run, candidates, options, run.batches(run.step))
    while not trial.over and not stop():
        batches = run.batches(run.step)
        loss = trial.meter.run("host", run.gradients)
        trial.train(batches)
        run.update(loss)
        if trial.passed():
            progress(trial.done)
    return trial.outcome()


def _groups(
    run: TrialHost, candidates: Sequence[Candidate], curves: Sequence[Curve], meter: FlopMeter, batches: Sequence[Any]
) -> list[Group]:
    """The candidates that can be tried on this host, by site; what stops the others is in their curves."""
    by_site: dict[str, list[tuple[Graft, Curve]]] = {}
    one = torch.ones((), device=device_of(run.model))
    for index, (candidate, curve) in enumerate(zip(candidates, curves, strict=True)):
        site = run.sites[candidate.seed.site]
        try:
            graft = born(
                candidate.kernel, candidate.weights_seed, site, run.model, one, candidate.strategy, candidate.span
            )
        except Exception as error:  # a kernel may raise anything; the other candidates go on
            curve.failure = f"raised {type(error).__name__}: {error}"
            continue
        curve.failure = meter.run(("dry", index), partial(try_alone, run, site, graft, batches[:1]))
        if not curve.failure:
            by_site.setdefault(site.name, []).append((graft, curve))
    return [Group(run, run.sites[name], members) for name, members in by_site.items()]


def _meter_mode(group: Group, batch: object, meter: FlopMeter) -> None:
    """Looking for the mode is paid once, not at every step."""
    if group.fan_out.mode is None:
        meter.run(("mode", id(group), len(group.curves)), partial(group.fan_out.prepare, batch))


def _measure(run: TrialHost, groups: list[Group], done: int, slices: tuple[str, ...], meter: FlopMeter) -> None:
    """Read every candidate against the host on held-out data. One whose loss is not finite ends its trial."""
    with kept_modes(run.model), torch.no_grad(), still(run.model):
        run.model.eval()
        batches = run.held_out(slices)
        host = meter.run(("read", 0), lambda: _vector([run.losses(run.outputs(run.model, b), b) for b in batches]))
        for group in groups:
            rows = meter.run(("read", id(group), len(group.curves)), partial(group.read, batches))
            for index, curve in enumerate(group.curves):
                reading = compare(_vector([row[index] for row in rows]), host)
                if math.isfinite(reading.mean):
                    curve.points.append((done, reading))
                else:
                    curve.failure = f"its held-out loss is {reading.mean} after {done} steps"
            group.keep([curve for curve in group.curves if not curve.failure])


def _halve(groups: list[Group], keep: int) -> None:
    """Stop all but the `keep` best candidates over all sites."""
    ranked = sorted((curve for group in groups for curve in group.curves), key=lambda c: c.gain, reverse=True)
    for curve in ranked[keep:]:
        curve.stopped_early = True
    for group in groups:
        group.keep([curve for curve in group.curves if not curve.stopped_early])


def _vector(losses: list[Tensor]) -> Tensor:
    return torch.cat([loss.detach().reshape(-1) for loss in losses])
