"""Safety masks and budgets: what no policy can override. Pure; each answer has its reason."""

from collections.abc import Mapping, Sequence

from esper.tamiyo.memory import Memory
from esper.tamiyo.view import Option, RunView, SeedView, SiteView, Stock

MAX_CANDIDATES = 256  # of one event, the most a command carries
_MAX_DOUBLINGS = 16  # of the cooldown


def may_begin(view: RunView, memory: Memory, nursery_steps: int) -> tuple[bool, str]:
    """Whether a growth event may begin at all. `nursery_steps`: of its trial; 0 without one."""
    scheme, limits = view.scheme, view.limits
    if view.final:
        return False, "training is over"
    if view.paused:
        return False, "growth is paused by an operator"
    if view.live or view.pending:
        seed = (view.live or view.pending)[0]
        return False, f"seed {seed.key} is {seed.state}; one event at a time"
    if limits.max_events and max(view.events, memory.events) >= limits.max_events:
        return False, f"{max(view.events, memory.events)} events; the budget allows {limits.max_events}"
    if view.step < scheme.first_event_step:
        return False, f"step {view.step}; the first event is at {scheme.first_event_step}"
    spacing = cooldown_steps(view, memory)
    if memory.last_event_step >= 0 and view.step < memory.last_event_step + spacing:
        why = f" after {memory.fruitless_events} fruitless events" if memory.fruitless_events else ""
        return False, f"cooldown of {spacing} steps since the event of step {memory.last_event_step}{why}"
    needed = nursery_steps + scheme.verdict_steps + scheme.fine_tune_steps
    if view.total_steps and not scheme.ignore_end_of_run and view.step + needed > view.total_steps:
        return False, f"{view.total_steps - view.step} steps are left; an event needs {needed} to its last verdict"
    if affordable(view, memory, nursery_steps) < 1:
        return False, _too_dear(view, memory, nursery_steps)
    return True, "no mask applies"


def cooldown_steps(view: RunView, memory: Memory) -> int:
    """Steps between the starts of two events: doubled by every event in a row that kept nothing."""
    return view.scheme.event_spacing_steps << min(memory.fruitless_events, _MAX_DOUBLINGS)


def event_flops(view: RunView, memory: Memory, nursery_steps: int, candidates: int) -> float:
    """Floating-point operations of an event at most: its trial, where a candidate costs up to a step of the
    host per step, and its twin.
    """
    trial = nursery_steps * (1 + candidates)
    return memory.host_step_flops * (trial + view.scheme.verdict_steps + view.scheme.fine_tune_steps)


def flops_ratio(view: RunView, memory: Memory, more: float = 0.0) -> float:
    """All operations to the end of the run, with `more`, as a multiple of the never-grown run's."""
    steps_left = max(0, view.total_steps - view.step)
    never_grown = memory.host_step_flops * (view.step + steps_left)
    per_step = view.train_flops / max(view.step, 1)
    return (view.train_flops + view.nursery_flops + more + per_step * steps_left) / never_grown


def affordable(view: RunView, memory: Memory, nursery_steps: int) -> int:
    """How many candidates an event may have; 0 where the budget allows none, or cannot be kept for want of a count."""
    limit = view.limits.max_total_flops_ratio
    if not limit:
        return MAX_CANDIDATES
    if not memory.host_step_flops:
        return 0
    fits = [
        n
        for n in range(1, MAX_CANDIDATES + 1)
        if flops_ratio(view, memory, event_flops(view, memory, nursery_steps, n)) <= limit
    ]
    return max(fits, default=0)


def _too_dear(view: RunView, memory: Memory, nursery_steps: int) -> str:
    limit = view.limits.max_total_flops_ratio
    if not memory.host_step_flops:
        return f"the run's FLOPs are not counted, so that a budget of {limit:g} times them cannot be kept"
    after = flops_ratio(view, memory, event_flops(view, memory, nursery_steps, 1))
    return (
        f"{flops_ratio(view, memory):.2f} times the never-grown run's FLOPs are spent or bound, "
        f"{after:.2f} with another event; the budget is {limit:g}"
    )


def wait_for_stock(view: RunView, stock: Stock) -> tuple[bool, str]:
    """Whether an event should wait for kernels that are being made: a choice among few is a poor one.

    It waits for at most a tenth of the run beyond the first event's step.
    """
    patience = view.scheme.first_event_step + max(view.total_steps // 10, 2 * view.scheme.decision_every_steps)
    if not stock.being_made or view.step >= patience:
        return False, "the stock is complete" if not stock.being_made else f"step {view.step} is too late to wait"
    return True, f"{stock.being_made} kernels for this run's sites are still being made; waiting until step {patience}"


def may_carry(
    view: RunView, memory: Memory, site: SiteView, option: Option, options: Mapping[str, Sequence[Option]]
) -> tuple[bool, str]:
    """Whether one kernel may be tried at one site. `options`: what the library has, to know the fossils' cost."""
    until = memory.masked.get(mask_key(site.name, option.artifact_id), 0)
    if view.step < until:
        return False, f"{option.title} was culled at {site.name}; not again before step {until}"
    fits, why = has_room(view, option.parameter_count)
    if not fits:
        return False, why
    if view.limits.max_graft_bytes:
        if not option.peak_bytes:
            return False, f"the peak bytes of {option.title} were not measured; unmeasured is not within a budget"
        if option.peak_bytes > view.limits.max_graft_bytes:
            return False, f"{option.peak_bytes} peak bytes; the budget is {view.limits.max_graft_bytes}"
    if view.limits.max_added_forward_us:
        return _in_time(view, option, options)
    return True, "no mask applies"


def has_room(view: RunView, parameter_count: int) -> tuple[bool, str]:
    """Whether so many parameters more are within the budget."""
    limit = view.limits.max_added_parameters
    added = view.parameters - view.initial_parameters + parameter_count
    if limit and added > limit:
        return False, f"{added} added parameters; the budget is {limit}"
    return True, "no mask applies"


def _in_time(view: RunView, option: Option, options: Mapping[str, Sequence[Option]]) -> tuple[bool, str]:
    """Whether a kernel's forward time fits, on top of those of the grafts that are in the host as branches."""
    known = {o.artifact_id: o.forward_us for found in options.values() for o in found}
    branches = [seed for seed in view.in_states("FOSSILIZED") if not seed.folded]
    unknown = [seed.title for seed in branches if not known.get(seed.artifact_id)]
    if not option.forward_us:
        unknown.insert(0, option.title)
    if unknown:
        return False, f"the forward time of {unknown[0]} was not measured; unmeasured is not within a budget"
    added = option.forward_us + sum(known[seed.artifact_id] for seed in branches)
    limit = view.limits.max_added_forward_us
    return added <= limit, f"{added:g} us added forward; the budget is {limit:g}"


def may_insert(view: RunView, seed: SeedView) -> tuple[bool, str]:
    """Whether a tried seed may enter the host now."""
    if view.final:
        return False, "training is over"
    if view.paused:
        return False, "growth is paused"
    if view.live:
        return False, f"{view.live[0].key} is on trial in the host"
    return has_room(view, seed.parameter_count)


def free_seeds(view: RunView, site: SiteView) -> list[SeedView]:
    """Seeds of a site that may germinate now: DORMANT, embargo over."""
    return [
        seed
        for seed in view.seeds
        if seed.key.site == site.name and seed.state == "DORMANT" and view.step >= seed.embargo_until_step
    ]


def mask_key(site: str, artifact_id: str) -> str:
    return f"{site} {artifact_id}"
