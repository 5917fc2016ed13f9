"""Keeps the seed board up to date from the runs' packets, and puts operators' commands on the bus."""

from esper.api.kasmina.v1 import control_pb2
from esper.api.nissa.v1 import observability_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.kasmina.service import SeedBoard
from esper.oona.envelope import Sender, unpack
from esper.oona.port import Bus
from esper.oona.subjects import Name


async def keep_board(bus: Bus, board: SeedBoard) -> None:
    """Follow all runs from the oldest packet kept; ends when the bus is closed."""
    async for delivery in bus.subscribe(Name.EPOCH):
        packet = unpack(Name.EPOCH, delivery.envelope)
        if isinstance(packet, state_pb2.SystemStatePacket):
            board.show(packet.run_id, packet.step, list(packet.seeds), over=packet.final)
        elif isinstance(packet, observability_pb2.RunEvent) and packet.HasField("transition"):
            board.move(packet.run_id, packet.transition)


class CommandPublisher:
    """Publishes commands of operators; the same command id is one command."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.sender = Sender("operator", nonce="")

    async def __call__(self, command: control_pb2.ControlCommand) -> None:
        envelope = self.sender.seal(command, run_id=command.run_id, key=command.command_id)
        await self.bus.publish(Name.COMMANDS, envelope)
