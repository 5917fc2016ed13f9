"""Carry the seeds of one host model through their lives.

Every method is one move of the lifecycle with what it means for model, table and
optimiser; it checks first and changes then, so a refused call leaves all three as
they were. When to call which is decided elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from torch.optim import Optimizer

from esper.blueprint.interface import Interface
from esper.errors import InvalidRequest, PreconditionFailed
from esper.host.fold import fold
from esper.host.forward import arrange, attach, detach, grafts_of
from esper.host.fused import update_fused_paths
from esper.host.graft import Graft, Strategy
from esper.host.sites import Site
from esper.host.surgery import add_newborns, home_group, remove_parameters
from esper.kasmina.breaker import MAX_FAULTS, Breaker
from esper.kasmina.checks import (
    check_advance,
    check_alpha,
    check_assignments,
    check_cull,
    check_fossil,
    check_graft,
)
from esper.kasmina.integrity import likely_state
from esper.kasmina.kernel import Kernel, weights_seed
from esper.kasmina.lifecycle import BEFORE_HOST, IN_HOST, LIVE, SeedId, State, check
from esper.kasmina.regrow import GraftSpec, born, device_of, dtype_of, need_kernels, regrow
from esper.kasmina.table import Seed, SeedTable


@dataclass(frozen=True, slots=True)
class Assignment:
    """A kernel for a seed, before it is loaded."""

    seed: SeedId
    artifact_id: str
    title: str = ""
    family: str = ""
    strategy: Strategy = Strategy.RESIDUAL
    span: tuple[int, int] | None = None


@dataclass(slots=True)
class Executor:
    """One host model, its sites and its seeds."""

    model: nn.Module
    sites: dict[str, Site]
    table: SeedTable
    run_seed: int = 0
    embargo_steps: int = 300
    use_compiled_forms: bool = True  # which one is faster is measured, so runs that must repeat use none
    max_live: int = 1  # grafts between GRAFTING and FINE_TUNING at one time
    kernels: dict[str, Kernel] = field(default_factory=dict)
    grafts: dict[SeedId, Graft] = field(default_factory=dict)
    removed: dict[SeedId, tuple[Graft, Seed]] = field(default_factory=dict)  # fossils taken out, for undo
    breaker: Breaker = field(default_factory=Breaker)

    def offered(self, seed_id: SeedId, span: tuple[int, int] | None = None) -> Interface:
        """What a seed's kernel must be for: its site's interface, or that of its chunk of the channels."""
        span = span or self.table[seed_id].span
        interface = self.sites[seed_id.site].interface
        return interface if span is None else replace(interface, channels=span[1] - span[0])

    # Before the host

    def germinate(self, assignments: Sequence[Assignment], event_id: str, step: int, reason: str) -> None:
        """Assign a kernel to each of several DORMANT seeds: all or none.

        Raises IllegalTransition for a seed that is not DORMANT, InvalidRequest for one that is
        named twice or whose span is not within its site's channels.
        """
        check_assignments(assignments, self.table, self.sites)
        for assignment in assignments:
            seed = self.table[assignment.seed]
            self.table.clear(seed)
            self.removed.pop(seed.id, None)
            seed.artifact_id, seed.title, seed.family = assignment.artifact_id, assignment.title, assignment.family
            seed.strategy, seed.span, seed.event_id = assignment.strategy, assignment.span, event_id
            self.table.forgive(seed)  # what its slot carried before was another kernel's doing
            self.table.move(seed, State.GERMINATED, step, reason)
            self.table.move(seed, State.LOADING, step, "fetching, verifying and warming up its kernel")

    def loaded(self, seed_id: SeedId, kernel: Kernel, step: int) -> None:
        """LOADING is over: the kernel is verified, built and warm.

        A kernel for another interface culls the seed. Raises IllegalTransition unless it is
        LOADING, InvalidRequest for a kernel that was not assigned to it.
        """
        seed = self.table[seed_id]
        check(seed_id, seed.state, State.TRAINING)
        if kernel.artifact_id != seed.artifact_id:
            raise InvalidRequest(
                f"seed {seed_id} was assigned kernel {seed.artifact_id[:12]} and got {kernel.artifact_id[:12]}"
            )
        wanted = self.offered(seed_id)
        if kernel.interface != wanted:
            self.load_failed(
                seed_id,
                f"kernel {kernel.artifact_id[:12]} is for {kernel.interface}, {seed_id.site} offers {wanted}",
                step,
            )
            return
        self.kernels[kernel.artifact_id] = kernel
        gates = wanted.channels if seed.strategy is Strategy.GATED else 0
        seed.blueprint_id, seed.parameter_count = kernel.blueprint_id, kernel.parameter_count + gates
        self.table.move(seed, State.TRAINING, step, "kernel verified, built and warm; tried in the nursery")

    def load_failed(self, seed_id: SeedId, reason: str, step: int) -> None:
        """LOADING is over: there is no kernel to run. Raises IllegalTransition unless the seed is LOADING."""
        check(seed_id, self.table[seed_id].state, State.TRAINING)  # what only a LOADING seed may become
        self._end(self.table[seed_id], State.CULLED, step, f"its kernel cannot run: {reason}")

    def cancel(self, seed_id: SeedId, step: int, reason: str) -> None:
        """Give up a seed that has not reached the host."""
        self._end(self.table[seed_id], State.CANCELLED, step, reason)

    # In the host

    def insert(self, seed_id: SeedId, optimizer: Optimizer, step: int, ramp_steps: int, reason: str) -> Graft:
        """Graft a tried seed into the host at alpha 0 and let the optimiser train it. Raises as `check_insert`."""
        group = self.check_insert(seed_id, optimizer)
        self.follow_device()
        seed = self.table[seed_id]
        site, kernel = self.sites[seed_id.site], self.kernels[seed.artifact_id]
        drawn = weights_seed(self.run_seed, str(seed_id), seed.artifact_id, seed.event_id)
        graft = born(kernel, drawn, site, self.model, self.table.alpha_view(seed), seed.strategy, seed.span)
        graft.use_form(kernel.form if self.use_compiled_forms else None)
        attach(site, seed_id.slot, graft)
        add_newborns(optimizer, graft.parameters(), group)
        self.grafts[seed_id] = graft
        self.table.begin_ramp(seed, step, ramp_steps)
        self._arrange(site)
        self.table.move(seed, State.GRAFTING, step, reason)
        update_fused_paths(self.model, self.sites.values())
        return graft

    def check_insert(self, seed_id: SeedId, optimizer: Optimizer) -> int:
        """The optimiser group that a seed's parameters would join.

        Raises IllegalTransition unless it may be inserted, PreconditionFailed while its kernel is not loaded,
        NotFound where the kernel is gone, Conflict while `max_live` grafts are on trial, InvalidRequest where the
        optimiser holds none of the model's parameters.
        """
        seed = self.table[seed_id]
        check_graft(seed, self.table, self.max_live)
        need_kernels([spec_of(seed)], self.kernels)
        return home_group(optimizer, self.model, self.sites[seed_id.site].module)

    def step_ramps(self, step: int) -> None:
        """Move alpha of every GRAFTING seed on, but where it is held by hand; one at 1 becomes STABILIZATION."""
        for seed in self.table.advance(step):
            if seed.alpha >= 1.0:
                self.table.move(seed, State.STABILIZATION, step, f"alpha reached 1 after {seed.ramp_steps} steps")

    def advance(self, seed_id: SeedId, target: State, step: int, reason: str) -> None:
        """Move a seed on within the host: EVALUATING, FINE_TUNING. Every other state has a method of its own."""
        seed = self.table[seed_id]
        check_advance(seed, target)
        self.table.move(seed, target, step, reason)

    def hold_alpha(self, seed_id: SeedId, alpha: float) -> None:
        """Set the blend factor, 0 to 1, of a seed on trial by hand; its ramp rests until alpha is 1."""
        seed = self.table[seed_id]
        check_alpha(seed, alpha)
        self.table.hold(seed, alpha)

    def fossilise(self, seed_id: SeedId, optimizer: Optimizer, step: int, reason: str, *, freeze: bool = False) -> None:
        """Make a seed part of the host: folded into the site's weights where algebra allows, else kept as a branch.

        `freeze`: kept as a branch that no longer learns. Raises IllegalTransition for a seed that
        may not be a fossil yet, PreconditionFailed where its alpha was set by hand and is not 1.
        """
        seed = self.table[seed_id]
        check_fossil(seed)
        graft, site = self.grafts[seed_id], self.sites[seed_id.site]
        kept = "it is frozen" if freeze else fold(site, graft, self.model)
        if kept:
            graft.settle()
            if freeze:
                self._freeze(seed, optimizer)
        else:
            seed.folded = True
            self._take_out(seed_id, optimizer)
        self.table.set_alpha(seed, 1.0)
        self.table.move(
            seed, State.FOSSILIZED, step, f"{reason}; {f'kept as a branch: {kept}' if kept else 'folded into the host'}"
        )

    def cull(self, seed_id: SeedId, optimizer: Optimizer, step: int, reason: str) -> None:
        """Remove a seed wherever it stands; nothing of it is left in model or optimiser."""
        seed = self.table[seed_id]
        check_cull(seed)
        if seed.state is State.FOSSILIZED:
            self.removed[seed_id] = (self.grafts[seed_id], _copy_of(seed))
        if seed.state in LIVE and seed.errors >= MAX_FAULTS:
            self.breaker.count(seed.artifact_id)
        if seed_id in self.grafts:
            self._take_out(seed_id, optimizer)
        self._end(seed, State.CULLED, step, reason)

    def undo_removal(self, seed_id: SeedId, optimizer: Optimizer) -> None:
        """Put a removed fossil back with the weights it had, in its place. Restores the record; not a transition."""
        if seed_id not in self.removed:
            raise PreconditionFailed(f"no fossil was removed at {seed_id}, or its slot has been used since")
        seed = self.table[seed_id]
        if seed.state not in (State.CULLED, State.DORMANT):
            raise PreconditionFailed(
                f"slot {seed_id} is {seed.state.name}; cull what is there before the fossil comes back"
            )
        graft, record = self.removed[seed_id]
        site = self.sites[seed_id.site]
        group = home_group(optimizer, self.model, site.module)
        del self.removed[seed_id]
        attach(site, seed_id.slot, graft.to(device_of(self.model), dtype_of(site, self.model)))
        add_newborns(optimizer, [p for p in graft.parameters() if p.requires_grad], group)
        self.grafts[seed_id] = graft
        self.table.restore([record])
        self._arrange(site)
        update_fused_paths(self.model, self.sites.values())

    # Faults and time

    def take_faults(self) -> list[tuple[SeedId, str]]:
        """Faults that live grafts met since the last call; `charge` those that are to count."""
        found = []
        for seed_id, graft in self.grafts.items():
            if graft.fault:
                found.append((seed_id, graft.fault))
                graft.fault = ""
        return found

    def charge(self, seed_id: SeedId) -> int:
        """Count a fault against a seed; returns how many it now has."""
        return self.table.charge(self.table[seed_id])

    def end_embargoes(self, step: int) -> None:
        """CULLED and CANCELLED seeds whose embargo is over are DORMANT again."""
        for seed in self.table.in_states((State.CULLED, State.CANCELLED)):
            if step >= seed.embargo_until_step:
                self.table.move(seed, State.DORMANT, step, "embargo over")

    def lock(self, seed_id: SeedId, step: int, reason: str) -> None:
        """A rollback has put the host back; the seed that caused it stays out until an operator releases it."""
        seed = self.table[seed_id]
        self.table.move(seed, State.ROLLED_BACK, step, reason)
        self.table.set_alpha(seed, 0.0)

    def mend(self, seed_ids: Iterable[SeedId], step: int) -> None:
        """Make records that cannot be such that a rollback can act on them: states follow from the model's grafts."""
        for seed_id in seed_ids:
            seed, graft = self.table[seed_id], self.grafts.get(seed_id)
            self.table.mend(seed, likely_state(seed, graft.settled if graft else None), step)

    def release(self, seed_id: SeedId, step: int, reason: str) -> None:
        """An operator lets a locked seed be DORMANT again."""
        seed = self.table[seed_id]
        if seed.state is not State.ROLLED_BACK:
            raise PreconditionFailed(f"seed {seed_id} is {seed.state.name}; only a ROLLED_BACK seed can be released")
        self.table.move(seed, State.DORMANT, step, reason)
        self.table.forgive(seed)
        self.table.clear(seed)

    # The model as data

    def specs(self) -> list[GraftSpec]:
        """The grafts in the host, in the order they were inserted; folded fossils included."""
        inside = sorted(self.table.in_states(IN_HOST), key=_age)
        return [spec_of(seed) for seed in inside]

    def regrow(self, specs: Sequence[GraftSpec], seeds: Sequence[Seed], optimizer: Optimizer) -> None:
        """Make the host's grafts those of a checkpoint; weights are restored by the caller.

        Raises NotFound for a kernel that is not at hand or a seed that does not exist; nothing has changed then.
        """
        need_kernels(specs, self.kernels)
        for known in (*(spec.seed for spec in specs), *(seed.id for seed in seeds)):
            self.table[known]
        for seed_id in list(self.grafts):
            self._take_out(seed_id, optimizer)
        self.table.restore(seeds)
        self.grafts.update(regrow(self.model, self.sites, specs, self.kernels, optimizer))
        for seed_id, graft in self.grafts.items():
            graft.alpha = self.table.alpha_view(self.table[seed_id])
            if not graft.settled:
                seed = self.table[seed_id]  # after its first fault it goes without the compiled form
                compiled = self.use_compiled_forms and not seed.errors
                graft.use_form(self.kernels[seed.artifact_id].form if compiled else None)
        update_fused_paths(self.model, self.sites.values())

    def follow_device(self) -> None:
        """After the user's `.to(device)`: the table follows, and grafts look at it again."""
        device = device_of(self.model)
        if self.table.layout.alpha_blend.device == device:
            return
        self.table.to(device)
        for seed_id, graft in self.grafts.items():
            graft.alpha = self.table.alpha_view(self.table[seed_id])

    def revert(self, seed_id: SeedId, optimizer: Optimizer, step: int, reason: str) -> None:
        """Late cull of a fossil by returning to a state from before it; the caller restores that state."""
        if seed_id in self.grafts:
            self._take_out(seed_id, optimizer)
        self._end(self.table[seed_id], State.CULLED, step, reason)

    def settle_fossils(self, optimizer: Optimizer) -> None:
        """After a return to a state in which a fossil was still on trial: fold or keep it as fossilising does."""
        for seed in self.table.in_states((State.FOSSILIZED,)):
            graft = self.grafts.get(seed.id)
            if graft is not None and not graft.settled:
                seed.folded = not seed.frozen and not fold(self.sites[seed.id.site], graft, self.model)
                if seed.folded:
                    self._take_out(seed.id, optimizer)
                else:
                    graft.settle()
                    if seed.frozen:
                        self._freeze(seed, optimizer)

    def abandon(self, optimizer: Optimizer | None, step: int, reason: str) -> None:
        """Cull what is on trial and cancel what was to be tried; fossils stay. Without an optimiser none is touched."""
        for seed in self.table.in_states(BEFORE_HOST):
            self.cancel(seed.id, step, reason)
        for seed in self.table.in_states(LIVE):
            self._take_out(seed.id, optimizer)
            self._end(seed, State.CULLED, step, reason)

    def _freeze(self, seed: Seed, optimizer: Optimizer) -> None:
        """A fossil that no longer learns: without gradient, and out of reach of weight decay and momentum."""
        graft = self.grafts[seed.id]
        graft.requires_grad_(False)
        for parameter in graft.parameters():
            parameter.grad = None
        remove_parameters(optimizer, graft.parameters())
        seed.frozen = True

    def _arrange(self, site: Site) -> None:
        """Let a site's grafts run in the order in which a regrown host would run them."""
        carrying = grafts_of(site.module)
        seeds = sorted((s for s in self.table.of_site(site.name) if s.id.slot in carrying), key=_age)
        arrange(site, [seed.id.slot for seed in seeds])

    def _take_out(self, seed_id: SeedId, optimizer: Optimizer | None) -> None:
        graft = self.grafts.pop(seed_id)
        detach(self.sites[seed_id.site], seed_id.slot)
        graft.zero_grad(set_to_none=True)  # it may come back, after a step that it took no part in
        if optimizer is not None:
            remove_parameters(optimizer, graft.parameters())
        update_fused_paths(self.model, self.sites.values())

    def _end(self, seed: Seed, target: State, step: int, reason: str) -> None:
        self.table.move(seed, target, step, reason)
        self.table.set_alpha(seed, 0.0)
        seed.embargo_until_step = step + self.embargo_steps


def spec_of(seed: Seed) -> GraftSpec:
    """What it takes to build a seed's graft again."""
    return GraftSpec(
        seed.id,
        seed.artifact_id,
        seed.state,
        seed.strategy,
        seed.span,
        seed.folded,
        seed.inserted_step,
        seed.alpha,
        seed.blueprint_id,
        seed.frozen,
    )


def _age(seed: Seed) -> tuple[int, int]:
    """Order of insertion; of seeds inserted at one step, the table's."""
    return seed.inserted_step, seed.index


def _copy_of(seed: Seed) -> Seed:
    return Seed(**{name: getattr(seed, name) for name in Seed.__dataclass_fields__})
