"""Act on verdicts: a graft that beats its control stays, anything else goes back to the twin."""

from dataclasses import replace

from esper.stats.verdict import judge, nominal_false_keep_rate, probability_above
from esper.tamiyo.actions import Act, Advance, Cull, Decided, Judged, Plan
from esper.tamiyo.masks import cooldown_steps, mask_key
from esper.tamiyo.memory import Memory
from esper.tamiyo.policy import Policy
from esper.tamiyo.view import MeasureView, RunView, SeedKey, SeedView

ROUNDS = 2


def act_on_verdicts(view: RunView, memory: Memory, policy: Policy) -> list[Decided]:
    """One decision per verdict that can be reached now; of a seed with several, in the order of their rounds."""
    if not policy.uses_nursery:
        return _keep_unjudged(view, memory, policy)
    states: dict[SeedKey, SeedView | None] = {seed.key: seed for seed in view.live}
    memory.passed = {life: passed for life, passed in memory.passed.items() if life in map(_life, view.live)}
    decided = []
    for measured in sorted((m for m in view.measures if m.kind == "verdict"), key=lambda m: m.round):
        seed = states.get(measured.seed)
        if seed is None:
            continue
        decision = _judge(view, memory, measured, seed)
        decided.append(decision)
        states[seed.key] = _after(seed, decision)
    return decided


def _after(seed: SeedView, decided: Decided) -> SeedView | None:
    """The seed as it is once the orders are carried out; None: no longer on trial."""
    for order, _ in decided.orders:
        if not isinstance(order, Advance) or order.to == "FOSSILIZED":
            return None
        seed = replace(seed, state=order.to)
    return seed


def _judge(view: RunView, memory: Memory, measured: MeasureView, seed: SeedView) -> Decided:
    if seed.state not in ("EVALUATING", "FINE_TUNING"):
        return Decided(Act.NONE, f"verdict {measured.round} on {seed.key} is not acted on: the seed is {seed.state}")
    rule = view.scheme.rule
    if measured.control == "ablation":  # a host has co-adapted with its graft, so switching it off flatters it
        rule = replace(rule, min_gain=max(rule.min_gain, view.scheme.ablation_min_gain))
    if measured.paired is None:
        why = f"the verdict on {seed.key} could not be measured: {measured.failure}"
        return Decided(Act.REMOVE_SEED, why, ((Cull(seed.key, True), why),), _removal(view, memory, seed), 0.5, 0.8)
    keep, numbers = judge(measured.paired, rule)
    confounded = len(view.live) > 1
    reason = f"verdict {measured.round} on {seed.title} at {seed.key} against its {measured.control}: {numbers}"
    verdict = Judged(
        seed.key,
        keep,
        measured.paired,
        measured.control,
        measured.round,
        nominal_false_keep_rate(rule),
        reason,
        confounded,
    )
    _remember(memory, measured, confounded)
    worth = probability_above(measured.paired, rule.min_gain)
    if keep:
        return _stay(view, memory, seed, verdict, worth)
    memory.masked[mask_key(seed.key.site, seed.artifact_id)] = view.step + 2 * view.scheme.event_spacing_steps
    memory.fruitless_events += 1
    plan = _removal(view, memory, seed)
    cull = (Cull(seed.key, True), reason)
    return Decided(Act.REMOVE_SEED, reason, (cull,), plan, 1.0 - worth, 0.8, verdict=verdict)


def _stay(view: RunView, memory: Memory, seed: SeedView, verdict: Judged, confidence: float) -> Decided:
    """A round passed: fine-tuning. All rounds passed, in whatever order they came: a fossil."""
    passed = memory.passed.setdefault(_life(seed), [])
    if verdict.round not in passed:
        passed.append(verdict.round)
    path = ["FINE_TUNING"] if seed.state == "EVALUATING" else []
    if len(passed) >= ROUNDS:
        path.append("FOSSILIZED")
        memory.fruitless_events = 0
    if not path:
        return Decided(Act.NONE, f"{verdict.reason}; round {verdict.round} was passed before", verdict=verdict)
    plan = Plan(
        steps=tuple(f"{seed.key} becomes {to}" for to in path),
        preconditions=(f"the seed is {seed.state}",),
        undo="a late cull, or Emrakul's removal, takes a fossil kept as a branch out again",
        parameters=seed.parameter_count,
        cooldown_steps=cooldown_steps(view, memory),
    )
    orders = tuple((Advance(seed.key, to), verdict.reason) for to in path)
    return Decided(Act.MODIFY, verdict.reason, orders, plan, confidence, 0.3, verdict=verdict)


def _life(seed: SeedView) -> str:
    """Names a seed from one germination to its end."""
    return f"{seed.key} {seed.event_id}"


def _remember(memory: Memory, measured: MeasureView, confounded: bool) -> None:
    tracked = memory.find(measured.seed)
    if tracked is not None and measured.paired is not None:
        tracked.gain = measured.paired.gain
        tracked.standard_error = measured.paired.gain_standard_error
        tracked.control = measured.control
        tracked.confounded = confounded


def _removal(view: RunView, memory: Memory, seed: SeedView) -> Plan:
    return Plan(
        steps=(f"cull {seed.key}", "go on from the twin where its state is at hand"),
        preconditions=("the seed is on trial in the host",),
        undo="none: the twin's state replaces the run's",
        cooldown_steps=cooldown_steps(view, memory),
    )


def _keep_unjudged(view: RunView, memory: Memory, policy: Policy) -> list[Decided]:
    """A policy without verdicts keeps what it inserted."""
    decided = []
    for seed in view.live:
        to = {"EVALUATING": "FINE_TUNING", "FINE_TUNING": "FOSSILIZED"}.get(seed.state)
        if to is not None:
            reason = f"policy {policy.name} keeps what it inserts, without a verdict"
            plan = Plan(
                steps=(f"{seed.key} becomes {to}",),
                preconditions=(f"the seed is {seed.state}",),
                undo="a late cull takes a fossil kept as a branch out again",
                parameters=seed.parameter_count,
                cooldown_steps=cooldown_steps(view, memory),
            )
            decided.append(Decided(Act.MODIFY, reason, ((Advance(seed.key, to), reason),), plan))
    return decided
