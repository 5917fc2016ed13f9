"""Act on verdicts: a graft that beats its control stays, anything else goes back to the twin."""

from esper.stats.verdict import Rule, judge, nominal_false_keep_rate
from esper.tamiyo.actions import Act, Advance, Cull, Decided, Judged, Plan
from esper.tamiyo.masks import mask_key
from esper.tamiyo.memory import Memory
from esper.tamiyo.policy import Policy
from esper.tamiyo.view import MeasureView, RunView, SeedView

ROUNDS = 2
# A host has co-adapted with its graft, so switching it off flatters it: ablation must show this much.
ABLATION_MIN_GAIN = 0.05


def act_on_verdicts(view: RunView, memory: Memory, policy: Policy) -> list[Decided]:
    """One decision per verdict that can be reached now."""
    if not policy.uses_nursery:
        return _keep_unjudged(view, policy)
    decided = []
    for measured in view.measures:
        seed = view.seed(measured.seed) if measured.kind == "verdict" else None
        if seed is not None and seed in view.live:
            decided.append(_judge(view, memory, measured, seed))
    return decided


def _judge(view: RunView, memory: Memory, measured: MeasureView, seed: SeedView) -> Decided:
    rule = view.scheme.rule
    if measured.control == "ablation":
        rule = Rule(min_gain=max(rule.min_gain, ABLATION_MIN_GAIN), min_standard_errors=rule.min_standard_errors)
    if measured.paired is None:
        why = f"the verdict on {seed.key} could not be measured: {measured.failure}"
        return Decided(Act.REMOVE_SEED, why, ((Cull(seed.key, True), why),), _removal(seed), 0.5, 0.8)
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
    if not keep:
        memory.masked[mask_key(seed.key.site, seed.artifact_id)] = view.step + 2 * view.scheme.event_spacing_steps
        memory.fruitless_events += 1
        return Decided(
            Act.REMOVE_SEED, reason, ((Cull(seed.key, True), reason),), _removal(seed), 0.9, 0.8, verdict=verdict
        )
    return _stay(memory, measured, seed, reason, verdict)


def _stay(memory: Memory, measured: MeasureView, seed: SeedView, reason: str, verdict: Judged) -> Decided:
    """First verdict: fine-tuning. Second: a fossil. A second that overtakes the first moves the seed one state only."""
    last = measured.round >= ROUNDS and seed.state == "FINE_TUNING"
    to = "FOSSILIZED" if last else "FINE_TUNING"
    if last:
        memory.fruitless_events = 0
    memory.verdicts[str(seed.key)] = measured.round
    plan = Plan(
        steps=(f"{seed.key} becomes {to}",),
        preconditions=(f"the seed is {seed.state}",),
        undo="a late cull, or Emrakul's removal, takes a fossil kept as a branch out again",
        parameters=seed.parameter_count,
    )
    return Decided(Act.MODIFY, reason, ((Advance(seed.key, to), reason),), plan, 0.9, 0.3, verdict=verdict)


def _remember(memory: Memory, measured: MeasureView, confounded: bool) -> None:
    tracked = memory.find(measured.seed)
    if tracked is not None and measured.paired is not None:
        tracked.gain = measured.paired.gain
        tracked.standard_error = measured.paired.gain_standard_error
        tracked.control = measured.control
        tracked.confounded = confounded


def _removal(seed: SeedView) -> Plan:
    return Plan(
        steps=(f"cull {seed.key}", "go on from the twin where its state is at hand"),
        preconditions=("the seed is on trial in the host",),
        undo="none: the twin's state replaces the run's",
    )


def _keep_unjudged(view: RunView, policy: Policy) -> list[Decided]:
    """A policy without verdicts keeps what it inserted."""
    decided = []
    for seed in view.live:
        to = {"EVALUATING": "FINE_TUNING", "FINE_TUNING": "FOSSILIZED"}.get(seed.state)
        if to is not None:
            reason = f"policy {policy.name} keeps what it inserts, without a verdict"
            decided.append(Decided(Act.MODIFY, reason, ((Advance(seed.key, to), reason),)))
    return decided
