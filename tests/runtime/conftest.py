"""A runtime of one's own, started once for all tests that leave it as it was."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.processes import Runtime


@pytest.fixture(scope="session")
def runtime(nats_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    started = Runtime(tmp_path_factory.mktemp("runtime"))
    yield started
    assert started.stop() == 0, started.text


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR of one's own whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="e") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
