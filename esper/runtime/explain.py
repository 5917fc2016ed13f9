"""One decision for people: what was decided, why, what was weighed, what it would cost, how to undo it."""

from esper.api.tamiyo.v1 import controller_pb2 as pb


def explain(decision: pb.Decision) -> str:
    """Everything the record of a decision holds, in lines."""
    kind = pb.DecisionKind.Name(decision.kind).removeprefix("DECISION_KIND_")
    lines = [
        f"decision   {decision.decision_id}",
        f"made       at step {decision.step} by policy {decision.policy}: {kind}"
        f" (confidence {decision.confidence:.2f}, urgency {decision.urgency:.2f})",
        f"because    {decision.reason}",
    ]
    if decision.HasField("verdict"):
        lines += _verdict(decision.verdict)
    lines += [f"weighed    {_candidate(candidate)}" for candidate in decision.candidates]
    if decision.HasField("plan"):
        lines += _plan(decision.plan)
    return "\n".join(lines)


def _verdict(verdict: pb.Verdict) -> list[str]:
    m = verdict.measurement
    return [
        f"verdict    {'keep' if verdict.keep else 'remove'}: gain {verdict.gain:+.2%} ± {verdict.standard_error:.2%} "
        f"over {m.pairs} examples (loss {m.mean:.4f} against {m.control_mean:.4f})",
        f"           chance of keeping a graft without effect under this rule: {verdict.false_keep_rate:.0%}"
        + ("; confounded by another live graft" if verdict.confounded else ""),
    ]


def _candidate(candidate: pb.Candidate) -> str:
    numbers = []
    if candidate.HasField("isolated_gain"):
        numbers.append(f"isolated gain {candidate.isolated_gain:+.2%}")
    if candidate.HasField("expected_reward"):
        numbers.append(f"expected {candidate.expected_reward:+.2%}")
    if candidate.HasField("exploration_bonus"):
        numbers.append(f"exploration {candidate.exploration_bonus:+.2%}")
    mark = "*" if candidate.chosen else " "
    seed = f"{candidate.seed.site}/{candidate.seed.slot}"
    return f"{mark} {candidate.title} at {seed}: {'; '.join([*numbers, candidate.reason])}"


def _plan(plan: pb.Plan) -> list[str]:
    lines = [f"plan       {step}" for step in plan.steps]
    lines += [f"needs      {condition}" for condition in plan.preconditions]
    if plan.cost.parameters:
        lines.append(
            f"costs      {plan.cost.parameters} parameters, {plan.cost.bytes} bytes, {plan.cost.flops:.3g} FLOPs"
        )
    if plan.undo:
        lines.append(f"undo       {plan.undo}")
    return [*lines, *(f"command    {c.command_id}: {c.WhichOneof('action')}" for c in plan.commands)]
