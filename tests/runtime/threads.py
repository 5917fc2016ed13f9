"""Ranks that are threads of one test and meet at barriers."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from esper.errors import EsperError

LIMIT_S = 10.0
Each = TypeVar("Each")


class Meeting:
    """Where the threads of one test exchange bytes."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.barrier = threading.Barrier(world, timeout=LIMIT_S)
        self.given: dict[int, object] = {}

    def exchange(self, rank: int, what: object) -> dict[int, object]:
        self.given[rank] = what
        self.barrier.wait()
        seen = dict(self.given)
        self.barrier.wait()
        return seen


@dataclass
class ThreadRanks:
    """`Ranks` between threads."""

    meeting: Meeting
    rank: int
    shared: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

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


def thread_ranks(world: int) -> list[ThreadRanks]:
    meeting = Meeting(world)
    return [ThreadRanks(meeting, rank) for rank in range(world)]


def on_each(items: Sequence[Each], act: Callable[[Each], object]) -> list[object]:
    """What `act` gives for each item, all at once, or the EsperError it raises there."""

    def safely(item: Each) -> object:
        try:
            return act(item)
        except EsperError as error:
            return error

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(safely, items))
