"""Start and end the processes of a run: the runtime, the trainer."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.errors import Conflict, NotFound, Unavailable
from esper.runtime.home import Contact, Home
from esper.runtime.use import Use

START_LIMIT_S = 120.0


class Child:
    """A Python child with its output at the end of a file."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as output:
            self._log_start = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C at a terminal is for its parent, who ends it in good order
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        """The end of its output; what the file held before is not its."""
        written = self.log.read_bytes()[self._log_start :]
        return "\n".join(written.decode(errors="replace").splitlines()[-lines:])

    def stop(self, limit_s: float = 15.0) -> int:
        """Ask it to end, then end it. Returns its status."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@dataclass(frozen=True, slots=True)
class UsedRuntime:
    """A runtime that this process uses.

    `use`: None where it goes on without users. `child`: its process, where it was started here.
    """

    contact: Contact
    use: Use | None
    child: Child | None = None

    def is_there(self) -> bool:
        """Whether it still runs."""
        found = _contact(Home(Path(self.contact.token_file).parent))
        return found is not None and found.pid == self.contact.pid

    def is_gone(self, within_s: float) -> bool:
        """Whether it runs no longer by then; one that is killed closes its lines before it lets go of its home."""
        deadline = time.monotonic() + within_s
        while self.is_there():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def loss(self) -> str:
        """What became of one that is there no longer."""
        how = ""
        if self.child is not None and not self.child.running:
            how = f" with status {self.child.process.returncode}, see {self.child.log}"
        return f"the runtime at {self.contact.address} (process {self.contact.pid}) was stopped or killed{how}"

    def leave(self) -> None:
        """Use it no longer. One that was started here ends now if nobody else uses it, else with its last user."""
        if self.use is None:
            return
        if self.child is not None and self.use.alone():
            self.child.stop()
        self.use.close()


def use_runtime(contact: Contact) -> UsedRuntime:
    """A runtime that is known to run."""
    if not contact.while_used:
        return UsedRuntime(contact, None)
    use = Use(Home(Path(contact.token_file).parent))
    try:
        use.begin(START_LIMIT_S)
    except BaseException:
        use.close()
        raise
    return UsedRuntime(contact, use)


def find_or_start_runtime(home: Home, *arguments: str) -> UsedRuntime:
    """The runtime of a home; started where none runs, for as long as anybody uses it.

    Raises Unavailable with the end of its log where it does not come up, Conflict where a run without services holds
    the home.
    """
    use = Use(home)
    child: Child | None = None
    deadline = time.monotonic() + START_LIMIT_S
    try:
        use.begin(START_LIMIT_S)
        while time.monotonic() < deadline:
            if (contact := _contact(home)) is not None:
                if child is not None and child.process.pid != contact.pid:
                    child.stop()  # another one was first
                    child = None
                return UsedRuntime(contact, use, child)
            if not _is_coming(home, child):
                child = _start(home, *arguments)
            time.sleep(0.05)
        raise Unavailable(_overdue(home))
    except BaseException:
        if child is not None:
            child.stop()
        use.close()
        raise


def _contact(home: Home) -> Contact | None:
    try:
        return home.contact()
    except NotFound:
        return None


def _is_coming(home: Home, child: Child | None) -> bool:
    """Whether a runtime is on its way, started here or by another process. Raises as `find_or_start_runtime` does."""
    if (child is None or not child.running) and (holder := home.holder()) is not None:
        if not holder.serves:
            raise Conflict(
                f"a run without services has {home.root} to itself (process {holder.pid}); wait for its end, or choose "
                "another folder with --home"
            )
        return True
    if child is not None and not child.running:
        raise Unavailable(f"the runtime did not start; the end of {child.log}:\n{child.tail()}")
    return child is not None


def _start(home: Home, *arguments: str) -> Child:
    command = ["-m", "esper", "up", "--home", str(home.root), "--while-used", *arguments]
    return Child(command, home.folder("logs") / "runtime.log")


def _overdue(home: Home) -> str:
    holder = home.holder()
    of = f" of process {holder.pid}" if holder else ""
    return (
        f"the runtime{of} in {home.root} was not ready within {START_LIMIT_S:g} s; see {home.root / 'logs'}, stop it, "
        "or choose another folder with --home"
    )


def start_trainer(spec_file: Path) -> Child:
    """Train a spec in a process of its own. It dies with the thread that starts it: call this from the main one."""
    return Child(["-m", "esper.runtime.trainer", str(spec_file)], spec_file.parent / "trainer.log")
