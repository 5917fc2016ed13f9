"""A runtime's home: one folder with its keys, token, databases and logs, held by one runtime at a time."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from esper.errors import Conflict, NotFound, Unavailable

DEFAULT = Path(".esper")


@dataclass(frozen=True, slots=True)
class Contact:
    """How to reach a running runtime; written as `runtime.json` when it is ready."""

    address: str
    token_file: str
    pid: int
    broker: str
    version: str

    def token(self) -> str:
        """The bearer token. Raises Unavailable where the file is gone."""
        try:
            return Path(self.token_file).read_text().strip()
        except OSError as error:
            raise Unavailable(f"token file {self.token_file} cannot be read ({error}); restart the runtime") from error


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

    def folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def make_token(self) -> str:
        """The token of this home, made at the first call; the file is the owner's alone."""
        if not self.token_file.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
        return self.token_file.read_text().strip()

    @contextmanager
    def held(self, part: str = "runtime") -> Iterator[None]:
        """Hold the home, or one component's part of it, for this process. Raises Conflict while another one does."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f"{part}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Conflict(
                    f"another process runs the {part} of {self.root}; stop it, connect to it, or choose another folder "
                    "with --home"
                ) from error
            yield

    def publish(self, contact: Contact) -> None:
        """Say where this runtime is."""
        partial = self.contact_file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(contact)))
        partial.replace(self.contact_file)

    def withdraw(self) -> None:
        """The runtime is going."""
        self.contact_file.unlink(missing_ok=True)

    def contact(self) -> Contact:
        """The runtime that holds this home. Raises NotFound where none runs."""
        try:
            contact = Contact(**json.loads(self.contact_file.read_text()))
            os.kill(contact.pid, 0)
        except (OSError, ValueError, TypeError) as error:
            raise NotFound(f"no runtime runs in {self.root}; start one with `esper up --home {self.root}`") from error
        return contact
