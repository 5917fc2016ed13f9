"""Which kernels an idle forge builds anew, in which order, and which ones that makes obsolete. Pure.

    1  interest    a promoted kernel there is much to learn from, which no stronger pipeline was tried on
    2  failure     an order whose workers died or overran: of the blueprint nothing is known yet
    3  toolchain   a promoted kernel that another toolchain built

An order that this toolchain has answered, with a kernel of whatever status, is not given again,
nor one that has failed too often.
"""

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from esper.artifact.body import PIPELINES
from esper.blueprint.interface import Interface

Toolchain = Callable[[str], Mapping[str, str]]
Targets = Mapping[str, Sequence[str]]
INTERESTING = 0.5  # least interest that is worth a stronger pipeline
MOST_FAILURES = 3  # after so many the order waits for a person, or another toolchain


class Cause(enum.IntEnum):
    """Why something is built anew; lower is sooner."""

    INTEREST = 1
    FAILURE = 2
    TOOLCHAIN = 3


class Place(NamedTuple):
    """What an order is for, but for the toolchain."""

    blueprint_id: str
    interface: Interface
    target: str
    pipeline: str


@dataclass(frozen=True, slots=True)
class Made:
    """A kernel of the library that is not archived. `age`: a number that is higher for what was stored later."""

    artifact_id: str
    place: Place
    toolchain: Mapping[str, str]
    promoted: bool
    interest: float
    age: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """One order to give."""

    place: Place
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Obsolete:
    """A promoted kernel that a later one of the same place stands in for."""

    artifact_id: str
    successor: str
    reason: str


def renewals(made: Sequence[Made], failed: Iterable[Place], toolchain: Toolchain, targets: Targets) -> list[Renewal]:
    """Orders, most urgent first. The answer does not depend on the order of `made`.

    `toolchain`: of a pipeline, here. `failed`: the place of each order without an answer, each time it was given.
    `targets`: of each pipeline that can be built here, what it is built for; nothing is asked of others.
    """
    failures = Counter(failed)
    closed = {one.place for one in made if one.toolchain == toolchain(one.place.pipeline)}
    closed |= {place for place, times in failures.items() if times >= MOST_FAILURES}
    wanted = [
        renewal
        for renewal in (*_stronger(made, targets), *_unanswered(failures), *_outdated(made, toolchain))
        if renewal.place not in closed and renewal.place.target in targets.get(renewal.place.pipeline, ())
    ]
    first: dict[Place, Renewal] = {}
    for renewal in sorted(wanted, key=lambda one: (one.cause, _spelled(one.place))):
        first.setdefault(renewal.place, renewal)
    return list(first.values())


def obsolete(made: Sequence[Made]) -> list[Obsolete]:
    """All promoted kernels of a place but the one stored last, oldest first."""
    latest: dict[Place, Made] = {}
    for one in sorted(made, key=lambda kernel: (kernel.age, kernel.artifact_id)):
        if one.promoted:
            latest[one.place] = one
    return [
        Obsolete(
            one.artifact_id,
            latest[one.place].artifact_id,
            f"kernels/{latest[one.place].artifact_id} is the same blueprint by {_difference(latest[one.place], one)}",
        )
        for one in sorted(made, key=lambda kernel: (kernel.age, kernel.artifact_id))
        if one.promoted and latest[one.place] is not one
    ]


def _stronger(made: Sequence[Made], targets: Targets) -> Iterator[Renewal]:
    tried = {one.place for one in made}
    for one in sorted(made, key=lambda kernel: (-kernel.interest, kernel.artifact_id)):
        if not one.promoted or one.interest < INTERESTING:
            continue
        beyond = [name for name in PIPELINES[PIPELINES.index(one.place.pipeline) + 1 :] if name in targets]
        devices = dict.fromkeys(target for name in beyond for target in targets[name])
        if one.place.pipeline != PIPELINES[0]:  # which alone makes one kernel for all devices
            devices = {one.place.target: None}
        for device in devices:
            places = [one.place._replace(pipeline=name, target=device) for name in beyond if device in targets[name]]
            if places and not tried & set(places):
                why = f"interest {one.interest:.2f}, built by {one.place.pipeline} only"
                yield Renewal(places[0], Cause.INTEREST, why)


def _unanswered(failures: Mapping[Place, int]) -> Iterator[Renewal]:
    for place, times in failures.items():
        yield Renewal(place, Cause.FAILURE, f"{times} of at most {MOST_FAILURES} attempts ended without an answer")


def _outdated(made: Sequence[Made], toolchain: Toolchain) -> Iterator[Renewal]:
    for one in made:
        now = toolchain(one.place.pipeline)
        if one.promoted and one.toolchain != now:
            yield Renewal(one.place, Cause.TOOLCHAIN, f"built by {_changes(one.toolchain, now)}")


def _difference(new: Made, old: Made) -> str:
    return "a later build" if new.toolchain == old.toolchain else _changes(new.toolchain, old.toolchain)


def _changes(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """What of `one` is not so in `other`, with the other's word for it."""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    return ", ".join(f"{name} {one.get(name, 'none')} (not {other.get(name, 'none')})" for name in names)


def _spelled(place: Place) -> tuple[str, str, str, str]:
    return (place.blueprint_id, str(place.interface), place.target, place.pipeline)
