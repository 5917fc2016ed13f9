"""Act on what the nursery found: insert the best, cull what showed nothing, cancel the rest."""

from collections.abc import Mapping, Sequence

from esper.stats.verdict import judge, probability_above
from esper.tamiyo.actions import Act, Cancel, Cull, Decided, Insert, Order, Plan, Weighed
from esper.tamiyo.masks import cooldown_steps, event_flops, may_insert
from esper.tamiyo.memory import Memory
from esper.tamiyo.policy import Policy
from esper.tamiyo.view import CurveView, RunView, SeedKey, SeedView, TrialView


def act_on_trials(view: RunView, memory: Memory, policy: Policy) -> list[Decided]:
    """One decision per trial that came back; for policies without a nursery, one per event whose kernels are loaded."""
    if not policy.uses_nursery:
        return _insert_untried(view, memory, policy)
    decided: list[Decided] = []
    for trial in {trial.event_id: trial for trial in view.trials}.values():
        entered = any(isinstance(order, Insert) for d in decided for order, _ in d.orders)
        decided.append(_act(view, memory, trial, entered))
    return decided


def gain_of(curve: CurveView) -> float:
    """Mean gain of the last two readings; minus infinity for a candidate that failed or was never read."""
    last = [paired.gain for _, paired in curve.points[-2:]]
    mean = sum(last) / len(last) if last and not curve.failure else float("-inf")
    return mean if mean == mean else float("-inf")


def _act(view: RunView, memory: Memory, trial: TrialView, entered: bool) -> Decided:
    """`entered`: a graft of another trial enters the host at this decision point."""
    seeds = {seed.key: seed for seed in view.in_states("TRAINING") if seed.event_id == trial.event_id}
    if not seeds:
        return Decided(Act.NONE, f"the trial of {trial.event_id} came back, and none of its seeds is TRAINING any more")
    if trial.failure:
        why = f"the trial of {trial.event_id} failed: {trial.failure}"
        memory.fruitless_events += 1
        return Decided(Act.REMOVE_SEED, why, tuple((Cull(key, False), why) for key in seeds), _give_up(view, memory))
    for curve in trial.curves:
        _remember(memory, curve, trial.event_id)
    ranked = sorted(_curves(trial, seeds), key=lambda c: (-gain_of(c), c.seed))
    useful = [c for c in ranked if _useful(view, c)[0]]
    best, held = _enters(view, useful, seeds, entered)
    orders: list[tuple[Order, str]] = []
    weighed = []
    for curve in ranked:
        seed = seeds[curve.seed]
        order, reason = _fate(view, trial, curve, best, held, seed)
        orders.append((order, reason))
        gain = gain_of(curve) if curve.points and not curve.failure else None
        weighed.append(Weighed(curve.seed, seed.artifact_id, seed.title, reason, curve is best, isolated_gain=gain))
    # grafts leave before one enters, so that the order of commands never breaks a limit
    orders.sort(key=lambda pair: isinstance(pair[0], Insert))
    if best is not None:
        return _insertion(view, memory, trial, best, seeds[best.seed], orders, weighed)
    return _no_insertion(view, memory, trial, held, orders, weighed)


def _curves(trial: TrialView, seeds: Mapping[SeedKey, SeedView]) -> list[CurveView]:
    """One curve per seed of the event; a seed the nursery says nothing of was never read."""
    told = {curve.seed: curve for curve in trial.curves if curve.seed in seeds}
    return [told.get(key) or CurveView(key, ()) for key in seeds]


def _enters(
    view: RunView, useful: Sequence[CurveView], seeds: Mapping[SeedKey, SeedView], entered: bool
) -> tuple[CurveView | None, str]:
    """The best that a mask lets into the host, or why none of those that gained may."""
    held = "another graft enters the host now" if entered else ""
    for curve in useful if not entered else ():
        allowed, why = may_insert(view, seeds[curve.seed])
        if allowed:
            return curve, ""
        held = held or why
    return None, held if useful else ""


def _fate(
    view: RunView, trial: TrialView, curve: CurveView, best: CurveView | None, held: str, seed: SeedView
) -> tuple[Order, str]:
    useful, why = _useful(view, curve)
    if best is not None and curve is best:
        return Insert(curve.seed, trial.event_id, view.scheme.ramp_steps), f"best isolated gain: {why}"
    if not useful:
        return Cull(curve.seed, False), f"{seed.title} shows no use here: {why}"
    if best is None:
        return Cancel(curve.seed), f"{why}; {held}"
    ahead = gain_of(best) >= gain_of(curve)
    better = f"{best.seed} gained {gain_of(best):+.2%}" if ahead else may_insert(view, seed)[1]
    return Cancel(curve.seed), f"{why}; {better}"


def _useful(view: RunView, curve: CurveView) -> tuple[bool, str]:
    """Whether a candidate's last reading passes the keep rule, and its mean gain is above 0."""
    if curve.failure or not curve.points:
        return False, curve.failure or "it was never read"
    kept, why = judge(curve.points[-1][1], view.scheme.rule)
    mean = gain_of(curve)
    if kept and mean <= 0:
        why += f", but {mean:+.2%} in the mean of its last two readings"
    step = curve.points[-1][0]
    note = " (stopped at the halving)" if curve.stopped_early else ""
    return kept and mean > 0, f"after {step} nursery steps{note}, {why}"


def _no_insertion(
    view: RunView,
    memory: Memory,
    trial: TrialView,
    held: str,
    orders: list[tuple[Order, str]],
    weighed: list[Weighed],
) -> Decided:
    """Nothing gained, which makes the event fruitless, or what gained may not enter, which does not."""
    if held:
        reason = f"{trial.event_id}: no candidate may enter the host: {held}"
    else:
        memory.fruitless_events += 1
        reason = f"{trial.event_id}: none of {len(weighed)} candidates showed a gain"
    return Decided(Act.REMOVE_SEED, reason, tuple(orders), _give_up(view, memory), 0.8, 0.2, tuple(weighed))


def _insertion(
    view: RunView,
    memory: Memory,
    trial: TrialView,
    best: CurveView,
    seed: SeedView,
    orders: list[tuple[Order, str]],
    weighed: list[Weighed],
) -> Decided:
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
        flops=event_flops(view, memory, 0, 0),
        cooldown_steps=cooldown_steps(view, memory),
    )
    return Decided(
        Act.MODIFY, reason, tuple(orders), plan, probability_above(best.points[-1][1], 0.0), 0.5, tuple(weighed)
    )


def _remember(memory: Memory, curve: CurveView, event_id: str) -> None:
    tracked = memory.find(curve.seed)
    if tracked is not None and tracked.event_id == event_id:
        tracked.isolated_steps = [step for step, _ in curve.points]
        tracked.isolated_gains = [paired.gain for _, paired in curve.points]


def _give_up(view: RunView, memory: Memory) -> Plan:
    return Plan(
        steps=("give up the candidates",),
        preconditions=("none is in the host",),
        undo="germinate them again",
        cooldown_steps=cooldown_steps(view, memory),
    )


def _insert_untried(view: RunView, memory: Memory, policy: Policy) -> list[Decided]:
    """A policy without a nursery inserts what it chose as soon as the kernel is loaded."""
    seed = next(iter(view.in_states("TRAINING")), None)
    if seed is None or view.live:
        return []
    allowed, why = may_insert(view, seed)
    if not allowed:
        return [Decided(Act.NONE, f"{seed.title} at {seed.key} waits: {why}")]
    plan = Plan(
        steps=(f"insert {seed.title}",),
        preconditions=("the seed is TRAINING", "no other graft is on trial"),
        undo="cull it",
        parameters=seed.parameter_count,
        cooldown_steps=cooldown_steps(view, memory),
    )
    order = Insert(seed.key, seed.event_id, view.scheme.ramp_steps)
    reason = f"policy {policy.name} inserts {seed.title} at {seed.key} without a trial"
    return [Decided(Act.MODIFY, reason, ((order, f"chosen by {policy.name}, not tried"),), plan)]
