"""All components in the training process, called directly: the wiring of `--no-services`.

Every answer is computed where it is asked for, so the training thread does wait; a run
wired like this is deterministic and makes no claim about overhead.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.blueprint.interface import Interface
from esper.errors import DeadlineExceeded, EsperError
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import SeedId
from esper.kasmina.nursery.worker import NurseryWorker
from esper.tamiyo.worker import write_reply
from esper.tolaria.line import Incoming, Loaded, Message

COMMANDS_PER_DECISION = 1 << 20

Packet = state_pb2.SystemStatePacket


def no_advice(_: Packet) -> Sequence[control_pb2.ControlCommand]:
    """Of a run without a sculptor."""
    return ()


class LocalLine:
    """A tolaria Line whose other end is in this process."""

    def __init__(
        self,
        decide: Callable[[Packet], controller_pb2.DecideResponse],
        nursery: NurseryWorker,
        kernel: Callable[[str, Interface], Kernel],
        heard: Callable[[trainer_pb2.AttachRequest], None],
        answered: Callable[[controller_pb2.DecideResponse], None],
        advise: Callable[[Packet], Sequence[control_pb2.ControlCommand]] = no_advice,
    ) -> None:
        """`heard`, `answered`: told of everything that passes. `advise`: commands that come before the controller's."""
        self.decide = decide
        self.nursery = nursery
        self.kernel = kernel
        self.heard = heard
        self.answered = answered
        self.advise = advise
        self._jobs: deque[nursery_pb2.Job] = deque()
        self._arrived: list[Incoming] = []

    def post(self, make: Message) -> None:
        message = make()
        if message is None:
            return
        self.heard(message)
        if message.HasField("state"):
            self._decide(message.state)
        elif message.HasField("job"):
            self._jobs.append(message.job)
        elif message.HasField("cancelled_job"):
            self._jobs = deque(job for job in self._jobs if job.job_id != message.cancelled_job)

    def together(self) -> contextlib.AbstractContextManager[object]:
        """Nothing contends: what is posted is done at once."""
        return contextlib.nullcontext()

    def load_kernel(self, seed: SeedId, artifact_id: str, interface: Interface) -> None:
        try:
            loaded = Loaded(seed, artifact_id, self.kernel(artifact_id, interface))
        except EsperError as error:
            loaded = Loaded.failed(seed, artifact_id, error)
        self._arrived.append(loaded)

    def collect(self) -> list[Incoming]:
        arrived, self._arrived = self._arrived, []
        return arrived

    def wait(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        while not done():
            if not self._jobs:
                raise DeadlineExceeded("an answer is waited for, and no job is left that could give it")
            self.nursery.do(self._jobs.popleft(), self._arrived.append)

    def close(self, timeout_s: float = 10.0) -> None:
        """Nothing is held, and nothing waits to be sent."""

    def _decide(self, packet: Packet) -> None:
        response = self.decide(packet)
        self.answered(response)
        planned = (command for decision in response.decisions for command in decision.plan.commands)
        for number, command in enumerate((*self.advise(packet), *planned)):
            # rising from decision point to decision point, also in a run that goes on from a checkpoint
            sequence = packet.sequence * COMMANDS_PER_DECISION + number
            self._arrived.append(trainer_pb2.SequencedCommand(sequence=sequence, command=command))
        self._arrived.append(write_reply(packet, response))
