"""Esper's own processes for tests: started in a folder, looked at, killed by pid, never left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from esper.errors import NotFound
from esper.runtime.home import Contact, Home

START_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


def until(condition: Callable[[], object], limit_s: float = 60.0, what: str = "") -> None:
    """Return when `condition()` holds; fail after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what or condition}"
        time.sleep(0.02)


class Esper:
    """`python -m esper ...` as a child in `folder`, its output in a file."""

    def __init__(self, folder: Path, *arguments: str, module: str = "esper") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.output = folder / f"{arguments[0].replace('/', '-')}-{time.monotonic_ns()}.out"
        environment = dict(os.environ)
        environment["PYTHONPATH"] = str(ROOT)
        environment["PYTHONUNBUFFERED"] = "1"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self.pid = self.process.pid

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def family(self) -> list[psutil.Process]:
        """Everything below this process, however deep."""
        return psutil.Process(self.pid).children(recursive=True)

    def kill(self) -> None:
        """What a power cut or the kernel's memory killer does."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, limit_s: float = 60.0) -> int:
        return self.process.wait(limit_s)

    def stop(self) -> int:
        """End it as a supervisor would; the status it ended with."""
        if self.running:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Runtime(Esper):
    """`esper up` on a home below `folder`, ready to be called."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.home = Home(folder / "home")
        super().__init__(folder, "up", "--home", str(self.home.root), *arguments)
        try:
            until(self._ready, START_S, f"a runtime:\n{self.text}")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def contact(self) -> Contact:
        return self.home.contact()

    def part(self, *words: str) -> psutil.Process:
        """The process below this one whose command line holds all `words`; of several, the oldest."""
        found: list[psutil.Process] = []

        def there() -> list[psutil.Process]:
            found[:] = [p for p in self.family() if all(word in " ".join(_command(p)) for word in words)]
            return found

        until(there, 20, f"no process with {words} below {self.pid}")
        return min(found, key=lambda p: p.pid)

    def _ready(self) -> bool:
        assert self.running, f"it ended with {self.process.returncode}:\n{self.text}"
        try:
            return self.home.contact().pid == self.pid
        except NotFound:
            return False


def gone(processes: list[psutil.Process], limit_s: float = 10.0) -> list[psutil.Process]:
    """Those that are still alive after at most `limit_s`; a zombie is not."""
    until_s = time.monotonic() + limit_s
    while (alive := [p for p in processes if _alive(p)]) and time.monotonic() < until_s:
        time.sleep(0.05)
    return alive


def esper(*arguments: str, folder: Path, limit_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "esper", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=limit_s,
        env=environment,
        check=False,
    )


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
