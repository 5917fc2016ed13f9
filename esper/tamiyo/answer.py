"""From packet to reply: read, gather what the library and experience know, decide, write."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.simic.v1 import replay_pb2
from esper.api.tamiyo.v1 import controller_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.api.urza.v1 import library_pb2
from esper.tamiyo.codec import (
    is_promoted,
    read_experience,
    read_option,
    read_packet,
    write_decision,
    write_report,
)
from esper.tamiyo.controller import decide
from esper.tamiyo.memory import load
from esper.tamiyo.view import Stock

# By `codec.interface_key` of each site: promoted kernels for exactly that interface that a run of this seed with these
# sites may have, in any order, and how many more are being made.
SearchKernels = Callable[
    [Sequence[state_pb2.SiteState], int], Awaitable[Mapping[str, tuple[Sequence[library_pb2.Kernel], int]]]
]
# What earlier runs of a task gave, per layer kind and blueprint.
Summarise = Callable[[str], Awaitable[Sequence[replay_pb2.Summary]]]


class Controller:
    """Answers decision points. Keeps nothing of a run: the run carries the controller's memory."""

    def __init__(self, search: SearchKernels, summarise: Summarise, now: Callable[[], Timestamp]) -> None:
        self.search = search
        self.summarise = summarise
        self.now = now

    async def answer(self, packet: state_pb2.SystemStatePacket) -> pb.DecideResponse:
        """Decide.

        Raises InvalidConfig for an unknown policy, InvalidRequest for a packet that no run writes,
        PreconditionFailed for a memory of another version.
        """
        view, memory = read_packet(packet), load(packet.controller_state)
        found = await self.search(packet.sites, packet.random_seed)
        options = {
            key: [read_option(kernel) for kernel in kernels if is_promoted(kernel, key)]
            for key, (kernels, _) in found.items()
        }
        stock = Stock(options, sum(being_made for _, being_made in found.values()))
        # What other runs learned is not part of a run that must be equal when it is run again.
        rows = [] if packet.deterministic else await self.summarise(view.task_name)
        experience = [read_experience(row) for row in rows]
        answer = decide(view, stock, experience, memory)
        time = self.now()
        return pb.DecideResponse(
            decisions=[write_decision(d, view, number, time) for number, d in enumerate(answer.decisions, 1)],
            controller_state=answer.memory.dump(),
            field_reports=[write_report(ended, view, time) for ended in answer.ended],
        )
