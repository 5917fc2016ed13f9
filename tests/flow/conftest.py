"""A home with every kernel made, and what an undisturbed run on it comes to: made once for all drills."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.flow.drills import GROWING, begin, copy_stock, outcome, stocked
from tests.flow.staging import channel, loop, stage
from tests.runtime.processes import Runtime

__all__ = ["channel", "loop", "stage"]  # fixtures of the stage tests


@dataclass(frozen=True)
class Calm:
    """An undisturbed run: its home, where it lies, what it came to, and every kernel that was promoted for it."""

    home: Path
    directory: Path
    outcome: dict[str, Any]
    kernels: frozenset[str]


@pytest.fixture(scope="session")
def calm(nats_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    first = Runtime(folder / "first")
    begin(first, folder / "first-run", steps=20, policy="never").finish()
    kernels = stocked(first)
    assert first.stop() == 0, first.text
    copy_stock(first.home.root, folder / "home" / "home")
    runtime = Runtime(folder / "home")
    training = begin(runtime, folder / "runs", **GROWING)
    training.finish()
    found = outcome(training)
    assert runtime.stop() == 0, runtime.text
    return Calm(first.home.root, training.directory, found, kernels)


@pytest.fixture
def runtime(calm: Calm, tmp_path: Path) -> Iterator[Runtime]:
    """A runtime with the same kernels, to be disturbed."""
    copy_stock(calm.home, tmp_path / "home")
    started = Runtime(tmp_path)
    yield started
    started.stop()
