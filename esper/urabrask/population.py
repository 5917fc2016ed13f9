"""Where a kernel stands among those measured on the same hardware with the same input.

Times of different processors, input shapes or element types are not compared: each such
group is a population of its own.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# Below so many members ranks are noise: the rules of a cold start hold instead.
FEWEST = 8


@dataclass(frozen=True, slots=True)
class Member:
    """One promoted kernel's figures. `group`: hardware target and input, as `group_name` spells it."""

    artifact_id: str
    group: str
    forward_us: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Ranks are shares of the population that are better, ties half: 0 is best, 1 worst. `members` includes it."""

    members: int
    speed_rank: float
    memory_rank: float

    @property
    def known(self) -> bool:
        return self.members >= FEWEST


ALONE = Standing(1, 0.5, 0.5)


def group_name(cpu: str, threads: str, element_type: str, causal: bool, input_shape: Sequence[int]) -> str:
    """A population's name; equal where figures may be compared."""
    sizes = "x".join(map(str, input_shape))
    return f"{cpu}, {threads} threads, {element_type} {sizes}{' causal' if causal else ''}"


class Population:
    """The latest figures of each promoted kernel, by group."""

    def __init__(self) -> None:
        self._members: dict[str, dict[str, Member]] = {}
        self._group_of: dict[str, str] = {}

    def put(self, member: Member) -> None:
        """Add or replace a kernel's figures."""
        self.drop(member.artifact_id)
        self._members.setdefault(member.group, {})[member.artifact_id] = member
        self._group_of[member.artifact_id] = member.group

    def drop(self, artifact_id: str) -> None:
        """Forget a kernel that is not promoted any more."""
        group = self._group_of.pop(artifact_id, "")
        self._members.get(group, {}).pop(artifact_id, None)

    def group_of(self, artifact_id: str) -> str:
        """Its population's name; empty for a kernel that is not here."""
        return self._group_of.get(artifact_id, "")

    def members(self, group: str) -> tuple[Member, ...]:
        return tuple(self._members.get(group, {}).values())

    def standing(self, member: Member) -> Standing:
        """Where `member` stands, whether it was put in or not."""
        peers = [peer for peer in self.members(member.group) if peer.artifact_id != member.artifact_id]
        return Standing(
            len(peers) + 1,
            _rank(member.forward_us, [peer.forward_us for peer in peers]),
            _rank(member.peak_bytes, [peer.peak_bytes for peer in peers]),
        )


def _rank(value: float, others: Sequence[float]) -> float:
    if not others:
        return 0.5
    ordered = sorted(others)
    return (bisect_left(ordered, value) + bisect_right(ordered, value)) / 2 / len(ordered)
