"""Ranks that are threads of one test and meet at barriers."""

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from esper.errors import EsperError
from esper.tolaria.ranks import Ranks

LIMIT_S = 10.0
Each = TypeVar("Each")


class NotMet(AssertionError):
    """A rank waited in vain for another one."""


class Meeting:
    """Where the threads of one test exchange bytes."""

    def __init__(self, world: int, limit_s: float = LIMIT_S) -> None:
        self.world = world
        self.barrier = threading.Barrier(world, timeout=limit_s)
        self.given: dict[int, object] = {}

    def exchange(self, rank: int, what: object) -> dict[int, object]:
        self.given[rank] = what
        self._meet(rank)
        seen = dict(self.given)
        self._meet(rank)
        return seen

    def _meet(self, rank: int) -> None:
        """Raise NotMet after the limit, with what tells a rank that hangs from a process that got no time."""
        began_s, cpu_s = time.monotonic(), time.process_time()
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            waited_s, used_s = time.monotonic() - began_s, time.process_time() - cpu_s
            raise NotMet(
                f"rank {rank} of {self.world} waited {waited_s:.1f} s, in which this process used {used_s:.1f} s of "
                f"CPU, load {os.getloadavg()[0]:.1f}; given so far by ranks {sorted(self.given)}; all threads:\n"
                f"{_stacks()}"
            ) from None


def _stacks() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode()


@dataclass
class ThreadRanks:
    """`Ranks` between threads."""

    meeting: Meeting
    rank: int
    shared: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def world(self) -> int:
        return self.meeting.world

    def share(self, make: Callable[[], bytes]) -> bytes:
        self.shared += 1
        said: object = None
        if self.first:
            try:
                said = make()
            except EsperError as error:
                said = error
        said = self.meeting.exchange(self.rank, said)[0]
        if isinstance(said, EsperError):
            raise said if self.first else type(said)(str(said))
        return said

    def gather(self, data: bytes) -> list[bytes]:
        seen = self.meeting.exchange(self.rank, data)
        return [seen[rank] for rank in range(self.meeting.world)]

    check_same = Ranks.check_same

    @torch.no_grad()
    def make_equal(self, model: nn.Module) -> None:
        first = self.meeting.exchange(self.rank, {n: t.clone() for n, t in model.state_dict().items()})[0]
        model.load_state_dict(first)

    def mean(self, flat: Tensor) -> None:
        seen = self.meeting.exchange(self.rank, flat.clone())
        flat.copy_(torch.stack([seen[rank] for rank in range(self.meeting.world)]).sum(0) / self.meeting.world)

    def begin_mean(self, flat: Tensor) -> "Done":
        self.mean(flat)
        return Done()


class Done:
    """What was begun is over."""

    def wait(self) -> None:
        pass


def thread_ranks(world: int, limit_s: float = LIMIT_S) -> list[ThreadRanks]:
    meeting = Meeting(world, limit_s)
    return [ThreadRanks(meeting, rank) for rank in range(world)]


def on_each(items: Sequence[Each], act: Callable[[Each], object]) -> list[object]:
    """What `act` gives for each item, all at once, or the EsperError it raises there.

    Anything else that is raised is raised here: of a rank that failed, not of one that waited for it in vain.
    """
    with ThreadPoolExecutor(len(items), thread_name_prefix="rank") as pool:
        futures = [pool.submit(act, item) for item in items]
    errors = [future.exception() for future in futures]
    unexpected = [error for error in errors if error is not None and not isinstance(error, EsperError)]
    for error in sorted(unexpected, key=lambda error: isinstance(error, NotMet)):
        raise error
    return [future.result() if error is None else error for future, error in zip(futures, errors, strict=True)]
