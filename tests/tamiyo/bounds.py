"""What no controller may do, said apart from the code that keeps it: a list of violations, empty in a sound answer."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import protovalidate

from esper.api.common.v1 import seed_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.urza.v1 import library_pb2
from esper.kasmina.lifecycle import ALLOWED, LIVE, State
from esper.tamiyo.memory import load
from esper.tamiyo.policies import POLICIES

from .strategies import Scene

UNDER_WAY = LIVE | {State.GERMINATED, State.LOADING, State.TRAINING}


def violations(scene: Scene, response: pb.DecideResponse) -> list[str]:
    """Everything in the answer that breaks a rule, in words."""
    found = list(_unplanned(response))
    table = {(s.seed.site, s.seed.slot): State(s.state) for s in scene.packet.seeds}
    inserted = 0
    for decision in response.decisions:
        for command in decision.plan.commands:
            kind = command.WhichOneof("action")
            action = getattr(command, kind)
            try:
                protovalidate.validate(command)
            except protovalidate.ValidationError as error:
                found.append(f"{kind} breaks the contract: {error}")
            if kind == "germinate":
                found += _germinate(scene, action, decision)
            elif kind == "insert":
                inserted += 1
                found += _insert(scene, action, inserted)
            found += _moves(table, kind, action)
    return found


def _unplanned(response: pb.DecideResponse) -> Iterator[str]:
    if not response.decisions:
        yield "no decision"
    for decision in response.decisions:
        if not decision.reason:
            yield "a decision without a reason"
        if not (0 <= decision.confidence <= 1 and 0 <= decision.urgency <= 1):
            yield "confidence or urgency outside 0 to 1"
        if decision.kind == pb.DECISION_KIND_NONE and decision.HasField("plan"):
            yield "a plan for nothing"
        if decision.kind != pb.DECISION_KIND_NONE:
            plan = decision.plan
            if not (plan.commands and plan.steps and plan.preconditions and plan.undo and plan.cooldown_steps):
                yield f"an incomplete plan: {plan}"
            if not plan.HasField("cost"):
                yield "a plan without its cost"


def _moves(table: dict[Any, State], kind: str, action: Any) -> Iterator[str]:
    """Carry a command out on the lifecycle alone."""
    seeds = [a.seed for a in action.assignments] if kind == "germinate" else [action.seed]
    targets = {
        "germinate": [State.GERMINATED],
        "insert": [State.GRAFTING],
        "cull": [State.CULLED],
        "cancel": [State.CANCELLED],
    }
    target = targets[kind][0] if kind in targets else State(action.to)
    for seed in seeds:
        key = (seed.site, seed.slot)
        if target not in ALLOWED[table[key]]:
            yield f"{key} cannot go from {table[key].name} to {target.name}"
        table[key] = target


def _germinate(scene: Scene, action: Any, decision: pb.Decision) -> Iterator[str]:
    packet, settings, budget = scene.packet, scene.packet.settings, scene.packet.budget
    memory = load(packet.controller_state)
    if settings.policy == "never":
        yield "never grows"
    if packet.paused or packet.final:
        yield "paused, or over"
    if any(State(s.state) in UNDER_WAY for s in packet.seeds):
        yield "an event is under way"
    if packet.step < settings.first_event_step:
        yield "before the first event"
    if memory.last_event_step >= 0 and packet.step < memory.last_event_step + settings.event_spacing_steps:
        yield "within the cooldown"
    if budget.max_events and packet.spending.events >= budget.max_events:
        yield "over the budget of events"
    yield from _too_late(scene, action)
    yield from _too_dear(scene, action)
    yield from _wrong_seeds(scene, action)
    for assignment in action.assignments:
        yield from _wrong_kernel(scene, memory, assignment)
    per_site = Counter(a.seed.site for a in action.assignments)
    if settings.candidates_per_site and max(per_site.values()) > settings.candidates_per_site:
        yield "more candidates at a site than asked for"
    if decision.plan.cost.parameters < max(_kernel(scene, a.artifact_id).parameter_count for a in action.assignments):
        yield "a plan that costs more parameters than it says"


def _too_late(scene: Scene, action: Any) -> Iterator[str]:
    packet, settings = scene.packet, scene.packet.settings
    needed = action.nursery_steps + settings.verdict_steps + settings.fine_tune_steps
    if packet.total_steps and not settings.ignore_end_of_run and packet.step + needed > packet.total_steps:
        yield "no time for a verdict"


def _too_dear(scene: Scene, action: Any) -> Iterator[str]:
    """The run never grows without end: what is spent, and this event's twin alone, stay within the budget."""
    packet, spent, limit = scene.packet, scene.packet.spending, scene.packet.budget.max_total_flops_ratio
    if not limit:
        return
    if not spent.train_flops or not packet.step:
        host = load(packet.controller_state).host_step_flops
    else:
        host = load(packet.controller_state).host_step_flops or spent.train_flops / packet.step
    if not host:
        yield "a budget of FLOPs that are not counted"
        return
    steps = packet.settings.verdict_steps + packet.settings.fine_tune_steps + 2 * action.nursery_steps
    whole = max(packet.total_steps, packet.step)
    to_come = spent.train_flops / max(packet.step, 1) * (whole - packet.step) + steps * host
    if spent.train_flops + spent.nursery_flops + to_come > limit * host * whole * (1 + 1e-9):
        yield "over the budget of FLOPs"


def _wrong_seeds(scene: Scene, action: Any) -> Iterator[str]:
    seeds = {(s.seed.site, s.seed.slot): s for s in scene.packet.seeds}
    chosen = [(a.seed.site, a.seed.slot) for a in action.assignments]
    if len(set(chosen)) < len(chosen):
        yield "one seed twice"
    tried = [(a.seed.site, a.artifact_id) for a in action.assignments]
    if len(set(tried)) < len(tried):
        yield "one kernel twice at a site"
    for key in chosen:
        if seeds[key].state != seed_pb2.SEED_STATE_DORMANT or scene.packet.step < seeds[key].embargo_until_step:
            yield f"{key} is not free"


def _wrong_kernel(scene: Scene, memory: Any, assignment: Any) -> Iterator[str]:
    packet, budget = scene.packet, scene.packet.budget
    kernel = _kernel(scene, assignment.artifact_id)
    site = next(s for s in packet.sites if s.name == assignment.seed.site)
    if kernel.status != library_pb2.KERNEL_STATUS_VALIDATED or kernel.interface != site.interface:
        yield "a kernel that is not promoted for this interface"
    if packet.step < memory.masked.get(f"{site.name} {kernel.artifact_id}", 0):
        yield "a kernel that is masked"
    added = packet.spending.parameters - packet.spending.initial_parameters + kernel.parameter_count
    if budget.max_added_parameters and added > budget.max_added_parameters:
        yield "over the budget of parameters"
    if budget.max_graft_bytes and not 0 < kernel.peak_bytes <= budget.max_graft_bytes:
        yield "over the budget of bytes"
    if budget.max_added_forward_us:
        branches = [s for s in packet.seeds if State(s.state) is State.FOSSILIZED and not s.folded]
        times = [_time(scene, s.artifact_id) for s in branches] + [kernel.forward_us_p50]
        if not all(times) or sum(times) > budget.max_added_forward_us:
            yield "over the budget of time"


def _insert(scene: Scene, action: Any, number: int) -> Iterator[str]:
    packet, budget = scene.packet, scene.packet.budget
    seed = next(s for s in packet.seeds if (s.seed.site, s.seed.slot) == (action.seed.site, action.seed.slot))
    if packet.paused or packet.final:
        yield "paused, or over"
    if number > 1 or any(State(s.state) in LIVE for s in packet.seeds):
        yield "a second graft on trial"
    added = packet.spending.parameters - packet.spending.initial_parameters + seed.parameter_count
    if budget.max_added_parameters and added > budget.max_added_parameters:
        yield "over the budget of parameters"
    if POLICIES[packet.settings.policy].uses_nursery:
        curves = [c for r in packet.results for c in r.trial.curves if r.trial.event_id == seed.event_id]
        gains = [p.losses.control_mean - p.losses.mean for c in curves if c.seed == action.seed for p in c.points[-1:]]
        if not any(gain > 0 for gain in gains):
            yield "a candidate that gained nothing"


def _kernel(scene: Scene, artifact_id: str) -> library_pb2.Kernel:
    return next(k for k in scene.kernels if k.artifact_id == artifact_id)


def _time(scene: Scene, artifact_id: str) -> float:
    return next((k.forward_us_p50 for k in scene.kernels if k.artifact_id == artifact_id), 0.0)
