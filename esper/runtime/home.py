"""A runtime's home: one folder with its keys, token, databases and logs, held by one runtime at a time."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from esper.errors import Conflict, InvalidConfig, NotFound, Unavailable

DEFAULT = Path(".esper")
# Components with a database or a cursor in the home, of which one process at a time may write.
KEEPERS = ("urza", "simic", "emrakul", "tamiyo", "nissa")
# How long a free lock may look taken, because somebody asks at that moment whether it is.
ASKED_S = 0.25


@dataclass(frozen=True, slots=True)
class Contact:
    """How to reach a running runtime; written as `runtime.json` when it is ready.

    `while_used`: it ends with its last user (esper/runtime/use.py).
    """

    address: str
    token_file: str
    pid: int
    broker: str
    version: str
    while_used: bool = False

    def token(self) -> str:
        """The bearer token. Raises Unavailable where the file is gone."""
        try:
            return Path(self.token_file).read_text().strip()
        except OSError as error:
            raise Unavailable(f"token file {self.token_file} cannot be read ({error}); restart the runtime") from error


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a home, or a part of it. `pid`: 0 where it has not said so yet. `serves`: others can, or soon can,
    connect to it."""

    pid: int
    serves: bool


@dataclass(frozen=True, slots=True)
class Home:
    """Where everything of a runtime lies."""

    root: Path

    @property
    def token_file(self) -> Path:
        return self.root / "token"

    @property
    def contact_file(self) -> Path:
        return self.root / "runtime.json"

    @property
    def trust_file(self) -> Path:
        return self.root / "keys" / "trust.json"

    @property
    def kernels(self) -> Path:
        """Verified kernels, as folders, for trainers and workers of this machine."""
        return self.root / "kernels"

    def key(self, name: str) -> Path:
        return self.root / "keys" / f"{name}.pem"

    def database(self, name: str) -> Path:
        return self.root / "db" / f"{name}.sqlite"

    def lock_file(self, part: str = "runtime") -> Path:
        return self.root / f"{part}.lock"

    def folder(self, name: str = "") -> Path:
        """A folder of the home, made where it is absent. Raises InvalidConfig where it cannot be."""
        path = self.root / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unfit(error) from error
        return path

    def make_token(self) -> str:
        """The token of this home, made at the first call; the file is the owner's alone."""
        if not self.token_file.exists():
            self.folder()
            with os.fdopen(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
        return self.token_file.read_text().strip()

    @contextmanager
    def held(self, *parts: str, serves: bool = True) -> Iterator[None]:
        """Hold the home, or some components' parts of it, for this process.

        Raises Conflict while another one does, InvalidConfig where the home cannot be written.
        """
        with ExitStack() as stack:
            for part in parts or ("runtime",):
                stack.enter_context(self._hold(part, serves))
            yield

    @contextmanager
    def _hold(self, part: str, serves: bool) -> Iterator[None]:
        self.folder()
        try:
            lock = self.lock_file(part).open("a+")
        except OSError as error:
            raise self._unfit(error) from error
        with lock:
            deadline = time.monotonic() + ASKED_S
            while not take_lock(lock, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    pid = _read_holder(lock).pid
                    raise Conflict(
                        f"another process runs the {part} of {self.root}; stop it{f' (kill {pid})' if pid else ''}, "
                        "connect to it, or choose another folder with --home"
                    )
                time.sleep(0.01)
            lock.truncate(0)
            lock.write(f"{os.getpid()} {'serves' if serves else 'trains'}")
            lock.flush()
            yield
            lock.truncate(0)

    def holder(self, part: str = "runtime") -> Holder | None:
        """Who holds the home, or a part of it; None where nobody does, and after a kill or a reboot too."""
        try:
            lock = self.lock_file(part).open()
        except OSError:
            return None  # nobody ever did
        with lock:
            return None if take_lock(lock, fcntl.LOCK_SH) else _read_holder(lock)

    def publish(self, contact: Contact) -> None:
        """Say where this runtime is."""
        partial = self.contact_file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(contact)))
        partial.replace(self.contact_file)

    def withdraw(self) -> None:
        """The runtime is going."""
        self.contact_file.unlink(missing_ok=True)

    def contact(self) -> Contact:
        """The runtime that holds this home. Raises NotFound where none runs.

        A runtime that was killed leaves the file, and its process id may be another process's by now, so the lock
        decides.
        """
        remedy = f"no runtime runs in {self.root}; start one with `esper up --home {self.root}`"
        try:
            contact = Contact(**json.loads(self.contact_file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise NotFound(remedy) from error
        holder = self.holder()
        if holder is None or holder.pid not in (0, contact.pid):
            raise NotFound(remedy)
        return contact

    def _unfit(self, error: OSError) -> InvalidConfig:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        why = "a file is in the way" if in_the_way else f"{error.filename}: {error.strerror}"
        return InvalidConfig(
            f"{self.root} cannot be the folder of a runtime: {why}; choose a folder that is yours to write with --home"
        )


def take_lock(file: TextIO, kind: int) -> bool:
    """Take an advisory lock, fcntl.LOCK_SH or LOCK_EX, of an open file, at once or not at all.

    It is this file object's: gone when it is closed, and when the process ends in any way.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(lock: TextIO) -> Holder:
    lock.seek(0)
    pid, _, use = lock.read().partition(" ")
    return Holder(int(pid) if pid.isdecimal() else 0, use != "trains")
