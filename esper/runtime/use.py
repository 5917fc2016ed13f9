"""Who uses a runtime: one that a run started ends when the last process that uses it has ended.

Each keeps a shared lock on a file of the home, which the kernel takes back from a process that is killed. Whoever gets
the lock for itself alone may end the runtime: nobody uses it, and who comes meanwhile waits until it is gone.
"""

import fcntl
import time

from esper.errors import InvalidConfig, Unavailable
from esper.runtime.home import Home, take_lock

PART = "users"


class Use:
    """One process's use of the runtime of a home."""

    def __init__(self, home: Home) -> None:
        """Raises InvalidConfig where the home cannot be written."""
        self.home = home
        path = home.folder() / home.lock_file(PART).name
        try:
            self._lock = path.open("a")
        except OSError as error:
            raise InvalidConfig(f"{path} cannot be opened ({error.strerror}); choose another --home") from error

    def begin(self, limit_s: float) -> None:
        """From now on the runtime stays. Raises Unavailable where one that is ending has not gone after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while not take_lock(self._lock, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                holder = self.home.holder()
                raise Unavailable(
                    f"the runtime of {self.home.root} has been ending for {limit_s:g} s; "
                    f"{f'end it with: kill -9 {holder.pid}' if holder else 'try again'}, or choose another --home"
                )
            time.sleep(0.05)

    def alone(self) -> bool:
        """Whether nobody else uses the runtime; then nobody can until `close`. If others do, this use has ended."""
        return take_lock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        self._lock.close()
