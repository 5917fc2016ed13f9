"""Fits without a runtime."""

from pathlib import Path

import pytest

from tests.loops.in_process import InProcess


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """What the callbacks attach to, in this test, in place of a runtime."""
    made = InProcess(tmp_path / "run")
    monkeypatch.setattr("esper.loops.growing.attach", made)
    return made
