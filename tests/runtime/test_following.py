"""A run is followed to its end, not to one that it had before, and a training process that fails is heard of."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.errors import NotFound, Unavailable
from esper.runtime import conduct
from esper.runtime.conduct import Following

LIMIT_S = 20.0


class Trainer:
    """A training process as `Following` sees one."""

    log = Path("trainer.log")

    def __init__(self) -> None:
        self.process = SimpleNamespace(returncode=None)

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def end(self, status: int) -> None:
        self.process.returncode = status

    def tail(self) -> str:
        return "RuntimeError: out of batches"


class Log:
    """A run's log behind WatchRun: it ends a stream where it holds an end of the run that nothing came after."""

    def __init__(self, *events: pb.RunEvent) -> None:
        self.events: list[pb.RunEvent] = []
        self.asked: list[int] = []
        for event in events:
            self.add(event)

    def __call__(self, _channel: object) -> "Log":
        return self

    def add(self, event: pb.RunEvent) -> None:
        self.events.append(pb.RunEvent(position=len(self.events) + 1))
        self.events[-1].MergeFrom(event)

    async def WatchRun(self, request: pb.WatchRunRequest) -> AsyncIterator[pb.WatchRunResponse]:
        at = request.after_position
        self.asked.append(at)
        if not self.events:
            raise NotFound("no such run")
        while True:
            while at < len(self.events):
                at += 1
                yield pb.WatchRunResponse(event=self.events[at - 1])
            if self.events[-1].WhichOneof("event") in ("goodbye", "summary"):
                return
            await asyncio.sleep(0.01)


def hello() -> pb.RunEvent:
    return pb.RunEvent(hello={"run_id": "r"})


def note(text: str) -> pb.RunEvent:
    return pb.RunEvent(note={"text": text})


STOPPED = pb.RunEvent(goodbye={"step": 50, "stopped": True})
FAILED = pb.RunEvent(goodbye={"completed": False, "error": "RuntimeError"})
SUMMARY = pb.RunEvent(summary={})


def kinds(events: list[pb.RunEvent]) -> list[str]:
    return [event.note.text or str(event.WhichOneof("event")) for event in events]


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


def followed(monkeypatch: pytest.MonkeyPatch, log: Log, trainer: Trainer) -> Following:
    monkeypatch.setattr(conduct.observability_pb2_grpc, "ObservabilityServiceStub", log)
    return Following("r", None, trainer)  # type: ignore[arg-type]


async def all_of(following: Following) -> list[pb.RunEvent]:
    async with asyncio.timeout(LIMIT_S):
        return [event async for event in following.events()]


async def test_training_that_ended_by_an_error_is_heard_of_after_its_goodbye(monkeypatch, trainer):
    following = followed(monkeypatch, Log(hello(), FAILED), trainer)
    trainer.end(1)
    with pytest.raises(Unavailable, match=r"(?s)training of run r ended with 1.*out of batches"):
        await all_of(following)
    assert kinds(following.heard) == ["hello", "goodbye"]
    assert not following.ended.is_set()


async def test_training_that_was_stopped_is_followed_to_its_goodbye_and_has_no_error(monkeypatch, trainer):
    following = followed(monkeypatch, Log(hello(), STOPPED), trainer)
    trainer.end(130)
    assert kinds(await all_of(following)) == ["hello", "goodbye"]
    assert following.ended.is_set() and following.stopped


async def test_the_end_that_a_resumed_run_had_before_is_not_its_end(monkeypatch, trainer):
    log = Log(hello(), FAILED)
    following = followed(monkeypatch, log, trainer)
    watching = asyncio.create_task(all_of(following))
    while len(log.asked) < 3:  # it has seen the old end, and asks on from there
        await asyncio.sleep(0.01)
    assert log.asked[:3] == [0, 2, 2]
    for event in (hello(), note("trains on")):
        log.add(event)
    await asyncio.sleep(0.3)
    trainer.end(0)
    await asyncio.wait_for(following.ended.wait(), LIMIT_S)
    log.add(SUMMARY)
    assert kinds(await watching) == ["hello", "goodbye", "hello", "trains on", "summary"]


async def test_a_run_that_has_not_said_hello_is_waited_for(monkeypatch, trainer):
    log = Log()
    following = followed(monkeypatch, log, trainer)
    watching = asyncio.create_task(all_of(following))
    await asyncio.sleep(0.05)
    for event in (hello(), SUMMARY):
        log.add(event)
    trainer.end(0)
    assert kinds(await watching) == ["hello", "summary"]


async def test_a_training_process_that_never_said_hello_is_heard_of(monkeypatch, trainer):
    following = followed(monkeypatch, Log(), trainer)
    trainer.end(-9)
    with pytest.raises(Unavailable, match="ended with -9"):
        await all_of(following)


async def test_an_end_that_is_not_heard_of_is_not_waited_for(monkeypatch, trainer):
    monkeypatch.setattr(conduct, "LAST_EVENTS_S", 0.05)
    following = followed(monkeypatch, Log(hello(), FAILED, hello(), note("trains on")), trainer)
    trainer.end(0)
    with pytest.raises(Unavailable, match=r"nothing was heard of its end within 0\.05 s"):
        await all_of(following)


async def test_what_fails_beside_the_view_ends_both():
    async def fails() -> None:
        raise NotFound("result.json is gone")

    with pytest.raises(NotFound, match=r"result\.json"):
        async with asyncio.timeout(LIMIT_S):
            await conduct._both(asyncio.Event().wait(), fails())  # type: ignore[arg-type]
