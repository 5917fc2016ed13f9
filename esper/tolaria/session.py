"""The session: Esper's side of a training loop that stays the user's.

    session = esper.attach(handle, optimizer, task="mytask:task")
    for step in range(steps):
        ...                            # the user's own forward, backward, optimizer.step()
        session.step(batch, loss)
        if session.due:
            session.decide()           # the only place where anything changes
    session.finish()

`step` counts, moves alpha ramps and keeps references; `decide` applies what has arrived
from outside, journals it, and sends the state of the run. Neither waits for the
outside unless the run is deterministic.
"""

import copy
import functools
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from torch import Tensor

from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.kasmina.breaker import MAX_FAULTS
from esper.kasmina.integrity import inspect_table
from esper.kasmina.lifecycle import IN_HOST, SeedId, State, Transition
from esper.kasmina.table import Seed
from esper.kasmina.telemetry import Sampler
from esper.tolaria.adaptation import Adaptations
from esper.tolaria.arrivals import Arrivals
from esper.tolaria.aside import Aside
from esper.tolaria.batches import check_batch, is_checked, shard
from esper.tolaria.commands import Commands
from esper.tolaria.ending import end_run
from esper.tolaria.governor import Governor
from esper.tolaria.measures import cancel_validations, submit_validation
from esper.tolaria.packet import write_packet
from esper.tolaria.progress import Progress, Validations
from esper.tolaria.replicas import Replicas
from esper.tolaria.reports import Reports
from esper.tolaria.rollback import RollbackPoints, describe, roll_back
from esper.tolaria.run import Run
from esper.tolaria.snapshot import load, restore
from esper.tolaria.spool import delete
from esper.tolaria.state import check_topology, restore_state, seeds_of, specs_of, write_manifest
from esper.tolaria.task import Batch
from esper.tolaria.tensor_files import files_of

LAST_CHECKPOINT_S = 120.0  # how long a run that is stopped waits for its checkpoint to be written


class Session:
    """One model in training. Made by `esper.attach`; used from the training thread only."""

    def __init__(
        self,
        run: Run,
        *,
        governor: Governor | None = None,
        telemetry: bool = True,
        checkpoint_every_steps: int = 1000,
    ) -> None:
        self.run = run
        self.checkpoint_every_steps = checkpoint_every_steps
        self.returned_step = 0  # of the state that `finish` put the model to; 0: the last one
        self.ended = self.stopped = False
        self._checkpoint_step = run.step
        self.validated: tuple[int, tuple[str, ...]] = (0, ())  # step and grafts of the last validation asked for
        self._moved: list[Transition] = []  # by rollbacks since the last decision point
        self.governor = governor or Governor()
        self.points = RollbackPoints(self.governor.options)
        self.aside = Aside(self)
        self.progress = Progress()
        self.validations = Validations()
        self.adaptations = Adaptations(run)
        self.commands = Commands(run, self.adaptations, self._before_insertion)
        self.arrivals = Arrivals(run, self.adaptations, self.commands, self.validations)
        sampler = Sampler(run.executor.sites) if telemetry else None
        self.reports = Reports(run, self.progress, sampler)
        self.replicas = Replicas(run) if run.ranks is not None else None
        run.initial_parameters = run.parameter_count
        run.count_flops()
        self.points.take(run, self.governor.window)
        self._ended_ns = time.perf_counter_ns()

    @property
    def steps_done(self) -> int:
        """Training steps the model's state has behind it; a rollback sets it back."""
        return self.run.step

    @property
    def due(self) -> bool:
        """Whether this is a decision point by the run's own period."""
        return self.run.step % self.run.settings.decision_every_steps == 0

    def step(self, batch: Batch, loss: Tensor | float) -> state_pb2.Rollback | None:
        """After each `optimizer.step()`. Returns the rollback if one was needed, else None.

        `batch` is what the step was trained on, `loss` its loss on any device; of several ranks, each gives its own.
        """
        began_ns = time.perf_counter_ns()
        run = self.run
        if run.task is not None and run.shadow is None and is_checked(run.step):
            check_batch(run.task, run.step, batch, self._rank, self._world)
        run.step += 1
        run.train_flops += run.step_flops
        late = self.progress.put(loss if self.replicas is None else self.replicas.vote(loss))
        rollback = None
        reason, suspects = self._why_lost(late)
        if reason:
            rollback = self._roll_back(reason, suspects)
        elif run.executor.grafts:
            self._step_grafts()
        self.reports.sample()
        if run.shadow is not None and rollback is None:
            run.shadow.step(batch)
        self.reports.arm_if_due()
        ended_ns = time.perf_counter_ns()
        self.progress.took(began_ns - self._ended_ns, ended_ns - began_ns)
        self._ended_ns = ended_ns
        return rollback

    def shard(self, batch: Batch) -> Batch:
        """The share of a task's batch that this rank trains on; all of it where there is one rank."""
        return shard(batch, self._rank, self._world)

    @property
    def _rank(self) -> int:
        return self.run.ranks.rank if self.run.ranks is not None else 0

    @property
    def _world(self) -> int:
        return self.run.ranks.world if self.run.ranks is not None else 1

    def decide(self, *, final: bool = False) -> list[Transition]:
        """Apply what has arrived, send the run's state, and return the seeds' moves since the last call.

        The one call per decision point. Between two of them nothing from outside takes effect.
        """
        began_ns = time.perf_counter_ns()
        with self.run.sharing_copies(), self.run.line.together():
            moved = self._decide(final)
        self._ended_ns = time.perf_counter_ns()
        self.progress.took_inside(self._ended_ns - began_ns)
        return moved

    def _decide(self, final: bool) -> list[Transition]:
        run = self.run
        self._check_seeds()
        if self.replicas is not None:
            self.replicas.check()
        run.sequence += 1
        if run.deterministic:
            self.arrivals.wait_for_due()
        self.arrivals.apply(phase=0)
        self._advance()
        self._validate(final)
        packet = self._send_state(final)
        if run.deterministic:
            self._take_reply(packet)
            self._advance()
        self.points.take(run, self.governor.window)
        moved, self._moved = self._moved + self.reports.transitions(), []
        if self._checkpoint_is_due(moved):
            self.checkpoint()
        self.progress.stalled_steps = self.arrivals.stalls
        self.reports.advance()
        return moved

    def checkpoint(self) -> None:
        """Copy everything the run needs to go on; the files are written by others. Between two steps only."""
        run = self.run
        snapshot = run.capture()
        tensors = run.write(snapshot, "checkpoint")
        self.aside.save(snapshot, tensors)
        manifest = write_manifest(self, tensors)
        run.spool.release(Path(tensors.path))
        run.post(lambda: trainer_pb2.AttachRequest(checkpoint=trainer_pb2.CheckpointRequest(manifest=manifest)))
        if not run.muted:  # a replay writes no checkpoint, so the one it began with may be needed again
            run.line.post(functools.partial(delete, run.spool.sweep()))
        self._checkpoint_step = run.step

    def resume(self, manifest: trainer_pb2.CheckpointManifest, tensors: Path) -> None:
        """Go on from a checkpoint: its state, then the journal of what took effect after it, then live.

        Raises Unavailable where a kernel it needs cannot be loaded, PreconditionFailed where model, optimiser
        or seeds differ from those the checkpoint was taken of; nothing has changed then.
        """
        run, seeds = self.run, seeds_of(manifest)
        *others, tensors = files_of(manifest, tensors)
        snapshot = load(tensors, others)
        check_topology(run, manifest, snapshot)
        self._load_kernels(seeds)
        run.executor.regrow(specs_of(manifest), seeds, run.parts.optimizer)
        restore(run.parts, run.with_own_generators(snapshot))
        restore_state(self, manifest)
        self.arrivals.journal.start_replay(manifest.journal_position)
        run.muted = True
        self.arrivals.end_replay()
        run.count_flops()
        self._checkpoint_step = run.step
        self.reports.arm_if_due()

    def _load_kernels(self, seeds: Iterable[Seed]) -> None:
        """Those of grafts in the host and of candidates, one of which may be inserted at the next decision point."""
        executor = self.run.executor
        for seed in seeds:
            if seed.state is State.TRAINING or (seed.state in IN_HOST and not seed.folded):
                interface = executor.offered(seed.id, seed.span)
                loaded = self.arrivals.load_now(seed.id, seed.artifact_id, interface)
                assert loaded.kernel is not None
                executor.kernels[seed.artifact_id] = loaded.kernel

    def _checkpoint_is_due(self, moved: list[Transition]) -> bool:
        """At topology changes, at the period, and on request."""
        changed = any(
            t.target in (State.GRAFTING, State.FOSSILIZED, State.CULLED) and t.source in IN_HOST for t in moved
        )
        inserted = any(t.target is State.GRAFTING for t in moved)
        wanted, self.commands.checkpoint_wanted = self.commands.checkpoint_wanted, False
        late = self.run.step - self._checkpoint_step >= self.checkpoint_every_steps
        return changed or inserted or wanted or late

    def finish(self) -> None:
        """`end` the run and `close` it; its snapshots are deleted."""
        try:
            self.end()
        finally:
            self.close()
        self.run.spool.close()

    def close(self) -> None:
        """Let go of everything outside this process. A run that has not ended can be resumed."""
        self.reports.end_sampling()
        if self.replicas is not None:
            self.replicas.close()
        if self.stopped:
            self.run.line.close(LAST_CHECKPOINT_S)
        else:
            self.run.line.close()
        self.arrivals.journal.close()

    def stop(self) -> None:
        """After a step, and after `decide` where that is due: leave the run so that it can go on.

        What is open stays open, and a checkpoint has all of it; `close` waits until that is written. Several
        ranks call it alike.
        """
        self.checkpoint()
        self.reports.transitions()
        self.reports.advance()
        self.reports.goodbye(stopped=True)
        self.stopped = True

    def end(self) -> None:
        """Judge or cull what is still on trial, return to the best validated state, say goodbye."""
        end_run(self)
        self.ended = True

    def _step_grafts(self) -> None:
        run = self.run
        run.executor.step_ramps(run.step)
        for seed, fault in self.arrivals.settle_faults(run.executor.take_faults()):
            self._recover(seed, fault)
        if self.adaptations.grafts:
            self.adaptations.on_step()

    def _recover(self, seed: SeedId, fault: str) -> None:
        """The step went on without the graft. Next: the reference form instead of the compiled one; in the end, out."""
        run = self.run
        errors = run.executor.charge(seed)
        self.reports.count_recovery("fallback")
        if errors >= MAX_FAULTS:
            reason = f"its kernel failed {errors} times, at last it {fault}"
            run.executor.cull(seed, run.parts.optimizer, run.step, reason)
            self.reports.count_recovery("escalation")
        elif run.executor.grafts[seed].form is not None:
            run.executor.grafts[seed].use_form(None)
            self.reports.count_recovery("graceful_degradation")

    def _why_lost(self, loss: float | None) -> tuple[str, list[SeedId]]:
        """Why the run must go back, and seeds under suspicion: an alarm of the governor, or its journal's word."""
        reason = "" if loss is None else self.governor.see(loss)
        said = self.arrivals.journal.goes_back_at(self.run.step)
        if said is None:
            return reason, []
        return said.reason, [seed.id for seed in self.run.executor.table if str(seed.id) in said.locked_seeds]

    def _check_seeds(self) -> None:
        """Before a decision reads the table: an impossible record sends the run back, a stale device is rewritten."""
        run, executor = self.run, self.run.executor
        damage, reason = inspect_table(executor.table, executor.grafts)
        for seed in damage.stale:
            executor.table.rewrite(executor.table[seed])
        if damage.stale:
            self.reports.count_recovery("fallback")
            run.post_note("warning", f"the seed table was damaged and is written again from its records: {reason}")
        if damage.impossible:
            executor.mend(damage.impossible, run.step)
            self._roll_back(f"the seed table was damaged: {reason}", damage.impossible)

    def _roll_back(self, reason: str, suspects: Collection[SeedId] = ()) -> state_pb2.Rollback:
        run = self.run
        point = self.points.choose(run.step, run.executor, self.governor.window)
        rollback = describe(run, point, reason, suspects)
        self.arrivals.journal.rolled_back(rollback)
        roll_back(run, point, reason, suspects)
        self.governor.window = copy.copy(point.window)
        self.progress.go_back(point.window.mean)
        if self.replicas is not None:
            self.replicas.forget_late()
        cancel_validations(run, after_step=point.step)
        self.validations.forget_after(point.step)
        self.adaptations.forget_gone()
        if run.shadow is not None:
            run.shadow.went_back()
        self.arrivals.rollbacks.append(rollback)
        self.reports.rollback(rollback)
        self._moved += self.reports.transitions()
        self.commands.checkpoint_wanted = True  # the checkpoints of what was undone are of no more use
        self.arrivals.end_replay()
        return rollback

    def _before_insertion(self, seed: SeedId) -> None:
        self.points.take_before(self.run, self.governor.window, seed)

    def _advance(self) -> None:
        """Moves that need no decision, and the work they call for."""
        run = self.run
        run.executor.follow_device()
        run.executor.end_embargoes(run.step)
        for seed in run.executor.table.in_states((State.STABILIZATION,)):
            if self.adaptations.capturing(seed.id):
                run.executor.advance(seed.id, State.EVALUATING, run.step, "snapshots are taken for the verdict")
        self.adaptations.submit_trials()
        self.adaptations.submit_verdicts()
        self.adaptations.forget_gone()
        run.count_flops()

    def _validate(self, final: bool) -> None:
        run = self.run
        due = final or run.step % run.settings.validate_every_steps == 0
        state = (run.step, tuple(str(spec.seed) for spec in run.executor.specs()))
        if run.task is not None and run.step and due and state != self.validated:
            self.validated = state
            submit_validation(run)

    def _take_reply(self, packet: state_pb2.SystemStatePacket) -> None:
        arrivals = self.arrivals
        arrivals.wait_for_reply()
        arrivals.apply(phase=1)
        if not self.run.muted and arrivals.last_reply < self.run.sequence:
            # a replay ended in the middle of the reply: it is asked for again, and what has acted acts once
            self.reports.state(packet)
            arrivals.wait_for_reply()
            arrivals.apply(phase=1)

    def _send_state(self, final: bool) -> state_pb2.SystemStatePacket:
        packet = write_packet(
            self.run,
            self.progress,
            self.validations,
            health=self.reports.health,
            results=self.arrivals.results,
            outcomes=self.arrivals.outcomes,
            rollbacks=self.arrivals.rollbacks,
            controller_state=self.arrivals.controller_state,
            paused=self.commands.paused,
            final=final,
        )
        self.arrivals.clear_reports()
        self.reports.state(packet)
        return packet
