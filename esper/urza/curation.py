"""Which kernels a policy archives, and why. Pure: what is known, the time and the policy go in, actions come out.

Archived is what nobody used for long and what something better stands in for, then, where there
is a limit on bytes, what is used least for its size. Never: what is protected by name, by an
alias or by being used much, and the last promoted kernel of an interface and target.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from esper.api.urza.v1 import library_pb2 as pb
from esper.urza.codec import InterfaceKey
from esper.urza.statuses import KERNEL

DEFAULT_IDLE_DAYS, DEFAULT_WORKHORSE_USES = 30, 100
DAY_NS = 24 * 3600 * 10**9
# What a policy may archive: the rest waits for an evaluation, or for a person.
CURATED = frozenset({pb.KERNEL_STATUS_VALIDATED, pb.KERNEL_STATUS_REJECTED, pb.KERNEL_STATUS_SUPERSEDED})


@dataclass(frozen=True, slots=True)
class Policy:
    """`max_total_bytes` of 0 stands for no limit."""

    idle_ns: int = DEFAULT_IDLE_DAYS * DAY_NS
    workhorse_uses: int = DEFAULT_WORKHORSE_USES
    protected: frozenset[str] = frozenset()
    max_total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """What curation reads of a kernel that is not archived. `last_used_ns` is 0 for one nobody used."""

    artifact_id: str
    interface: InterfaceKey
    target: int
    status: int
    parameter_count: int
    forward_us_p50: float
    peak_bytes: int
    size_bytes: int
    created_ns: int
    uses: int
    last_used_ns: int
    aliased: bool

    @property
    def place(self) -> tuple[InterfaceKey, int]:
        return (self.interface, self.target)


@dataclass(frozen=True, slots=True)
class Action:
    """A kernel to archive."""

    artifact_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to archive, in order, and why each protected kernel is left alone, by artifact id."""

    actions: Sequence[Action]
    protected: dict[str, str]


def plan(kernels: Sequence[Kept], now_ns: int, policy: Policy) -> Plan:
    """The answer does not depend on the order of `kernels`."""
    kernels = sorted(kernels, key=lambda one: one.artifact_id)
    protected = {one.artifact_id: why for one in kernels if (why := _protection(one, policy))}
    promoted = Counter(one.place for one in kernels if one.status == pb.KERNEL_STATUS_VALIDATED)
    better, actions = _dominated(kernels), dict[str, Action]()

    def archive(one: Kept, reason: str) -> None:
        if one.artifact_id in protected or one.artifact_id in actions or one.status not in CURATED:
            return
        if one.status == pb.KERNEL_STATUS_VALIDATED:
            if promoted[one.place] == 1:
                protected[one.artifact_id] = "the last promoted kernel of its interface and target"
                return
            promoted[one.place] -= 1
        actions[one.artifact_id] = Action(one.artifact_id, reason)

    for one in kernels:
        idle_ns = now_ns - max(one.created_ns, one.last_used_ns)
        if idle_ns <= policy.idle_ns:
            continue
        unused = f"unused for {idle_ns // DAY_NS} days"
        if one.status != pb.KERNEL_STATUS_VALIDATED:
            archive(one, f"{unused}, {KERNEL.name(one.status)}")
        elif one.artifact_id in better:
            archive(one, f"{unused}; no slower, larger or hungrier: {better[one.artifact_id][:12]}")
    _make_room(kernels, actions, archive, policy.max_total_bytes)
    return Plan(list(actions.values()), protected)


def _protection(one: Kept, policy: Policy) -> str:
    if one.artifact_id in policy.protected:
        return "protected by the policy"
    if one.aliased:
        return "an alias points at it or at its blueprint"
    if one.uses >= policy.workhorse_uses:
        return f"a workhorse: {one.uses} uses"
    return ""


def _dominated(kernels: Iterable[Kept]) -> dict[str, str]:
    """Promoted kernels for which another of the same interface and target is at least as good in every figure.

    With that other, which is itself dominated by none. Only what was measured is compared.
    """
    places: dict[tuple[InterfaceKey, int], list[Kept]] = defaultdict(list)
    for one in kernels:
        if one.status == pb.KERNEL_STATUS_VALIDATED and one.forward_us_p50 > 0 and one.peak_bytes > 0:
            places[one.place].append(one)
    better = {}
    for group in places.values():
        front: list[Kept] = []
        for one in sorted(group, key=lambda kept: (*_figures(kept), kept.artifact_id)):
            above = next((other for other in front if _no_worse(other, one)), None)
            if above is None:
                front.append(one)
            elif _figures(above) != _figures(one):
                better[one.artifact_id] = above.artifact_id
    return better


def _figures(one: Kept) -> tuple[float, int, int]:
    return (one.forward_us_p50, one.parameter_count, one.peak_bytes)


def _no_worse(other: Kept, one: Kept) -> bool:
    return all(mine <= its for mine, its in zip(_figures(other), _figures(one), strict=True))


def _make_room(
    kernels: Sequence[Kept], actions: dict[str, Action], archive: Callable[[Kept, str], None], limit: int
) -> None:
    """Archive what is used least for its size until the rest is within the limit, or nothing is left to archive."""
    total = sum(one.size_bytes for one in kernels if one.artifact_id not in actions)
    if not limit:
        return
    worth = sorted(kernels, key=lambda one: ((1 + one.uses) / max(1, one.size_bytes), one.created_ns, one.artifact_id))
    for one in worth:
        if total <= limit:
            return
        if one.artifact_id not in actions:
            archive(one, f"{one.uses} uses for {one.size_bytes} bytes, the least of what is kept beyond {limit} bytes")
            total -= one.size_bytes if one.artifact_id in actions else 0
