"""A run's line where several ranks train it: the first rank's leads to the runtime, and all see what arrives on it.

Every method is called on every rank at the same point of the run. A kernel counts as loaded once every rank has
loaded it; where one cannot, it is refused on all.
"""

import contextlib
import json
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from esper.api.tolaria.v1 import trainer_pb2
from esper.artifact import frame
from esper.blueprint.interface import Interface
from esper.errors import EsperError
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import SeedId
from esper.tolaria.entries import read_entry, write_entry
from esper.tolaria.line import Incoming, Line, Loaded, Message
from esper.tolaria.ranks import Ranks

_ENTRIES = "entries"
_SIZE = struct.Struct("!Q")


class RankKernels(Protocol):
    """How a kernel gets from the first rank to the others."""

    def pack(self, artifact_id: str) -> bytes:
        """On the first rank: a kernel that was loaded there, as bytes."""
        ...

    def load(self, artifact_id: str, interface: Interface, data: bytes) -> Kernel:
        """On another rank: verify those bytes and get the kernel ready to run."""
        ...


class RankLine:
    """A tolaria Line. `outer`: to the runtime, on the first rank; None on the others."""

    def __init__(self, ranks: Ranks, outer: Line | None, kernels: RankKernels) -> None:
        assert ranks.first == (outer is not None)
        self.ranks = ranks
        self.outer = outer
        self.kernels = kernels
        self._wanted: dict[tuple[SeedId, str], Interface] = {}
        self._quiet = False  # waiting: nothing is shared before something has arrived
        self._told: BaseException | None = None  # the last error that the other ranks know of

    def post(self, make: Message) -> None:
        """Messages and files are the first rank's; the others would say and write the same."""
        if self.outer is not None:
            self.outer.post(make)

    def together(self) -> AbstractContextManager[object]:
        return self.outer.together() if self.outer is not None else contextlib.nullcontext()

    def load_kernel(self, seed: SeedId, artifact_id: str, interface: Interface) -> None:
        self._wanted[(seed, artifact_id)] = interface
        if self.outer is not None:
            self.outer.load_kernel(seed, artifact_id, interface)

    def collect(self) -> list[Incoming]:
        """What has arrived on the first rank since the last call. Raises what the line there raises, on all ranks."""
        outer = self.outer
        if outer is None:
            return self._settle(self._read(self.ranks.share(bytes)))
        arrived: list[Incoming] = []
        if self._quiet:
            arrived = outer.collect()
            if not arrived:
                return []

        def said() -> bytes:
            if not self._quiet:
                arrived.extend(outer.collect())
            return self._write(arrived)

        try:
            self.ranks.share(said)
        except EsperError as error:
            self._told = error
            raise
        return self._settle(arrived)

    def wait(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        """As the first rank's line waits. `done` must call `collect` once each time."""
        if done():
            return
        self._quiet = True
        try:
            if self.outer is not None:
                self.outer.wait(done, limit_s)
            else:
                while not done():
                    pass  # each look waits for the first rank to have heard something
        except EsperError as error:
            if self.outer is not None and error is not self._told:
                self._tell(error)
            raise
        finally:
            self._quiet = False

    def close(self, timeout_s: float = 10.0) -> None:
        if self.outer is not None:
            self.outer.close(timeout_s)

    def _tell(self, error: EsperError) -> None:
        """The other ranks are waiting for an arrival: let them raise what this one raises."""

        def raised() -> bytes:
            raise error

        with contextlib.suppress(EsperError):
            self.ranks.share(raised)

    def _write(self, arrived: list[Incoming]) -> bytes:
        """Arrivals as bytes, with each kernel; one that cannot be handed on is refused, in `arrived` too."""
        kernels: dict[str, bytes] = {}
        for place, item in enumerate(arrived):
            if isinstance(item, Loaded) and item.kernel is not None and item.artifact_id not in kernels:
                try:
                    kernels[item.artifact_id] = self.kernels.pack(item.artifact_id)
                except EsperError as error:
                    arrived[place] = Loaded(item.seed, item.artifact_id, None, str(error))
        entries = [write_entry(item, 0, 0, "").SerializeToString() for item in arrived]
        return frame.pack({_ENTRIES: b"".join(_SIZE.pack(len(entry)) + entry for entry in entries), **kernels})

    def _read(self, data: bytes) -> list[Incoming]:
        kernels = frame.unpack(data)
        entries, at, arrived = kernels.pop(_ENTRIES), 0, []
        while at < len(entries):
            (size,) = _SIZE.unpack_from(entries, at)
            at += _SIZE.size
            entry = trainer_pb2.JournalEntry.FromString(entries[at : at + size])
            at += size
            arrived.append(read_entry(entry, lambda seed, artifact: self._load(seed, artifact, kernels[artifact])))
        return arrived

    def _load(self, seed: SeedId, artifact_id: str, data: bytes) -> Loaded:
        try:
            kernel = self.kernels.load(artifact_id, self._wanted[(seed, artifact_id)], data)
        except Exception as error:  # whatever went wrong here, the other ranks wait to hear of it
            return Loaded(seed, artifact_id, None, str(error) or type(error).__name__)
        return Loaded(seed, artifact_id, kernel)

    def _settle(self, arrived: list[Incoming]) -> list[Incoming]:
        """Hear from every rank how its loads went: a kernel that failed on one of them failed."""
        loads = [item for item in arrived if isinstance(item, Loaded)]
        if not loads:
            return arrived
        own = json.dumps([item.failure for item in loads]).encode()
        failures: dict[int, str] = {}
        for rank, texts in enumerate(self.ranks.gather(own)):
            for place, text in enumerate(json.loads(texts)):
                if text:
                    failures.setdefault(place, text if rank == 0 else f"rank {rank} cannot load it: {text}")
        place_of = {id(item): place for place, item in enumerate(loads)}
        return [
            Loaded(item.seed, item.artifact_id, None, failures[place_of[id(item)]])
            if isinstance(item, Loaded) and place_of[id(item)] in failures
            else item
            for item in arrived
        ]
