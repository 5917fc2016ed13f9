"""What a run's model has grown, and what was taken away again: lineage.json. Pure but for writing.

A fossil belongs to the host from the step it fossilised at until it is removed, by a late
cull, by Emrakul or by a rollback to a step before it. A rollback to a step at which a
fossil was still there brings it back.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import telemetry_pb2
from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tolaria.v1 import state_pb2
from esper.nissa.codec import seed_name, source_of, state_name
from esper.nissa.genealogy import ancestry
from esper.nissa.pedigrees import NO_PEDIGREES, Pedigrees
from esper.nissa.seeds import FOSSILIZED

Kernels = Mapping[str, telemetry_pb2.SeedStatus]


@dataclass(frozen=True, slots=True)
class Fossil:
    """One graft that became part of the host; `removed_step` and what follows are set once it is gone.

    `undone`: a rollback went back to before it fossilised, so that it never comes back.
    """

    site: str
    slot: int
    artifact_id: str
    step: int
    reason: str
    removed_step: int | None = None
    removed_to: str = ""
    removed_reason: str = ""
    undone: bool = False

    @property
    def seed(self) -> str:
        return f"{self.site}/{self.slot}"


@dataclass(slots=True)
class Lineage:
    """Fossils in the order they came, gone ones included, and how many transitions were seen."""

    run_id: str
    fossils: list[Fossil] = field(default_factory=list)
    transitions: int = 0

    def take(self, event: pb.RunEvent) -> bool:
        """Take one event, in order. True: the fossils are others than before."""
        if event.HasField("transition"):
            self.transitions += 1
            return self._move(event.transition)
        return event.HasField("rollback") and self._roll_back(event.rollback)

    def _move(self, transition: seed_pb2.SeedTransition) -> bool:
        if transition.to == FOSSILIZED:
            seed = transition.seed
            self.fossils.append(
                Fossil(seed.site, seed.slot, transition.artifact_id, transition.step, transition.reason)
            )
            return True
        if source_of(transition) != FOSSILIZED:
            return False
        name, to = seed_name(transition.seed), state_name(transition.to)
        for at, fossil in enumerate(self.fossils):
            if fossil.seed == name and fossil.removed_step is None:
                self.fossils[at] = _removed(fossil, transition.step, to, transition.reason)
        return True

    def _roll_back(self, rollback: state_pb2.Rollback) -> bool:
        before = self.fossils
        self.fossils = [_after_rollback(fossil, rollback) for fossil in before]
        return self.fossils != before

    def blueprints(self, kernels: Kernels) -> list[str]:
        """The blueprints of the fossils, gone ones included, each once; a kernel that is not known has none."""
        known = (kernels.get(fossil.artifact_id) for fossil in self.fossils)
        return list(dict.fromkeys(one.blueprint_id for one in known if one is not None and one.blueprint_id))

    def write(self, kernels: Kernels, pedigrees: Pedigrees = NO_PEDIGREES) -> str:
        """The JSON document. `kernels`: what is known of kernels, by artifact id."""
        document = {
            "run_id": self.run_id,
            "fossils": [_row(fossil, kernels) for fossil in self.fossils if fossil.removed_step is None],
            "removed": [_row(fossil, kernels) for fossil in self.fossils if fossil.removed_step is not None],
            "blueprints": ancestry(self.blueprints(kernels), pedigrees),
            "transitions": self.transitions,
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def lineage_of(run_id: str, events: Iterable[pb.RunEvent]) -> Lineage:
    """The lineage after `events`."""
    lineage = Lineage(run_id)
    for event in events:
        lineage.take(event)
    return lineage


def _after_rollback(fossil: Fossil, rollback: state_pb2.Rollback) -> Fossil:
    back, gone = rollback.restored_step, fossil.removed_step is not None
    if fossil.step > back:
        ended = fossil if gone else _removed(fossil, rollback.step, "ROLLED_BACK", rollback.reason)
        return replace(ended, undone=True)
    if fossil.removed_step is not None and fossil.removed_step > back and not fossil.undone:
        return replace(fossil, removed_step=None, removed_to="", removed_reason="")
    return fossil


def _removed(fossil: Fossil, step: int, to: str, reason: str) -> Fossil:
    return replace(fossil, removed_step=step, removed_to=to, removed_reason=reason)


def _row(fossil: Fossil, kernels: Kernels) -> dict[str, object]:
    row: dict[str, object] = {
        "seed": fossil.seed,
        "site": fossil.site,
        "slot": fossil.slot,
        "artifact_id": fossil.artifact_id,
        "step": fossil.step,
        "reason": fossil.reason,
    }
    if (kernel := kernels.get(fossil.artifact_id)) is not None:
        row |= {"blueprint_id": kernel.blueprint_id, "title": kernel.title, "parameters": kernel.parameter_count}
    if fossil.removed_step is not None:
        row |= {"removed_step": fossil.removed_step, "to": fossil.removed_to, "removed_reason": fossil.removed_reason}
    return row
