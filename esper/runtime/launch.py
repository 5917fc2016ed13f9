"""Start and end the processes of a run: the runtime, the trainer. Children die with their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from esper.errors import NotFound, Unavailable
from esper.runtime.home import Contact, Home

START_LIMIT_S = 120.0


class Child:
    """A Python child with its output in a file. Start it from the main thread: it dies with the thread that made it."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as output:
            environment = {**os.environ, "ESPER_PARENT": str(os.getpid())}
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                process_group=0,  # Ctrl-C at a terminal is for its parent, who ends it in good order
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        """The end of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, limit_s: float = 15.0) -> int:
        """Ask it to end, then end it. Returns its status."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def find_or_start_runtime(home: Home, *arguments: str) -> tuple[Contact, Child | None]:
    """The runtime of a home; started as a child where none runs.

    Raises Unavailable with the end of its log where it does not come up.
    """
    try:
        return home.contact(), None
    except NotFound:
        pass  # started below
    child = Child(["-m", "esper", "up", "--home", str(home.root), *arguments], home.folder("logs") / "runtime.log")
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and child.running:
        try:
            return home.contact(), child
        except NotFound:
            time.sleep(0.05)
    child.stop()
    raise Unavailable(f"the runtime did not start; the end of {child.log}:\n{child.tail()}")


def start_trainer(spec_file: Path) -> Child:
    """Train a spec in a process of its own."""
    return Child(["-m", "esper.runtime.trainer", str(spec_file)], spec_file.parent / "trainer.log")
