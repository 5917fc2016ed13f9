"""A controller that follows a script: one growth event, its best candidate inserted, two verdicts, and an end."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.kasmina.lifecycle import State
from tests.flow.local import Shelf

Packet = state_pb2.SystemStatePacket
Command = control_pb2.ControlCommand
NURSERY_STEPS = 20


@dataclass
class Script:
    """Answers a packet by nothing but what is in it, so that a run that is resumed hears the same."""

    shelf: Shelf
    germinate_at: int = 20
    keep: bool = True  # what the second verdict is followed by
    asked: list[Command] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)

    def __call__(self, packet: Packet) -> controller_pb2.DecideResponse:
        self.packets.append(packet)
        commands = [] if packet.final else list(self._commands(packet))
        for number, command in enumerate(commands):
            command.command_id, command.run_id = f"{packet.sequence}/{number}", packet.run_id
            command.issuer, command.reason = "script", "it is written"
        self.asked += commands
        plan = controller_pb2.Plan(commands=commands)
        decision = controller_pb2.Decision(decision_id=str(packet.sequence), plan=plan, reason="script")
        state = f"answered {packet.sequence}".encode()
        return controller_pb2.DecideResponse(decisions=[decision], controller_state=state)

    def _commands(self, packet: Packet) -> Iterable[Command]:
        if packet.step == self.germinate_at and all(seed.state == State.DORMANT for seed in packet.seeds):
            yield Command(germinate=self._event(packet))
        for result in packet.results:
            if result.HasField("trial"):
                yield from self._after_trial(packet, result.trial)
            elif result.measure.label.startswith("verdict"):
                yield from self._after_verdict(packet, result.measure.label)

    def _event(self, packet: Packet) -> control_pb2.Germinate:
        assignments = []
        for site in packet.sites:
            kernels = self.shelf.fitting(site.interface)
            for slot, kernel in enumerate(kernels[:2]):
                seed = seed_pb2.SeedRef(run_id=packet.run_id, site=site.name, slot=slot)
                assignments.append(
                    control_pb2.Assignment(seed=seed, artifact_id=kernel.artifact_id, title=kernel.title)
                )
        return control_pb2.Germinate(event_id="event-1", assignments=assignments, nursery_steps=NURSERY_STEPS)

    def _after_trial(self, packet: Packet, trial: nursery_pb2.TrialResult) -> Iterable[Command]:
        tried = [curve for curve in trial.curves if curve.points]  # the others failed, as beside a host that is lost
        ranked = sorted(tried, key=lambda curve: curve.points[-1].losses.mean)
        for curve in [*ranked[1:], *(curve for curve in trial.curves if not curve.points)]:
            yield Command(cancel=control_pb2.Cancel(seed=curve.seed))
        for curve in ranked[:1]:
            yield Command(insert=control_pb2.Insert(seed=curve.seed, ramp_steps=packet.settings.ramp_steps))

    def _after_verdict(self, packet: Packet, label: str) -> Iterable[Command]:
        _, name, number, _ = label.split(":")
        site, _, slot = name.rpartition("/")
        seed = seed_pb2.SeedRef(run_id=packet.run_id, site=site, slot=int(slot))
        if number == "1":
            yield Command(advance=control_pb2.Advance(seed=seed, to=int(State.FINE_TUNING)))
        elif self.keep:
            yield Command(advance=control_pb2.Advance(seed=seed, to=int(State.FOSSILIZED)))
        else:
            yield Command(cull=control_pb2.Cull(seed=seed, return_to_twin=True))
