"""The saga in a process of its own, which stops at a place it is told and is killed there with SIGKILL."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch

from esper.kasmina.lifecycle import State
from tests.flow.local import LocalRun
from tests.tolaria.saga import STEPS, Setting, begin, follow, has_checkpoint

LIMIT_S = 150.0
HERE = "here"  # what the program says where it is to be killed
# Changes to the file system; a call on a path of the run's directory counts as one.
TOUCHING = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where to be killed: all but `by` are about that kind alone.

    `by` "step": after the `count`-th step, counted over, at which a seed is in `state`. "move": inside a decision
    point, when a seed enters `state` for the `count`-th time. "file": before the `count`-th change to the run's
    directory. "journal": when so many bytes of the `count`-th line are written.
    """

    by: str
    count: int = 1
    state: str = ""
    size_bytes: int = 0


def live(directory: Path, setting: Setting, place: Place | None = None, *, until: int = STEPS) -> bool:
    """One life of the run's process: from its start, or from what an earlier life left, up to its death at `place`.

    Without a place, or where it is never reached, up to the end. Returns whether it was killed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    log = directory.with_suffix(".out")
    log.write_text("")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # importing takes longer than training
    child = context.Process(target=train, args=(directory, setting, place, until, log))
    child.start()
    try:
        deadline = time.monotonic() + LIMIT_S
        while child.exitcode is None and HERE not in log.read_text().splitlines():
            assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s:\n{log.read_text()[-2000:]}"
            time.sleep(0.02)
        killed = child.exitcode is None
        assert killed or child.exitcode == 0, log.read_text()[-3000:]
        return killed
    finally:
        child.kill()  # SIGKILL
        child.join()


# In the child


def halt() -> NoReturn:
    """Wait for the end."""
    print(HERE, flush=True)
    while True:
        time.sleep(60.0)


def arm(local: LocalRun, place: Place) -> Callable[[LocalRun], None]:
    """Set the trap; returns what is to be called after each step."""
    left = [place.count]

    def passed() -> bool:
        left[0] -= 1
        return left[0] == 0

    def after_step(local: LocalRun) -> None:
        table = local.run.executor.table
        if place.by == "step" and (not place.state or table.in_states((State[place.state],))) and passed():
            halt()

    if place.by == "move":
        _watch_moves(local, State[place.state], passed)
    elif place.by == "file":
        _watch_files(local.run.directory, passed)
    elif place.by == "journal":
        journal = local.session.arrivals.journal
        assert journal._file is not None
        journal._file = Tearing(journal._file, place.size_bytes, passed)  # type: ignore[assignment]
    return after_step


class Tearing:
    """A file of which one line is written in part."""

    def __init__(self, file: TextIO, size_bytes: int, passed: Callable[[], bool]) -> None:
        self.file, self.size_bytes, self.passed = file, size_bytes, passed

    def write(self, line: str) -> None:
        if self.passed():
            self.file.write(line[: min(self.size_bytes, len(line))])
            self.file.flush()
            halt()
        self.file.write(line)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _watch_moves(local: LocalRun, state: State, passed: Callable[[], bool]) -> None:
    table = type(local.run.executor.table)
    move = table.move

    def moved(self: Any, seed: Any, target: State, step: int, reason: str) -> Any:
        transition = move(self, seed, target, step, reason)
        if target is state and passed():
            halt()
        return transition

    table.move = moved  # type: ignore[method-assign]


def _watch_files(directory: Path, passed: Callable[[], bool]) -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHING and str(arguments[0]).startswith(str(directory)) and passed():
            halt()

    sys.addaudithook(hook)


def train(directory: Path, setting: Setting, place: Place | None, until: int, log: Path) -> None:
    """The run's process."""
    with log.open("a") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    torch.set_num_threads(1)
    local = begin(directory, setting, resumed=has_checkpoint(directory))
    after_step = arm(local, place) if place else None
    follow(local, setting, until, after_step)
