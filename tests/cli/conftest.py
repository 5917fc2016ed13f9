"""The command in this process, in an empty folder, with what it says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from esper.cli.main import main


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


@pytest.fixture
def esper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run `esper ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Said:
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else 1
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run
