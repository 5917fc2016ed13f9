"""Where blueprints and kernels may stand, and which moves between statuses are allowed.

Data and one rule; who may ask for a move, and what it must bring, is library.py's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import PreconditionFailed


@dataclass(frozen=True, slots=True)
class StatusMachine:
    """Allowed moves of one kind of thing; a status that is no key of `moves` does not exist."""

    thing: str
    enum: Any
    prefix: str
    moves: Mapping[int, frozenset[int]]

    def name(self, status: int) -> str:
        """The enum's name without its prefix; numbers nobody knows stay numbers."""
        if status in self.enum.values():
            return str(self.enum.Name(status)).removeprefix(self.prefix)
        return str(status)

    def move(self, current: int, to: int) -> int:
        """Return `to`. Raises PreconditionFailed where the move is not allowed, naming those that are."""
        allowed = self.moves.get(current, frozenset())
        if to not in allowed:
            names = ", ".join(self.name(status) for status in sorted(allowed)) or "none"
            raise PreconditionFailed(
                f"{self.thing} is {self.name(current)} and cannot become {self.name(to)}; from there: {names}"
            )
        return to


BLUEPRINT = StatusMachine(
    thing="blueprint",
    enum=pb.BlueprintStatus,
    prefix="BLUEPRINT_STATUS_",
    moves={
        pb.BLUEPRINT_STATUS_UNVALIDATED: frozenset(
            {
                pb.BLUEPRINT_STATUS_COMPILING,
                pb.BLUEPRINT_STATUS_VALIDATED,
                pb.BLUEPRINT_STATUS_INVALID,
                pb.BLUEPRINT_STATUS_ARCHIVED,
            }
        ),
        pb.BLUEPRINT_STATUS_COMPILING: frozenset(
            {
                pb.BLUEPRINT_STATUS_UNVALIDATED,  # the forge let go of it, or nothing it built was promoted
                pb.BLUEPRINT_STATUS_VALIDATED,
                pb.BLUEPRINT_STATUS_INVALID,
                pb.BLUEPRINT_STATUS_ARCHIVED,
            }
        ),
        pb.BLUEPRINT_STATUS_VALIDATED: frozenset(
            {
                pb.BLUEPRINT_STATUS_UNVALIDATED,  # its last promoted kernel was withdrawn
                pb.BLUEPRINT_STATUS_ARCHIVED,
            }
        ),
        pb.BLUEPRINT_STATUS_INVALID: frozenset(
            {
                pb.BLUEPRINT_STATUS_COMPILING,  # tried again with another toolchain
                pb.BLUEPRINT_STATUS_ARCHIVED,
            }
        ),
        pb.BLUEPRINT_STATUS_ARCHIVED: frozenset({pb.BLUEPRINT_STATUS_UNVALIDATED}),
    },
)

_KERNEL_DOUBT = frozenset({pb.KERNEL_STATUS_ARCHIVED, pb.KERNEL_STATUS_QUARANTINED})

# Every status leads to QUARANTINED, because bytes can rot in any of them; out of it there is no
# way to VALIDATED but through a new evaluation.
KERNEL = StatusMachine(
    thing="kernel",
    enum=pb.KernelStatus,
    prefix="KERNEL_STATUS_",
    moves={
        pb.KERNEL_STATUS_PENDING_BENCHMARKING: _KERNEL_DOUBT | {pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED},
        pb.KERNEL_STATUS_VALIDATED: _KERNEL_DOUBT
        | {
            pb.KERNEL_STATUS_VALIDATED,  # evaluated again: new tags and figures
            pb.KERNEL_STATUS_REJECTED,
            pb.KERNEL_STATUS_SUPERSEDED,
        },
        pb.KERNEL_STATUS_REJECTED: _KERNEL_DOUBT | {pb.KERNEL_STATUS_PENDING_BENCHMARKING},
        pb.KERNEL_STATUS_SUPERSEDED: _KERNEL_DOUBT | {pb.KERNEL_STATUS_PENDING_BENCHMARKING},
        pb.KERNEL_STATUS_ARCHIVED: frozenset({pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_QUARANTINED}),
        pb.KERNEL_STATUS_QUARANTINED: frozenset({pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_REJECTED}),
    },
)
