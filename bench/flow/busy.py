"""Make a foreign process as busy during a control as the services are during what it is compared with."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import psutil

from bench.row import ROOT

LOWEST_PRIORITY = 19
GAIN = 0.5  # how much of a difference is made good at a time


class ForeignLoad:
    """One process of lowest priority per core but one, each busy for a share of the time. A context manager.

    Its shares follow the rule: after each block of either kind, say what else the machine did, and
    they move until both kinds see the same.
    """

    def __init__(self) -> None:
        self.cores = 0.0  # how many it keeps busy while it runs
        self.most_cores = max(1, (psutil.cpu_count() or 1) - 1)
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        for _ in range(self.most_cores):
            arguments = [sys.executable, "-m", "bench.flow.burner"]
            pipe = subprocess.PIPE
            process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
            psutil.Process(process.pid).nice(LOWEST_PRIORITY)
            self._processes.append(process)
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Busy as long as this lasts."""
        self._tell(self.cores / self.most_cores)
        try:
            yield
        finally:
            self._tell(0.0)

    def follow(self, services_cores: float, control_cores: float) -> None:
        """Other work seen beside the services' blocks, and beside the control's."""
        self.cores = min(float(self.most_cores), max(0.0, self.cores + GAIN * (services_cores - control_cores)))

    def _tell(self, share: float) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{share:.3f}\n")
            process.stdin.flush()


class Elsewhere:
    """How many cores did something else than this process, between `start` and `cores`."""

    def start(self) -> None:
        self._began = self._look()

    def cores(self) -> float:
        wall, busy, own = (now - then for now, then in zip(self._look(), self._began, strict=True))
        return max(0.0, (busy - own) / wall) if wall else 0.0

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Seconds per core, busy seconds of all cores, seconds of this process."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        counted = (times.user, times.system, getattr(times, "irq", 0.0), getattr(times, "softirq", 0.0))
        idle = times.idle + getattr(times, "iowait", 0.0)
        # `user` holds what runs at a lower priority on some systems and `nice` on others: psutil keeps them apart
        busy = sum(counted) + getattr(times, "nice", 0.0)
        return (busy + idle) / (psutil.cpu_count() or 1), busy, own.user + own.system
