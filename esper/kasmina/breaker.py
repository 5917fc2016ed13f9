"""Circuit breaker: a kernel that lost several seeds is not loaded again in this run."""

from collections import Counter
from dataclasses import dataclass, field

MAX_FAULTS = 3  # of one seed on trial, then its kernel has lost it
MAX_LOST = 3  # seeds, then the breaker is open


@dataclass(slots=True)
class Breaker:
    """How many seeds each kernel lost: by faults in the host, or by bytes that may not run.

    Of one process and one run: a resumed run begins with all breakers closed, so that what was mended since
    gets another try.
    """

    max_lost: int = MAX_LOST
    lost: Counter[str] = field(default_factory=Counter)  # by artifact id

    def count(self, artifact_id: str) -> None:
        """A seed was lost to this kernel."""
        self.lost[artifact_id] += 1

    def why_open(self, artifact_id: str) -> str:
        """Why the kernel is not to be loaded; empty if it may be."""
        lost = self.lost[artifact_id]
        if lost < self.max_lost:
            return ""
        return f"kernel {artifact_id[:12]} lost {lost} seeds and is not loaded again in this run"
