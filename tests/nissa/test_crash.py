"""Killed between any two writes, and started again, Nissa leaves what it would have left without."""

import itertools
from pathlib import Path

import pytest

from esper.api.tolaria.v1 import trainer_pb2
from esper.nissa import audit, book, files, jsonl
from esper.nissa.metrics import Metrics
from esper.nissa.recorder import Recorder
from esper.nissa.worker import ObservabilityWorker
from esper.oona.cursor import Cursor, FileCursorStore
from esper.oona.memory import MemoryBus
from esper.oona.port import Delivery
from esper.records import RecordLog

from .feed import published
from .scenario import messages


class Killed(BaseException):
    """The process is gone; nothing after this runs."""


class WritePoints:
    """Counts every write to disk, and ends the process before, in the middle of, or after the n-th."""

    def __init__(self, monkeypatch, kill_at=None, when="before"):
        self.count = 0
        self.lines: list[int] = []  # the writes that can stop half-way
        self.kill_at = kill_at
        self.when = when
        self._wrap(monkeypatch, RecordLog, "append")
        for module in (audit, book):
            self._wrap(monkeypatch, module, "replace_text", files.replace_text)
        self._wrap(monkeypatch, jsonl, "append_text", files.append_text, half=self._half_a_line)
        self._wrap(monkeypatch, Path, "rename")
        self._wrap_cursors(monkeypatch)

    def _wrap(self, monkeypatch, owner, name, original=None, half=None):
        write = original or getattr(owner, name)

        def counted(*args, **kwargs):
            self.count += 1
            self.lines += [self.count] if half is not None else []
            if self.count != self.kill_at:
                return write(*args, **kwargs)
            if self.when == "half" and half is not None:
                half(*args)
            elif self.when == "after":
                write(*args, **kwargs)
            raise Killed

        monkeypatch.setattr(owner, name, counted)

    def _wrap_cursors(self, monkeypatch):
        save = FileCursorStore.save

        async def counted(store, key, state):
            self.count += 1
            if self.count == self.kill_at and self.when != "after":
                raise Killed
            await save(store, key, state)
            if self.count == self.kill_at:
                raise Killed

        monkeypatch.setattr(FileCursorStore, "save", counted)

    @staticmethod
    def _half_a_line(path, text):
        files.append_text(path, text[: len(text) // 2])


class Life:
    """A worker's life on one folder: from its cursor on through the deliveries, until it is killed or done."""

    def __init__(self, folder):
        self.recorder = Recorder(folder / "state", Metrics())
        self.worker = ObservabilityWorker(MemoryBus(), self.recorder, FileCursorStore(folder / "cursors"))
        self.cursors = self.worker.cursors

    async def run(self, deliveries):
        self.recorder.recover()
        cursors = {}
        for name, delivery in deliveries:
            if name not in cursors:
                cursors[name] = await Cursor.open(self.cursors, f"nissa/{name}")
            await cursors[name].apply(delivery, lambda envelope, name=name: self.worker._apply(name, envelope))
        for due in self.recorder.due():
            due.finish(due.whole(), "metrics\n")


def deliveries(directory, story):
    """Every envelope with its place in its subject."""
    sequences = {}
    found = []
    for name, envelope in published(story(str(directory))):
        sequences[name] = sequences.get(name, 0) + 1
        found.append((name, Delivery(sequences[name], envelope)))
    return found


def short(directory):
    """What writes in every way there is: hello, a validation, a decision and its outcome, a fossil, the end."""
    wanted = ("hello", "outcome", "goodbye")
    for said in messages(directory):
        message = said.message
        kind = message.WhichOneof("message") if isinstance(message, trainer_pb2.AttachRequest) else ""
        fossil = kind == "transition" and message.transition.to == 9
        packet = kind == "state" and message.state.step == 100
        if kind in wanted or fossil or packet or (not kind and said.time.seconds % 2 == 0):
            yield said


def outcome(folder):
    """Everything that is left, in a form that two runs can be compared by."""
    made = Recorder(folder / "state", Metrics())
    try:
        trail = [(e.position, e.actor, e.action, e.detail_json, e.digest) for e in made.audit.list(limit=1000)]
        log = [event.SerializeToString(deterministic=True) for event in made.run("run-1").log.after(0)]
        assert made.audit.verify().intact
    finally:
        made.close()
    written = {path.name: path.read_text() for path in sorted((folder / "run").iterdir()) if path.is_file()}
    return trail, log, written


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Plots take a second and write nothing; a disk sync protects from a loss of power, which is not tested here."""
    monkeypatch.setattr("esper.nissa.report.draw", lambda *_: {})
    monkeypatch.setattr("os.fsync", lambda _: None)
    set_up = RecordLog._set_up
    monkeypatch.setattr(RecordLog, "_set_up", lambda log, _: set_up(log, "OFF"))


async def live(folder, story, kill_at=None, when="before"):
    """One life, and its writes. The run's directory has the same name whatever the folder: events have it in them."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        points = WritePoints(patch, kill_at, when)
        life = None
        try:
            life = Life(folder)
            await life.run(deliveries("run", story))
        except Killed:
            pass
        finally:
            if life is not None:
                life.recorder.close()
        return points


def left_in(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return outcome(folder)


async def kill_everywhere(tmp_path, story, when):
    points = await live(tmp_path / "whole", story)
    wanted = left_in(tmp_path / "whole")
    assert set(wanted[2]) == {"events.jsonl", "lineage.json", "metrics.prom", "report.html"}
    for kill_at in points.lines if when == "half" else range(1, points.count + 1):
        folder = tmp_path / f"{when}-{kill_at}"
        await live(folder, story, kill_at, when)
        await live(folder, story)
        assert left_in(folder) == wanted, f"killed {when} write {kill_at}"
    return points


@pytest.mark.parametrize("when", ["before", "half", "after"])
async def test_killed_at_every_write(tmp_path, when):
    points = await kill_everywhere(tmp_path, short, when)
    assert points.count > 40


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "half", "after"])
async def test_killed_at_every_write_of_a_whole_run(tmp_path, when):
    points = await kill_everywhere(tmp_path, messages, when)
    assert points.count > 120


async def test_killed_again_and_again(tmp_path):
    await live(tmp_path / "whole", messages)
    for kill_at, when in zip(itertools.cycle((7, 1, 4, 11)), ["half", "after", "before"] * 12, strict=False):
        await live(tmp_path / "often", messages, kill_at, when)
    await live(tmp_path / "often", messages)
    assert left_in(tmp_path / "often") == left_in(tmp_path / "whole")
