"""Answers the runs' decision points from the bus: each once, also when this process dies in between."""

import logging
from collections.abc import Awaitable, Callable, Sequence

from esper.api.kasmina.v1 import control_pb2
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.errors import EsperError
from esper.oona.cursor import Cursor, follow
from esper.oona.envelope import Envelope, Sender, unpack
from esper.oona.port import Bus
from esper.oona.subjects import Name
from esper.records import RecordLog
from esper.tamiyo.answer import Controller

log = logging.getLogger(__name__)

# Commands of others (Emrakul) for a decision point; they come before the controller's own.
Advise = Callable[[state_pb2.SystemStatePacket], Awaitable[Sequence[control_pb2.ControlCommand]]]


class ControllerWorker:
    """Reads SystemStatePacket, writes decisions, commands, replies and field reports.

    The answer is stored before anything of it is published, so that a packet that comes
    again gets the same answer, and the bus drops what it has already.
    """

    def __init__(
        self,
        bus: Bus,
        cursor: Cursor,
        controller: Controller,
        answers: RecordLog[controller_pb2.DecideResponse],
        decisions: RecordLog[controller_pb2.Decision],
        advise: Advise,
    ) -> None:
        self.bus = bus
        self.cursor = cursor
        self.controller = controller
        self.answers = answers
        self.decisions = decisions
        self.advise = advise
        self.sender = Sender("tamiyo", nonce="")

    async def run(self) -> None:
        """Work until the bus is closed."""
        await follow(self.bus, Name.EPOCH, self.cursor, self._take)

    async def _take(self, envelope: Envelope) -> None:
        packet = unpack(Name.EPOCH, envelope)
        if isinstance(packet, state_pb2.SystemStatePacket):
            await self._answer(packet, envelope)

    async def _answer(self, packet: state_pb2.SystemStatePacket, cause: Envelope) -> None:
        try:
            response = self.answers.get(f"{packet.run_id}/{packet.sequence}") or await self._decide(packet)
        except EsperError as error:
            log.warning("decision point %s/%d cannot be answered: %s", packet.run_id, packet.sequence, error)
            reply = trainer_pb2.DecisionReply(
                sequence=packet.sequence, controller_state=packet.controller_state, summary=f"not answered: {error}"
            )
            await self._publish(Name.COMMANDS, reply, packet.run_id, f"reply-{packet.sequence}", cause)
            return
        await self._send(packet, response, cause)

    async def _decide(self, packet: state_pb2.SystemStatePacket) -> controller_pb2.DecideResponse:
        response = await self.controller.answer(self._with_latest_memory(packet))
        self.answers.append(response)
        for decision in response.decisions:
            self.decisions.append(decision)
        return response

    def _with_latest_memory(self, packet: state_pb2.SystemStatePacket) -> state_pb2.SystemStatePacket:
        """The packet with the memory of the decision point before it, which a fast run may not have had back yet."""
        before = self.answers.get(f"{packet.run_id}/{packet.sequence - 1}")
        if before is None or before.controller_state == packet.controller_state:
            return packet
        latest = state_pb2.SystemStatePacket()
        latest.CopyFrom(packet)
        latest.controller_state = before.controller_state
        return latest

    async def _send(
        self, packet: state_pb2.SystemStatePacket, response: controller_pb2.DecideResponse, cause: Envelope
    ) -> None:
        for decision in response.decisions:
            proposal = controller_pb2.AdaptationProposal(decision=decision, apply_at_step=packet.step)
            await self._publish(Name.ADAPTATION_PROPOSAL, proposal, packet.run_id, decision.decision_id, cause)
        for report in response.field_reports:
            await self._publish(Name.FIELD_REPORTS, report, packet.run_id, report.report_id, cause)
        advised = await self._advice(packet)
        for command in [*advised, *(c for decision in response.decisions for c in decision.plan.commands)]:
            await self._publish(Name.COMMANDS, command, packet.run_id, command.command_id, cause)
        reply = write_reply(packet, response)
        await self._publish(Name.COMMANDS, reply, packet.run_id, f"reply-{packet.sequence}", cause)

    async def _advice(self, packet: state_pb2.SystemStatePacket) -> Sequence[control_pb2.ControlCommand]:
        try:
            return await self.advise(packet)
        except EsperError as error:  # growth goes on without the sculptor
            log.warning("no advice for %s/%d: %s", packet.run_id, packet.sequence, error)
            return ()

    async def _publish(self, name: Name, message: object, run_id: str, key: str, cause: Envelope) -> None:
        await self.bus.publish(name, self.sender.seal(message, run_id=run_id, key=key, cause=cause))  # type: ignore[arg-type]


def write_reply(
    packet: state_pb2.SystemStatePacket, response: controller_pb2.DecideResponse
) -> trainer_pb2.DecisionReply:
    """What ends the answer to one decision point."""
    return trainer_pb2.DecisionReply(
        sequence=packet.sequence,
        controller_state=response.controller_state,
        decision_id=response.decisions[0].decision_id,
        summary="; ".join(decision.reason for decision in response.decisions)[:2000],
        command_ids=[c.command_id for d in response.decisions for c in d.plan.commands],
    )
