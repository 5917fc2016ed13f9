"""A broker of one's own, and envelopes to send."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esper.api.kasmina.v1 import control_pb2, telemetry_pb2
from esper.oona.broker import Broker
from esper.oona.envelope import Sender


@pytest.fixture
def broker(nats_server: Path, tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as started:
        yield started


@pytest.fixture
def sender() -> Sender:
    return Sender("tamiyo/0")


def crash(broker: Broker) -> None:
    """End the broker as power would, page cache aside."""
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)


def command(sender: Sender, number: int, run_id: str = "run-1"):
    message = control_pb2.ControlCommand(command_id=f"c{number}", run_id=run_id, issuer="tamiyo", reason="because")
    return sender.seal(message, run_id=run_id, key=f"c{number}")


def health(sender: Sender, step: int, run_id: str = "run-1"):
    signal_ = telemetry_pb2.HealthSignal(site="fc1", step=step)
    message = telemetry_pb2.HealthBatch(run_id=run_id, signals=[signal_], sampling_period_steps=32)
    return sender.seal(message, run_id=run_id)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Return when `condition` holds; fail when it does not within `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)
