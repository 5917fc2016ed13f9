"""The journal: everything from outside that took effect, one line each, written before it acts.

A rollback is written too: the steps that come after it were there before, and a replay must
know which time round an entry belongs to, and where the run went back to. So is the fault of a
kernel, which need not come again.
"""

import hashlib
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path

from google.protobuf import json_format

from esper.api.tolaria.v1 import state_pb2, trainer_pb2
from esper.errors import Conflict, Corrupt, Exhausted
from esper.kasmina.codec import read_seed_id
from esper.kasmina.lifecycle import SeedId

NAME = "journal.jsonl"  # in a run's directory


class Journal:
    """Appends entries to a file and keeps the position; `replay` hands earlier ones out again by step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.course = ""  # digest of what changed the model so far, and when
        self._written = 0  # position of the last entry the file already holds
        self._replay: deque[trainer_pb2.JournalEntry] = deque()
        self._file = path.open("a", encoding="utf-8") if path.parent.is_dir() else None
        self._foreign = self._file is not None and path.stat().st_size > 0

    def append(self, entry: trainer_pb2.JournalEntry) -> None:
        """Give the entry the next position and write it. What a replay hands in again is not written twice.

        Raises Conflict where the file is an earlier run's that is not resumed.
        """
        if self._foreign:
            raise Conflict(
                f"{self.path} is the journal of an earlier run; resume that one, or choose another run id or directory"
            )
        self.position += 1
        entry.position = self.position
        self.course = _then(self.course, entry)
        if self._file is None or self.position <= self._written:
            return
        try:
            self._file.write(json_format.MessageToJson(entry, indent=None) + "\n")
            self._file.flush()
        except OSError as error:
            raise Exhausted(
                f"{self.path} cannot be written: {error}; free some disk space and go on from the newest checkpoint"
            ) from error

    def start_replay(self, after_position: int) -> None:
        """Hand out again what was journaled after `after_position`. A torn last line is cut off: it never acted.

        Raises Corrupt where one of the entries is missing.
        """
        self._foreign = False
        _cut_torn_line(self.path)
        self.position = after_position
        self.course = ""
        self._replay.clear()
        for entry in read_journal(self.path):
            if entry.position > after_position:
                self._replay.append(entry)
            else:
                self.course = _then(self.course, entry)
        for expected, entry in enumerate(self._replay, after_position + 1):
            if entry.position != expected:
                raise Corrupt(
                    f"{self.path} goes from entry {expected - 1} to entry {entry.position}, and without what was "
                    "between the run would take another course; restore the file, or start the run anew"
                )
        self._written = self._replay[-1].position if self._replay else after_position

    @property
    def replaying(self) -> bool:
        return bool(self._replay)

    def due(self, step: int, phase: int) -> list[trainer_pb2.JournalEntry]:
        """Entries of the replay that took effect in this part of this decision point, or before, in order.

        None from beyond a rollback, nor from a second decision point at this step, as there are at a run's end.
        Raises Conflict where a seed failed that has not failed in this course.
        """
        taken: list[trainer_pb2.JournalEntry] = []
        while self._replay and _place(self._replay[0]) <= (step, phase):
            if self._replay[0].HasField("rollback") or (taken and _place(self._replay[0]) < _place(taken[-1])):
                break
            if self._replay[0].HasField("failed"):
                seed = self._replay[0].failed.seed
                raise Conflict(
                    f"{self.path} says that the kernel of {seed.site}/{seed.slot} failed at step "
                    f"{self._replay[0].step}, where this run has no graft of it; resume with the release, the task and "
                    "the loop that the run was begun with"
                )
            taken.append(self._replay.popleft())
        return taken

    def failed_at(self, step: int, grafts: Collection[SeedId]) -> list[tuple[SeedId, str]]:
        """Faults of `grafts` in the run that is replayed, in the step that led to `step`; handed out once."""
        taken: list[tuple[SeedId, str]] = []
        while self._replay and self._replay[0].HasField("failed") and self._replay[0].step == step:
            failed = self._replay[0].failed
            seed = read_seed_id(failed.seed)
            if seed not in grafts:
                break  # `due` refuses it
            taken.append((seed, failed.fault))
            self._replay.popleft()
        return taken

    def goes_back_at(self, step: int) -> state_pb2.Rollback | None:
        """The rollback of the run that is replayed at this step, if it was rolled back here."""
        first = self._replay[0] if self._replay else None
        return first.rollback if first is not None and first.HasField("rollback") and first.step == step else None

    def rolled_back(self, rollback: state_pb2.Rollback) -> None:
        """The run goes back: pass the entry that says so, or write one.

        A replay that did not go back then, or to another step, is given up: what it holds
        happened in another course of the run.
        """
        said = self.goes_back_at(rollback.step)
        if said is not None and said.restored_step == rollback.restored_step:
            self._replay.popleft()
        elif self._replay:
            for entry in self._replay:
                self.course = _then(self.course, entry)
            self._replay.clear()
            self.position = self._written
        self.append(trainer_pb2.JournalEntry(step=rollback.step, rollback=rollback))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_journal(path: Path) -> Iterator[trainer_pb2.JournalEntry]:
    """All whole entries of a journal file. A torn last line is left out; a torn line elsewhere raises Corrupt."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines[:-1], 1):
        try:
            yield json_format.Parse(line, trainer_pb2.JournalEntry())
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise Corrupt(
                f"{path}, line {number}, is not a journal entry: {error}; restore the file, or start the run anew"
            ) from error


def undone(path: Path, position: int, step: int) -> bool:
    """Whether the run went back to before `step` after the entry at `position`."""
    entries = (entry for entry in read_journal(path) if entry.position > position)
    return any(entry.HasField("rollback") and entry.rollback.restored_step < step for entry in entries)


def _place(entry: trainer_pb2.JournalEntry) -> tuple[int, int]:
    return entry.step, entry.phase


def _then(course: str, entry: trainer_pb2.JournalEntry) -> str:
    """The digest of a course that went on with `entry`. Answers that a model does not change by leave it alone."""
    kind = entry.WhichOneof("event")
    if kind == "loaded":
        seed, artifact = entry.loaded.seed, entry.loaded.artifact.artifact_id
        what = f"{seed.site}/{seed.slot} {artifact} {entry.loaded.HasField('failure')}".encode()
    elif kind == "command":
        command = entry.command.command
        action = command.WhichOneof("action")
        what = action.encode() + getattr(command, action).SerializeToString(deterministic=True) if action else b""
    elif kind == "result" and entry.result.HasField("twin"):
        steps = [snapshot.step for snapshot in entry.result.twin.snapshots]
        what = f"{entry.result.job_id} {steps}".encode()
    elif kind == "rollback":
        what = str(entry.rollback.restored_step).encode()
    elif kind == "failed":
        what = f"{entry.failed.seed.site}/{entry.failed.seed.slot}".encode()
    else:
        return course
    return hashlib.sha256(f"{course} {entry.step} {entry.phase} {kind} ".encode() + what).hexdigest()


def _cut_torn_line(path: Path) -> None:
    """A line without its end was being written when the process died."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
