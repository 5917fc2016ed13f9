"""The line between a training loop and everything outside it.

Implemented by the courier (a thread and a socket, runtime/courier.py) and by direct
calls (runtime/local.py). Nothing here may make the training thread wait, but `wait`,
which only a deterministic run calls.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.blueprint.interface import Interface
from esper.errors import Corrupt, EsperError, KernelFault, Untrusted
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import SeedId


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel was fetched, verified, built and warmed up for a seed, or was not: then `failure` says why.

    `unfit`: its bytes may not run, as opposed to a library that did not answer. `refused`: nobody was asked for it.
    """

    seed: SeedId
    artifact_id: str
    kernel: Kernel | None
    failure: str = ""
    unfit: bool = False
    refused: bool = False

    @classmethod
    def failed(cls, seed: SeedId, artifact_id: str, error: EsperError) -> "Loaded":
        """What arrives instead of a kernel after `error`."""
        return cls(seed, artifact_id, None, str(error), unfit=isinstance(error, (Corrupt, KernelFault, Untrusted)))


Incoming = trainer_pb2.SequencedCommand | nursery_pb2.JobResult | trainer_pb2.DecisionReply | Loaded
Message = Callable[[], trainer_pb2.AttachRequest | None]


class Line(Protocol):
    """Both directions are bounded; what is dropped is counted."""

    def post(self, make: Message) -> None:
        """Run `make` off the training thread, in order of posting, and send what it returns."""
        ...

    def together(self) -> AbstractContextManager[object]:
        """What is posted inside goes out at the end of it, or when something is waited for.

        The other end's work then does not contend with what is done inside for the interpreter.
        """
        ...

    def load_kernel(self, seed: SeedId, artifact_id: str, interface: Interface) -> None:
        """Get a kernel ready for what a seed's site or chunk offers; a Loaded arrives."""
        ...

    def collect(self) -> list[Incoming]:
        """What has arrived since the last call, in order."""
        ...

    def wait(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        """Return when `done()` holds, looking at it after every arrival.

        Raises DeadlineExceeded after `limit_s`, Unavailable if the outside is gone.
        """
        ...

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what is queued, at most for `timeout_s`, and let go."""
        ...
