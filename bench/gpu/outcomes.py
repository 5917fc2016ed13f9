"""A pytest plugin that writes down each test as it ends, so that a run that is stopped has still said something.

`pytest -p bench.gpu.outcomes` appends a JSON object a line to the file that ESPER_OUTCOMES names.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

VARIABLE = "ESPER_OUTCOMES"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`result`: passed, failed, skipped, or stopped, for a test that was running when the run ended."""

    test: str  # pytest's node id
    result: str
    reason: str = ""

    @property
    def function(self) -> str:
        return self.test.partition("[")[0]


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(nodeid, "stopped", "it began and did not end")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _write(report.nodeid, "failed", f"{report.when}: {_last_line(report)}")
    elif report.skipped:
        _write(report.nodeid, "skipped", _last_line(report))
    elif report.when == "call":
        _write(report.nodeid, "passed", "")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(report.nodeid, "failed", f"collection: {_last_line(report)}")


def read(path: Path) -> Iterator[Outcome]:
    """The last word on each test, in the order they began; a failure is never taken back."""
    found: dict[str, Outcome] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        outcome = Outcome(**json.loads(line))
        if found.get(outcome.test, outcome).result != "failed":
            found[outcome.test] = outcome
    yield from found.values()


def _write(test: str, result: str, reason: str) -> None:
    with Path(os.environ[VARIABLE]).open("a") as file:
        file.write(json.dumps({"test": test, "result": result, "reason": reason}) + "\n")


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What was said: a skip's reason, or the line with the error."""
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")] or [report.longreprtext]
    return lines[0].removeprefix("E ").strip()[:300]
