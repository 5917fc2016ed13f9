"""Act on what the nursery found: insert the best, cull what showed nothing, cancel the rest."""

import statistics

from esper.stats.verdict import judge
from esper.tamiyo.actions import Act, Cancel, Cull, Decided, Insert, Order, Plan, Weighed
from esper.tamiyo.memory import Memory
from esper.tamiyo.policy import Policy
from esper.tamiyo.view import CurveView, RunView, SeedView, TrialView


def act_on_trials(view: RunView, memory: Memory, policy: Policy) -> list[Decided]:
    """One decision per trial that came back; for policies without a nursery, one per event whose kernels are loaded."""
    if not policy.uses_nursery:
        return _insert_untried(view, policy)
    return [_act(view, memory, trial) for trial in view.trials]


def gain_of(curve: CurveView) -> float:
    """Mean gain of the last two readings; minus infinity for a candidate that failed or was never read."""
    last = [paired.gain for _, paired in curve.points[-2:]]
    mean = sum(last) / len(last) if last and not curve.failure else float("-inf")
    return mean if mean == mean else float("-inf")


def _act(view: RunView, memory: Memory, trial: TrialView) -> Decided:
    seeds = {seed.key: seed for seed in view.in_states("TRAINING") if seed.event_id == trial.event_id}
    if trial.failure:
        why = f"the trial of {trial.event_id} failed: {trial.failure}"
        memory.fruitless_events += 1
        return Decided(Act.REMOVE_SEED, why, tuple((Cull(key, False), why) for key in seeds), _give_up())
    for curve in trial.curves:
        _remember(memory, curve)
    ranked = sorted((c for c in trial.curves if c.seed in seeds), key=lambda c: (-gain_of(c), c.seed))
    useful = [c for c in ranked if _useful(view, c)[0]]
    best = useful[0] if useful and not view.paused else None
    orders: list[tuple[Order, str]] = []
    weighed = []
    for curve in ranked:
        seed = seeds[curve.seed]
        keep, why = _useful(view, curve)
        order, reason = _fate(view, trial, curve, keep, why, best, seed)
        orders.append((order, reason))
        gain = gain_of(curve) if curve.points and not curve.failure else None
        weighed.append(Weighed(curve.seed, seed.artifact_id, seed.title, reason, curve is best, isolated_gain=gain))
    # grafts leave before one enters, so that the order of commands never breaks a limit
    orders.sort(key=lambda pair: isinstance(pair[0], Insert))
    return _decision(view, memory, trial, best, seeds.get(best.seed) if best else None, orders, weighed)


def _fate(
    view: RunView, trial: TrialView, curve: CurveView, useful: bool, why: str, best: CurveView | None, seed: SeedView
) -> tuple[Order, str]:
    if best is not None and curve is best:
        return Insert(curve.seed, trial.event_id, view.scheme.ramp_steps), f"best isolated gain: {why}"
    if not useful:
        return Cull(curve.seed, False), f"{seed.title} shows no use here: {why}"
    better = f"{best.seed} gained {gain_of(best):+.2%}" if best is not None else "growth is paused"
    return Cancel(curve.seed), f"{why}; {better}"


def _useful(view: RunView, curve: CurveView) -> tuple[bool, str]:
    """Whether a candidate's last reading passes the keep rule, and its mean gain is above 0."""
    if curve.failure or not curve.points:
        return False, curve.failure or "it was never read"
    kept, why = judge(curve.points[-1][1], view.scheme.rule)
    step = curve.points[-1][0]
    note = " (stopped at the halving)" if curve.stopped_early else ""
    return kept and gain_of(curve) > 0, f"after {step} nursery steps{note}, {why}"


def _decision(
    view: RunView,
    memory: Memory,
    trial: TrialView,
    best: CurveView | None,
    seed: SeedView | None,
    orders: list[tuple[Order, str]],
    weighed: list[Weighed],
) -> Decided:
    if best is None or seed is None:
        memory.fruitless_events += 1
        reason = f"{trial.event_id}: none of {len(weighed)} candidates showed a gain"
        return Decided(Act.REMOVE_SEED, reason, tuple(orders), _give_up(), 0.8, 0.2, tuple(weighed))
    gain = gain_of(best)
    reason = f"{trial.event_id}: {seed.title} at {best.seed} has the best isolated gain of {len(weighed)}, {gain:+.2%}"
    plan = Plan(
        steps=(
            f"insert {seed.title} at {best.seed} with its last layer zero",
            f"raise alpha to 1 over {view.scheme.ramp_steps} steps",
            f"judge it against its twin after {view.scheme.verdict_steps} steps",
            f"judge it again {view.scheme.fine_tune_steps} steps later",
        ),
        preconditions=("no other graft is on trial", "the seed is TRAINING"),
        undo="cull it: the run goes on from the twin",
        parameters=seed.parameter_count,
        cooldown_steps=view.scheme.event_spacing_steps,
    )
    return Decided(Act.MODIFY, reason, tuple(orders), plan, _confidence(best), 0.5, tuple(weighed))


def _confidence(curve: CurveView) -> float:
    """Probability that the gain is above 0, were the paired difference normal."""
    return statistics.NormalDist().cdf(max(-8.0, min(8.0, curve.points[-1][1].standard_errors)))


def _remember(memory: Memory, curve: CurveView) -> None:
    tracked = memory.find(curve.seed)
    if tracked is not None:
        tracked.isolated_steps = [step for step, _ in curve.points]
        tracked.isolated_gains = [paired.gain for _, paired in curve.points]


def _give_up() -> Plan:
    return Plan(steps=("cull the candidates",), preconditions=("none is in the host",), undo="germinate them again")


def _insert_untried(view: RunView, policy: Policy) -> list[Decided]:
    """A policy without a nursery inserts what it chose as soon as the kernel is loaded."""
    if view.live:
        return []
    return [
        Decided(
            Act.MODIFY,
            f"policy {policy.name} inserts {seed.title} at {seed.key} without a trial",
            ((Insert(seed.key, seed.event_id, view.scheme.ramp_steps), f"chosen by {policy.name}, not tried"),),
            Plan(steps=(f"insert {seed.title}",), preconditions=("the seed is TRAINING",), undo="cull it"),
        )
        for seed in view.in_states("TRAINING")[:1]
    ]
