"""A run in which seeds come through every state: one fossil is kept frozen, one folded, one graft is culled for its
twin, one is lost to a fault of the host; then the kept fossil is removed and put back.

What happens depends on what a packet says and on the run's own files alone, so a run that is
resumed meets the same.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from google.protobuf import json_format

from esper.api.common.v1 import seed_pb2
from esper.api.kasmina.v1 import control_pb2
from esper.api.tamiyo.v1 import controller_pb2
from esper.blueprint.codec import write_interface
from esper.errors import NotFound
from esper.kasmina.lifecycle import State
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.journal import NAME, read_journal
from esper.tolaria.task import load_task
from tests.flow.local import LocalRun, start
from tests.tolaria.script import NURSERY_STEPS, Command, Packet, Script

# Growth events: the step, the blueprint that is tried, and what becomes of the graft.
EVENTS = [(20, "bottleneck_mlp", "kept"), (100, "wide_mlp", "culled"), (200, "bottleneck_mlp", "lost")]
EVENTS += [(270, "low_rank", "folded")]
SPOILED = 239  # the step after which every weight is NaN, the first time that the run gets there
RELEASED, REMOVED, RESTORED = 260, 350, 370  # the lost seed; the kept fossil
STEPS = 480  # over 100 more than the last of these
GROWTH = {"verdict_steps": 20, "max_twin_lag_steps": 20, "embargo_steps": 20}
LOSSES, PACKETS = "losses.txt", "packets.txt"  # in the run's directory: what is to come out the same


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One variant of the run."""

    optimizer: str = "adam"
    autocast: bool = False
    spoiled: int = SPOILED
    checkpoint_every_steps: int = 20


@dataclass
class Saga(Script):
    """The controller."""

    directory: Path = Path()

    def __call__(self, packet: Packet) -> controller_pb2.DecideResponse:
        note(self.directory / PACKETS, f"{packet.sequence} {self._fingerprint(packet)}")
        return super().__call__(packet)

    def _commands(self, packet: Packet) -> Iterable[Command]:
        begun = packet.spending.events
        if begun < len(EVENTS) and packet.step == EVENTS[begun][0]:
            yield Command(germinate=self._event(packet))
        for result in packet.results:
            if result.HasField("trial"):
                yield from self._after_trial(packet, result.trial)
            elif result.measure.label.startswith("verdict"):
                yield from self._after_verdict(packet, result.measure.label)
        for seed in packet.seeds:
            kept = seed.state == State.FOSSILIZED and seed.event_id == "kept"
            if seed.state == State.ROLLED_BACK and packet.step == RELEASED:
                yield Command(release=control_pb2.Release(seed=seed.seed))
            elif kept and packet.step == REMOVED:
                yield Command(remove=control_pb2.Remove(seed=seed.seed))
            elif seed.event_id == "kept" and seed.inserted_step and packet.step == RESTORED:
                yield Command(restore=control_pb2.Restore(seed=seed.seed))

    def _event(self, packet: Packet) -> control_pb2.Germinate:
        _, title, name = EVENTS[packet.spending.events]
        grown = {seed.seed.site for seed in packet.seeds if seed.state == State.FOSSILIZED}
        free = {seed.seed.site: seed.seed for seed in reversed(packet.seeds) if seed.state == State.DORMANT}
        assignments = []
        for site in packet.sites:
            if name == "folded" and site.name in grown:
                continue  # a site that carries a branch is not folded into
            if site.name not in free:
                continue
            kernels = self.shelf.fitting(site.interface)
            artifact_id = next(kernel.artifact_id for kernel in kernels if kernel.title == title)
            assignments.append(control_pb2.Assignment(seed=free[site.name], artifact_id=artifact_id, title=title))
        return control_pb2.Germinate(event_id=name, assignments=assignments, nursery_steps=NURSERY_STEPS)

    def _after_verdict(self, packet: Packet, label: str) -> Iterable[Command]:
        _, name, number, _ = label.split(":")
        site, _, slot = name.rpartition("/")
        ref = seed_pb2.SeedRef(run_id=packet.run_id, site=site, slot=int(slot))
        record = next(seed for seed in packet.seeds if seed.seed == ref)
        if number == "1":
            yield Command(advance=control_pb2.Advance(seed=ref, to=int(State.FINE_TUNING)))
        elif record.event_id == "culled":
            yield Command(cull=control_pb2.Cull(seed=ref, return_to_twin=True))
        else:
            freeze = record.event_id == "kept"
            yield Command(advance=control_pb2.Advance(seed=ref, to=int(State.FOSSILIZED), freeze=freeze))

    def _fingerprint(self, packet: Packet) -> str:
        """Of all that a packet says but readings and times, which are this process's own."""
        plain = json_format.MessageToDict(packet)
        for site in plain["sites"]:
            site.pop("health", None)
        text = json.dumps(timeless(plain), sort_keys=True).replace(str(self.directory), "")
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def begin(directory: Path, setting: Setting = Setting(), *, resumed: bool = False) -> LocalRun:  # noqa: B008 - frozen
    """The run in `directory`, from its start or from its newest checkpoint."""
    arguments = {"optimizer": setting.optimizer, "autocast": setting.autocast}
    task = load_task("tests.tolaria.tasks:rough", arguments)
    every = setting.checkpoint_every_steps
    local = start(task, directory, steps=STEPS, growth=GROWTH, checkpoint_every_steps=every)
    local.run.executor.embargo_steps = local.run.settings.embargo_steps
    torch.manual_seed(0)
    local.line.decide = Saga(local.shelf, directory=directory)
    for site in local.run.executor.sites.values():  # the library, which outlives a trainer
        local.shelf.fitting(write_interface(site.interface))
    if resumed:
        local.session.resume(*CheckpointStore(directory / "checkpoints").latest())
    return local


def follow(local: LocalRun, setting: Setting, until: int, after_step: Callable[[LocalRun], None] | None = None) -> None:
    """Train until `until` steps are done and note each loss, bit for bit, with its place in the journal."""
    directory = local.run.directory

    def noted(local: LocalRun) -> None:
        step, position = local.session.steps_done, local.session.arrivals.journal.position
        note(directory / LOSSES, f"{step} {position} {local.losses[-1].hex()}")
        if step == setting.spoiled and not _went_back(directory):
            with torch.no_grad():
                for parameter in local.run.parts.model.parameters():
                    parameter.fill_(float("nan"))
        if after_step is not None:
            after_step(local)

    local.train(until, after_step=noted)


def _went_back(directory: Path) -> bool:
    return any(entry.HasField("rollback") for entry in read_journal(directory / NAME))


# What a run leaves


def note(path: Path, line: str) -> None:
    """Append a line, in one write."""
    with path.open("a") as file:
        file.write(line + "\n")


@dataclass(frozen=True)
class Course:
    """What a run did: its losses by step and place in the journal, what its controller was told, its journal."""

    losses: dict[str, str]
    packets: dict[str, str]
    journal: list[dict[str, Any]]

    @classmethod
    def of(cls, directory: Path) -> "Course":
        """Without what the clock and the folder's name have part in."""
        lines = (directory / NAME).read_text().replace(str(directory), "").split("\n")[:-1]
        entries = [timeless(json.loads(line)) for line in lines]
        return cls(losses_of(directory), _noted(directory / PACKETS), entries)

    @property
    def last_step(self) -> int:
        return max((int(place.split()[0]) for place in self.losses), default=0)

    def follows(self, calm: "Course") -> None:
        """Assert that this is the calm course, bit for bit, as far as it goes.

        But for steps that were lost there and undone: a host of which the journal says so is not spoiled again.
        """
        told = {place: calm.losses.get(place) for place in self.losses}
        assert {place: loss for place, loss in self.losses.items() if told[place] not in (loss, "nan")} == {}
        assert self.packets == {sequence: calm.packets.get(sequence) for sequence in self.packets}
        entries = {entry["position"]: entry for entry in calm.journal}
        assert self.journal == [entries.get(entry["position"]) for entry in self.journal]


def losses_of(directory: Path) -> dict[str, str]:
    """A run's losses by step and place in the journal."""
    return _noted(directory / LOSSES)


def _noted(path: Path) -> dict[str, str]:
    """Each line's last word by what is before it; one that came twice must have come out the same."""
    found: dict[str, str] = {}
    for line in path.read_text().split("\n")[:-1] if path.exists() else ():
        place, _, value = line.rpartition(" ")
        same = found.setdefault(place, value) == value or "nan" in (value, found[place])
        assert same, f"{path.name}: {place} came out as {found[place]} and {value}"
    return found


def timeless(value: Any) -> Any:
    """Plain data without the times that jobs took."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key != "wallS"}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def has_checkpoint(directory: Path) -> bool:
    """Whether there is anything to go on from."""
    try:
        CheckpointStore(directory / "checkpoints", warn=lambda _: None).latest()
    except NotFound:
        return False
    return True


def image(directory: Path, to: Path) -> None:
    """What a crash now would leave: the files as they are. Those that are never written again are shared."""
    shutil.copytree(directory, to, copy_function=_link)


def put_back(picture: Path, directory: Path) -> None:
    """Make a run's folder what it was when the picture was taken."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(picture, directory, copy_function=_link)


def _link(source: str, target: str) -> None:
    if Path(source).suffix in (".jsonl", ".txt"):
        shutil.copy(source, target)
    else:
        os.link(source, target)
