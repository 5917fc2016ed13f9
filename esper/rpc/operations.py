"""Slow work: a registry of common.v1.Operation, in memory, with a port for keeping it elsewhere too.

QUEUED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED, and QUEUED -> FAILED | CANCELLED. An ended
operation never changes. Every change is saved before it is seen.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from esper import errors
from esper.api.common.v1 import operation_pb2, resource_pb2
from esper.rpc import paging
from esper.rpc.status import bug_to_rpc, status_of

Operation = operation_pb2.Operation
_UNFINISHED = (Operation.STATE_QUEUED, Operation.STATE_RUNNING)


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of one operation. `number` counts operations from 1."""

    number: int
    request_id: str
    operation: Operation


class OperationStore(Protocol):
    """Where records outlive the process."""

    async def save(self, record: Record) -> None:
        """Keep `record` in place of an earlier one with its number."""

    async def load(self) -> Sequence[Record]:
        """All records, by number."""


@dataclass
class _Entry:
    record: Record
    ended: asyncio.Event
    on_cancel: Callable[[], object] | None = None
    cancel_requested: bool = False


class Operations:
    """The operations of one process.

    `clock`: the time, for create_time and end_time. `make_id`: a fresh id. `keep_ended`:
    ended operations remembered; older ones are NotFound here, and stay in `store`.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        make_id: Callable[[], str] = lambda: secrets.token_hex(8),
        store: OperationStore | None = None,
        keep_ended: int = 10_000,
    ) -> None:
        self._clock = clock
        self._make_id = make_id
        self._store = store
        self._keep_ended = keep_ended
        self._entries: dict[str, _Entry] = {}
        self._by_request: dict[str, str] = {}
        self._number = 0
        self._revision = 0
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def revision(self) -> int:
        """Changes so far."""
        return self._revision

    async def load(self) -> list[Operation]:
        """Take over what the store holds; returns the unfinished ones, for their owner to resume or fail."""
        if self._store is not None:
            for record in await self._store.load():
                self._put(record)
        return [self._copy(e) for e in self._entries.values() if e.record.operation.state in _UNFINISHED]

    def of_request(self, request_id: str) -> Operation | None:
        """The operation that a request id made; None where it made none that is kept."""
        known = self._by_request.get(request_id)
        return self.get(known) if known is not None else None

    async def create(
        self, kind: str, request_id: str = "", on_cancel: Callable[[], object] | None = None
    ) -> tuple[Operation, bool]:
        """A new QUEUED operation and False; or, for a `request_id` seen before, its operation and True.

        `on_cancel` is called when somebody asks for the work to stop.
        Raises Conflict when the request id was used for another kind of work.
        """
        async with self._changing:
            if (known := self._by_request.get(request_id)) is not None:
                operation = self.get(known)
                if operation.kind != kind:
                    raise errors.Conflict(
                        f"request id {request_id!r} already made a {operation.kind!r}, not a {kind!r}"
                    )
                return operation, True
            operation = Operation(name=f"operations/{self._make_id()}", kind=kind, state=Operation.STATE_QUEUED)
            operation.create_time.FromDatetime(self._clock())
            entry = await self._save(Record(self._number + 1, request_id, operation))
            entry.on_cancel = on_cancel
            return self._copy(entry), False

    async def run(self, kind: str, work: Callable[[], Awaitable[str]], request_id: str = "") -> Operation:
        """Create an operation and do `work` in a task; its answer is the result's resource name.

        What `work` raises becomes the operation's failure; cancelling the operation cancels the task.
        """
        operation, existed = await self.create(kind, request_id)
        if not existed:
            task = asyncio.create_task(self._drive(operation.name, work), name=operation.name)
            self._entries[operation.name].on_cancel = task.cancel
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return operation

    async def start(self, name: str) -> Operation:
        """QUEUED -> RUNNING."""
        return await self._move(name, Operation.STATE_RUNNING)

    async def succeed(self, name: str, result_name: str) -> Operation:
        """RUNNING -> SUCCEEDED."""
        return await self._move(name, Operation.STATE_SUCCEEDED, result_name=result_name)

    async def fail(self, name: str, error: Exception) -> Operation:
        """QUEUED or RUNNING -> FAILED. Of an error that is not ours only the class is told."""
        return await self._move(name, Operation.STATE_FAILED, failure=failure_of(error))

    async def stopped(self, name: str) -> Operation:
        """The worker has stopped on request: QUEUED or RUNNING -> CANCELLED."""
        return await self._move(name, Operation.STATE_CANCELLED)

    async def cancel(self, name: str) -> Operation:
        """Ask for the work to stop. What is QUEUED is CANCELLED at once; what has ended stays as it is."""
        entry = self._entry(name)
        if entry.record.operation.state in _UNFINISHED and not entry.cancel_requested:
            entry.cancel_requested = True
            queued = entry.record.operation.state == Operation.STATE_QUEUED
            if entry.on_cancel is not None:
                entry.on_cancel()
            if queued:
                return await self.stopped(name)
        return self._copy(entry)

    def cancel_requested(self, name: str) -> bool:
        """Whether somebody asked for `name` to stop; for workers that look now and then."""
        return self._entry(name).cancel_requested

    async def wait(self, name: str, timeout_s: float) -> Operation:
        """The operation when it has ended or the time is over."""
        entry = self._entry(name)
        with contextlib.suppress(TimeoutError):  # still running is a normal answer
            async with asyncio.timeout(timeout_s):
                await entry.ended.wait()
        return self._copy(entry)

    def get(self, name: str) -> Operation:
        """The operation as it is now."""
        return self._copy(self._entry(name))

    def list(
        self, request: resource_pb2.PageRequest, kind: str = ""
    ) -> tuple[Sequence[Operation], resource_pb2.PageReply]:
        """A page of operations, newest first; only those of `kind` unless it is empty."""
        newest = (e for e in reversed(self._entries.values()) if kind in ("", e.record.operation.kind))
        of = paging.identity("operations", kind)
        found, reply = paging.page(newest, request, of, lambda entry: entry.record.operation.name)
        return [self._copy(entry) for entry in found], reply

    async def close(self) -> None:
        """Stop the tasks of `run`. Their operations stay RUNNING, for `load` to find after a restart."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drive(self, name: str, work: Callable[[], Awaitable[str]]) -> None:
        try:
            await self.start(name)
            await self.succeed(name, await work())
        except asyncio.CancelledError:
            if not self._entry(name).cancel_requested:
                raise
            if self.get(name).state in _UNFINISHED:
                await self.stopped(name)
        except Exception as error:
            await self.fail(name, error)

    async def _move(
        self,
        name: str,
        state: "Operation.State.ValueType",
        result_name: str = "",
        failure: resource_pb2.Failure | None = None,
    ) -> Operation:
        async with self._changing:
            entry = self._entry(name)
            operation = self._copy(entry)
            _check_move(operation, state)
            operation.state, operation.result_name = state, result_name
            if failure is not None:
                operation.failure.CopyFrom(failure)
            if state not in _UNFINISHED:
                operation.end_time.FromDatetime(self._clock())
            return self._copy(await self._save(Record(entry.record.number, entry.record.request_id, operation)))

    async def _save(self, record: Record) -> _Entry:
        if self._store is not None:
            await self._store.save(record)
        return self._put(record)

    def _put(self, record: Record) -> _Entry:
        name = record.operation.name
        entry = self._entries.setdefault(name, _Entry(record, asyncio.Event()))
        entry.record = record
        self._number = max(self._number, record.number)
        self._revision += 1
        if record.request_id:
            self._by_request[record.request_id] = name
        if record.operation.state not in _UNFINISHED:
            entry.ended.set()
            self._forget()
        return entry

    def _forget(self) -> None:
        if len(self._entries) <= self._keep_ended:
            return
        ended = [name for name, entry in self._entries.items() if entry.ended.is_set()]
        for name in ended[: max(0, len(ended) - self._keep_ended)]:
            self._by_request.pop(self._entries.pop(name).record.request_id, None)

    def _entry(self, name: str) -> _Entry:
        if (entry := self._entries.get(name)) is None:
            raise errors.NotFound(f"{name}: no such operation here; it ended long ago or belongs to another service")
        return entry

    @staticmethod
    def _copy(entry: _Entry) -> Operation:
        copy = Operation()
        copy.CopyFrom(entry.record.operation)
        return copy


def failure_of(error: Exception) -> resource_pb2.Failure:
    """`error` as a reply reports it."""
    if isinstance(error, errors.EsperError):
        return resource_pb2.Failure(code=status_of(error).value[0], message=str(error))
    status = bug_to_rpc(error)
    return resource_pb2.Failure(code=status.code.value[0], message=status.details)


def _check_move(operation: Operation, state: "Operation.State.ValueType") -> None:
    names = Operation.State
    begun = state != Operation.STATE_SUCCEEDED or operation.state == Operation.STATE_RUNNING
    again = state == Operation.STATE_RUNNING and operation.state == Operation.STATE_RUNNING
    if operation.state not in _UNFINISHED or not begun or again:
        raise errors.PreconditionFailed(
            f"{operation.name}: is {names.Name(operation.state)} and cannot become {names.Name(state)}"
        )
