"""Apply a controller's command to a run: whole or not at all."""

from collections.abc import Callable
from pathlib import Path

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import control_pb2
from esper.errors import EsperError, InvalidRequest, PreconditionFailed
from esper.kasmina.codec import read_assignment, read_seed_id, read_state
from esper.kasmina.lifecycle import BEFORE_HOST, SeedId, State
from esper.tolaria.adaptation import Adaptations
from esper.tolaria.measures import submit_probe
from esper.tolaria.run import Run
from esper.tolaria.snapshot import restore


class Commands:
    """One method per kind of command; each returns what was done, in one line, or raises before it changes anything."""

    def __init__(self, run: Run, adaptations: Adaptations, before_insertion: Callable[[SeedId], None]) -> None:
        self.run = run
        self.adaptations = adaptations
        self.before_insertion = before_insertion
        self.paused = False
        self.checkpoint_wanted = False

    def apply(self, command: control_pb2.ControlCommand) -> control_pb2.CommandOutcome:
        """Carry out a command. A refusal is an outcome too."""
        kind = command.WhichOneof("action")
        outcome = control_pb2.CommandOutcome(command_id=command.command_id, step=self.run.step)
        try:
            if kind is None:
                raise InvalidRequest(f"command {command.command_id} has no action")
            outcome.detail = getattr(self, f"_{kind}")(getattr(command, kind), command.reason)
            outcome.applied = True
        except EsperError as error:
            outcome.detail = f"refused: {error}"
        return outcome

    def _germinate(self, action: control_pb2.Germinate, reason: str) -> str:
        if self.paused:
            raise PreconditionFailed("growth is paused; resume it with `esper resume <run>`")
        run = self.run
        if action.nursery_steps:
            run.task_message()  # raises here rather than when the kernels are loaded
        assignments = [read_assignment(a) for a in action.assignments]
        if action.event_id in self.adaptations.events:
            raise InvalidRequest(f"growth event {action.event_id} has begun already")
        run.executor.germinate(assignments, action.event_id, run.step, reason)
        run.events += 1
        self.adaptations.begin_event(action.event_id, assignments, action.nursery_steps)
        for assignment in assignments:
            run.load(assignment.seed, assignment.artifact_id)
        return f"{len(assignments)} seeds germinated"

    def _insert(self, action: control_pb2.Insert, reason: str) -> str:
        if self.paused:
            raise PreconditionFailed("growth is paused; resume it with `esper resume <run>`")
        run, seed = self.run, read_seed_id(action.seed)
        if action.warm:
            raise InvalidRequest(
                "warm insertion is not offered: zero-initialised grafts measured better (docs/growth.md)"
            )
        run.executor.check_insert(seed, run.parts.optimizer)
        self.before_insertion(seed)
        point = self.adaptations.point_before(seed) if run.task is not None else None
        run.executor.insert(seed, run.parts.optimizer, run.step, action.ramp_steps, reason)
        run.insertions += 1
        if point is not None:
            self.adaptations.inserted(seed, point)
        return f"{seed} inserted; alpha rises over {action.ramp_steps} steps"

    def _advance(self, action: control_pb2.Advance, reason: str) -> str:
        run, seed, target = self.run, read_seed_id(action.seed), read_state(action.to)
        if target is State.FOSSILIZED:
            run.executor.fossilise(seed, run.parts.optimizer, run.step, reason, freeze=action.freeze)
        else:
            run.executor.advance(seed, target, run.step, reason)
        return f"{seed} is {target.name}"

    def _cull(self, action: control_pb2.Cull, reason: str) -> str:
        run, seed = self.run, read_seed_id(action.seed)
        if run.executor.table[seed].state in BEFORE_HOST or not action.return_to_twin:
            run.executor.cull(seed, run.parts.optimizer, run.step, reason)
            return f"{seed} culled"
        twin = self.adaptations.latest_twin(seed)
        if twin is None:
            run.executor.cull(
                seed, run.parts.optimizer, run.step, f"{reason}; no state of its twin is at hand to go on from"
            )
            return f"{seed} culled; the host goes on as it is"
        return self._return_to_twin(seed, twin, reason)

    def _return_to_twin(self, seed: SeedId, twin: training_pb2.SnapshotReference, reason: str) -> str:
        run = self.run
        state = run.read_snapshot(Path(twin.path))
        lost = run.step - state.step
        note = f"went on from the twin of step {state.step}" + (f", {lost} steps back" if lost else "")
        run.executor.cull(seed, run.parts.optimizer, run.step, f"{reason}; {note}")
        restore(run.parts, state)
        return f"{seed} culled; {note}"

    def _cancel(self, action: control_pb2.Cancel, reason: str) -> str:
        seed = read_seed_id(action.seed)
        self.run.executor.cancel(seed, self.run.step, reason)
        return f"{seed} cancelled"

    def _release(self, action: control_pb2.Release, reason: str) -> str:
        seed = read_seed_id(action.seed)
        self.run.executor.release(seed, self.run.step, reason)
        return f"{seed} released"

    def _remove(self, action: control_pb2.Remove, reason: str) -> str:
        run, seed = self.run, read_seed_id(action.seed)
        if run.executor.table[seed].state is not State.FOSSILIZED:
            raise PreconditionFailed(f"{seed} is {run.executor.table[seed].state.name}, not a fossil; cull it instead")
        run.executor.cull(seed, run.parts.optimizer, run.step, reason)
        return f"fossil {seed} removed; undo puts it back with the weights it had"

    def _restore(self, action: control_pb2.Restore, reason: str) -> str:
        run, seed = self.run, read_seed_id(action.seed)
        run.executor.undo_removal(seed, run.parts.optimizer)
        return f"fossil {seed} is back"

    def _probe(self, action: control_pb2.Probe, reason: str) -> str:
        seeds = [read_seed_id(s) for s in action.seeds]
        for seed in seeds:
            record = self.run.executor.table[seed]
            if record.state is not State.FOSSILIZED or record.folded:
                raise PreconditionFailed(f"{seed} cannot be probed: only a fossil kept as a branch can be switched off")
        submit_probe(self.run, action.probe_id, seeds)
        return f"probe {action.probe_id} of {len(seeds)} fossils"

    def _pause(self, action: control_pb2.Pause, reason: str) -> str:
        self.paused = action.paused
        return "growth paused" if action.paused else "growth resumed"

    def _checkpoint(self, action: control_pb2.WriteCheckpoint, reason: str) -> str:
        self.checkpoint_wanted = True
        return "a checkpoint will be written at this decision point"
