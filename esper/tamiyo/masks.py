"""Safety masks and budgets: what no policy can override. Pure; each answer has its reason."""

from esper.tamiyo.memory import Memory
from esper.tamiyo.view import Option, RunView, SeedView, SiteView, Stock

# nursery steps of a run with all candidates cost up to about this many steps of the host each
_FORWARD_AND_BACKWARD = 3


def may_begin(view: RunView, memory: Memory) -> tuple[bool, str]:
    """Whether a growth event may begin at all."""
    scheme, limits = view.scheme, view.limits
    if view.final:
        return False, "training is over"
    if view.paused:
        return False, "growth is paused by an operator"
    if view.live or view.pending:
        seed = (view.live or view.pending)[0]
        return False, f"seed {seed.key} is {seed.state}; one event at a time"
    if limits.max_events and view.events >= limits.max_events:
        return False, f"{view.events} events; the budget allows {limits.max_events}"
    if view.step < scheme.first_event_step:
        return False, f"step {view.step}; the first event is at {scheme.first_event_step}"
    spacing = scheme.event_spacing_steps * 2**memory.fruitless_events
    if memory.last_event_step >= 0 and view.step < memory.last_event_step + spacing:
        why = f" after {memory.fruitless_events} fruitless events" if memory.fruitless_events else ""
        return False, f"cooldown of {spacing} steps since the event of step {memory.last_event_step}{why}"
    needed = scheme.nursery_steps + scheme.verdict_steps + scheme.fine_tune_steps
    if view.total_steps and not scheme.ignore_end_of_run and view.step + needed > view.total_steps:
        return False, f"{view.total_steps - view.step} steps are left; an event needs {needed} to its last verdict"
    spent = (view.train_flops + view.nursery_flops) / view.train_flops if view.train_flops else 1.0
    if limits.max_total_flops_ratio and spent >= limits.max_total_flops_ratio:
        return (
            False,
            f"{spent:.2f} times the training's FLOPs are spent; the budget is {limits.max_total_flops_ratio:g}",
        )
    return True, "no mask applies"


def wait_for_stock(view: RunView, stock: Stock) -> tuple[bool, str]:
    """Whether an event should wait for kernels that are being made: a choice among few is a poor one.

    It waits for at most a tenth of the run beyond the first event's step.
    """
    patience = view.scheme.first_event_step + max(view.total_steps // 10, 2 * view.scheme.decision_every_steps)
    if not stock.being_made or view.step >= patience:
        return False, "the stock is complete" if not stock.being_made else f"step {view.step} is too late to wait"
    return True, f"{stock.being_made} kernels for this run's sites are still being made; waiting until step {patience}"


def may_carry(view: RunView, memory: Memory, site: SiteView, option: Option) -> tuple[bool, str]:
    """Whether one kernel may be tried at one site."""
    limits = view.limits
    until = memory.masked.get(mask_key(site.name, option.artifact_id), 0)
    if view.step < until:
        return False, f"{option.title} was culled at {site.name}; not again before step {until}"
    added = view.parameters - view.initial_parameters + option.parameter_count
    if limits.max_added_parameters and added > limits.max_added_parameters:
        return False, f"{added} added parameters; the budget is {limits.max_added_parameters}"
    if limits.max_graft_bytes and option.peak_bytes > limits.max_graft_bytes:
        return False, f"{option.peak_bytes} peak bytes; the budget is {limits.max_graft_bytes}"
    if limits.max_added_forward_us and option.forward_us > limits.max_added_forward_us:
        return False, f"{option.forward_us:g} us forward; the budget is {limits.max_added_forward_us:g}"
    return True, "no mask applies"


def free_seeds(view: RunView, site: SiteView) -> list[SeedView]:
    """Seeds of a site that may germinate now: DORMANT, embargo over."""
    return [
        seed
        for seed in view.seeds
        if seed.key.site == site.name and seed.state == "DORMANT" and view.step >= seed.embargo_until_step
    ]


def mask_key(site: str, artifact_id: str) -> str:
    return f"{site} {artifact_id}"


def graft_flops(site: SiteView, option: Option) -> float:
    """Floating-point operations of one training example through a graft, forward and backward."""
    return float(_FORWARD_AND_BACKWARD * option.flops_per_position * site.positions)
