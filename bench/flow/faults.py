"""Fault and strategy: what a kernel may do to a run, and what the run does about it.

A body's faults are met in a real forward of the graft, a library's in what it sends; `strategies` is what the run
must then have reported in its last LayerPerformance, to the number.
"""

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from esper.api.common.v1 import artifact_pb2
from esper.artifact.bundle import Artifact
from esper.errors import Unavailable
from esper.host.graft import Form
from esper.kasmina.breaker import MAX_FAULTS, MAX_LOST
from esper.kasmina.lifecycle import State
from esper.runtime.loads import PAUSES_S

ALWAYS = 1 << 30


class Broken(RuntimeError):
    """What a kernel that fails raises here."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail. `harms` spoils what a kernel returns, or raises."""

    name: str
    strategies: Mapping[str, int]  # how often each must have been reported
    end: State  # of the seed's last life
    harms: Callable[[Tensor], Any] | None = None
    in_form: bool = False  # only the compiled form fails
    times: int = 0  # how often it fails, from a call drawn at random; ALWAYS: from the first one
    lives: int = 1  # how many seeds get the kernel, one after the other
    away: int = 0  # how many downloads fail
    damaged: int = 0  # how many downloads are damaged
    damaged_on_disk: bool = False

    @property
    def host_is_plain(self) -> bool:
        """Whether the kernel never had a say, so that the host must be that of a run without it."""
        return self.end is not State.STABILIZATION


def _raises(_: Tensor) -> Tensor:
    raise Broken("no answer")


def _not_finite(h: Tensor) -> Tensor:
    return torch.full_like(h, torch.nan)


def _another_shape(h: Tensor) -> Tensor:
    return h[:, :-1]


_HARMS = {"raises": _raises, "returns NaN": _not_finite, "returns another shape": _another_shape}
_LOST = {"fallback": MAX_FAULTS, "escalation": 1}
_DEGRADED = {"fallback": 1, "graceful_degradation": 1}
_TRIES = 1 + len(PAUSES_S)

FAULTS = (
    *(Fault(f"{n} once", {"fallback": 1}, State.STABILIZATION, h, times=1) for n, h in _HARMS.items()),
    *(Fault(f"{n} always", _LOST, State.CULLED, h, times=ALWAYS) for n, h in _HARMS.items()),
    *(
        Fault(f"compiled form {n}", _DEGRADED, State.STABILIZATION, h, in_form=True, times=ALWAYS)
        for n, h in _HARMS.items()
    ),
    Fault("library is away for a moment", {"retry": 1}, State.STABILIZATION, away=_TRIES - 1),
    Fault("library is away", {"escalation": 1}, State.CULLED, away=ALWAYS),
    Fault("damaged on the way", {"retry": 1}, State.STABILIZATION, damaged=1),
    Fault("damaged on disk", {"retry": 1}, State.STABILIZATION, damaged_on_disk=True),
    Fault("damaged at the library", {"escalation": 1}, State.CULLED, damaged=ALWAYS),
    Fault(
        f"loses {MAX_LOST} seeds",
        {name: count * MAX_LOST for name, count in _LOST.items()} | {"circuit_breaker": 1},
        State.CULLED,
        _raises,
        times=ALWAYS,
        lives=MAX_LOST + 1,
    ),
    Fault(
        f"loses {MAX_LOST} seeds by damage",
        {"escalation": MAX_LOST, "circuit_breaker": 1},
        State.CULLED,
        damaged=ALWAYS,
        lives=MAX_LOST + 1,
    ),
)


@dataclass
class Trouble:
    """Makes a graft's body or its compiled form fail when it is its time; counts both calls and faults."""

    fault: Fault
    first: int  # call at which it begins to fail
    calls: int = 0
    met: int = 0
    _watched: WeakSet[nn.Module] = field(default_factory=WeakSet)

    def watch(self, body: nn.Module) -> None:
        """Stand behind every later call of a graft's body."""
        if body not in self._watched:
            self._watched.add(body)
            body.register_forward_hook(lambda _module, _inputs, out: self._spoil(out, in_form=False))

    def form(self, body: Callable[..., Tensor]) -> Form:
        """A compiled form that computes as `body(h, *parameters)` does, but for its faults."""
        return lambda h, *parameters: self._spoil(body(h, *parameters), in_form=True)

    def _spoil(self, out: Tensor, *, in_form: bool) -> Any:
        self.calls += 1
        due = self.first <= self.calls < self.first + self.fault.times
        if self.fault.harms is None or in_form != self.fault.in_form or not due:
            return out
        self.met += 1
        return self.fault.harms(out)


def library(artifact: Artifact, fault: Fault, draw: random.Random) -> Callable[[str], Awaitable[Artifact]]:
    """A library that holds one kernel and does not always answer as it should."""
    away, damaged = fault.away, fault.damaged

    async def download(_: str) -> Artifact:
        nonlocal away, damaged
        if away:
            away -= 1
            raise Unavailable("the library does not answer")
        if damaged:
            damaged -= 1
            return damage(artifact, draw)
        return artifact

    return download


def damage(artifact: Artifact, draw: random.Random) -> Artifact:
    """The artifact with one bit of one of its files changed."""
    name = draw.choice(sorted(artifact.files))
    data = bytearray(artifact.files[name])
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    manifest = artifact_pb2.ArtifactManifest()
    manifest.CopyFrom(artifact.manifest)
    return replace(artifact, manifest=manifest, files={**artifact.files, name: bytes(data)})
