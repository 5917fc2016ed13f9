"""Points a run can go back to, and going back: model, optimiser, scheduler, generators, seeds, clock together."""

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from esper.api.tolaria.v1 import state_pb2
from esper.errors import Exhausted
from esper.kasmina.executor import Executor
from esper.kasmina.lifecycle import LIVE, SeedId, State
from esper.kasmina.regrow import GraftSpec
from esper.kasmina.table import Seed
from esper.tolaria.governor import GovernorOptions, LossWindow, is_steady
from esper.tolaria.run import Run
from esper.tolaria.snapshot import Snapshot, restore

_NEVER_LOCKED = (State.DORMANT, State.FOSSILIZED, State.ROLLED_BACK)


@dataclass(slots=True)
class Point:
    """A state of the run, on its own device."""

    snapshot: Snapshot
    specs: list[GraftSpec]
    seeds: list[Seed]
    window: LossWindow
    uses: int = 0
    certified: bool = False  # the loss was steady then, and `certify_steps` later it still was

    @property
    def step(self) -> int:
        return self.snapshot.step


class RollbackPoints:
    """The latest few points, the latest certified one, and those from before each graft that is still on trial.

    Two of the latest are at least `certify_steps` apart, so that one is from before what makes a loss explode. What
    makes it diverge or collapse can be older than all of them; then the certified one is from before it.
    """

    def __init__(self, options: GovernorOptions, *, keep: int = 3) -> None:
        self.options = options
        self.keep = keep
        self.taken_step = 0  # of the latest but those before grafts
        self.before: dict[SeedId, Point] = {}
        self._points: list[Point] = []

    def take(self, run: Run, window: LossWindow) -> None:
        """Remember the run as it is now, unless it was a moment ago."""
        self._certify(run.step, window)
        if not self._points or run.step - self.taken_step >= self.options.certify_steps:
            self._points.append(_point(run, window))
            self.taken_step = run.step
        older, latest = self._points[: -self.keep], self._points[-self.keep :]
        if not any(p.certified for p in latest):
            latest = [p for p in older if p.certified][-1:] + latest
        self._points = latest
        for seed in [s for s in self.before if run.executor.table[s].state not in LIVE]:
            del self.before[seed]

    @property
    def latest(self) -> list[Point]:
        """All but those from before grafts, oldest first."""
        return list(self._points)

    def resume(self, run: Run, window: LossWindow, points: Sequence[Point], taken_step: int) -> None:
        """Begin again with the points that a checkpoint has; with the run as it is, where it has none.

        Later points are taken when the run that is resumed took them.
        """
        self._points = list(points)
        if not points:
            self.take(run, window)
        self.taken_step = taken_step

    def take_before(self, run: Run, window: LossWindow, seed: SeedId) -> None:
        """Remember the run just before `seed` is inserted, until its trial is over."""
        self.before[seed] = _point(run, window)

    def choose(self, step: int, executor: Executor, window: LossWindow) -> Point:
        """Where to go back to at `step`: the latest point that is sound, the oldest where none is known to be.

        While `window` counts the steps of a divergence or a collapse, a certified one is sound. Otherwise it is
        enough that there was no alarm for `certify_steps` and a loss in its bounds. No graft was on trial in
        it. Raises Exhausted where going back does not help any more.
        """
        free = [p for p in [*self.before.values(), *self._points] if _is_free(p, executor)]
        if not free:
            raise Exhausted(
                f"training is lost at step {step} and there is no state to go back to; "
                "lower the learning rate or check the data, and resume from a checkpoint"
            )
        if window.diverging_steps or window.collapsed_steps:
            sound = [p for p in free if p.certified]
        else:
            sound = [p for p in free if p.step <= step - self.options.certify_steps and _is_calm(p.window)]
        point = max(sound, key=_step) if sound else min(free, key=_step)
        point.uses += 1
        if point.uses > self.options.max_rollbacks_per_point:
            raise Exhausted(
                f"training was lost {point.uses} times after going back to step {point.step} and no seed "
                "explains it: lower the learning rate, clip gradients or check the data"
            )
        self._forget_after(point.step)
        return point

    def _certify(self, step: int, window: LossWindow) -> None:
        if is_steady(window):
            for point in (*self.before.values(), *self._points):
                if step - point.step >= self.options.certify_steps and is_steady(point.window):
                    point.certified = True

    def _forget_after(self, step: int) -> None:
        """Later points are of a course of the run that is undone."""
        self._points = [p for p in self._points if p.step <= step]
        self.taken_step = min(self.taken_step, step)


def describe(run: Run, point: Point, reason: str, suspects: Collection[SeedId] = ()) -> state_pb2.Rollback:
    """What going back to `point` means."""
    locked = [str(seed.id) for seed in _to_lock(run.executor, suspects)]
    return state_pb2.Rollback(step=run.step, restored_step=point.step, reason=reason, locked_seeds=locked)


def roll_back(run: Run, point: Point, reason: str, suspects: Collection[SeedId] = ()) -> None:
    """Put the run back to `point` and lock the seeds that are on trial now, and those under suspicion.

    Of seeds in the host, then or now, the records go back too; of the others, which have no
    part in the host's state, trials and embargoes go on.
    """
    executor, optimizer, step = run.executor, run.parts.optimizer, run.step
    for seed in _to_lock(executor, suspects):
        executor.lock(seed.id, step, f"rolled back: {reason}")
    specs = [replace(spec, state=State.FOSSILIZED) for spec in point.specs]
    within = {spec.seed for spec in specs}
    for seed in executor.table.in_states((State.FOSSILIZED,)):
        if seed.id not in within:
            executor.revert(seed.id, optimizer, step, f"late cull: the run went back to step {point.step}, before it")
    executor.regrow(specs, _fossils(point.seeds, within), optimizer)
    restore(run.parts, point.snapshot)
    run.step = point.step


def _point(run: Run, window: LossWindow) -> Point:
    return Point(
        snapshot=run.capture(),
        specs=run.executor.specs(),
        seeds=[copy.copy(seed) for seed in run.executor.table],
        window=copy.copy(window),
    )


def _to_lock(executor: Executor, suspects: Collection[SeedId]) -> list[Seed]:
    """Seeds on trial, and of the suspects those that carry something and are no part of the host."""
    return [
        seed
        for seed in executor.table
        if seed.state in LIVE or (seed.id in suspects and seed.state not in _NEVER_LOCKED)
    ]


def _is_calm(window: LossWindow) -> bool:
    return not (window.exploding_steps or window.diverging_steps or window.collapsed_steps)


def _is_free(point: Point, executor: Executor) -> bool:
    """Whether no graft was on trial; one that has become a fossil since counts as one, if at its full weight."""
    return all(
        spec.state is State.FOSSILIZED
        or (spec.alpha == 1 and executor.table[spec.seed].state is State.FOSSILIZED and _same(spec, executor))
        for spec in point.specs
    )


def _same(spec: GraftSpec, executor: Executor) -> bool:
    return executor.table[spec.seed].inserted_step == spec.inserted_step


def _fossils(seeds: Iterable[Seed], within: set[SeedId]) -> list[Seed]:
    """The records of a point's grafts, as fossils."""
    kept = [copy.copy(seed) for seed in seeds if seed.id in within]
    for seed in kept:
        seed.state = State.FOSSILIZED
    return kept


def _step(point: Point) -> int:
    return point.step
