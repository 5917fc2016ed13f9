"""Prometheus metrics: one registry of our own, labels of bounded number.

A run's numbers are kept in `run_metrics` and turned into samples when somebody asks; the
run id is a label for the latest `max_runs` runs only, and an older run's samples are gone.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import start_http_server
from prometheus_client.registry import Collector

from esper.errors import Unavailable
from esper.nissa.run_metrics import RunCounts, Telemetry
from esper.nissa.run_samples import samples

MAX_RUNS = 32
KERNEL_EVENTS = ("ready", "failed", "promoted", "rejected")


class Metrics:
    """All metrics of one Nissa. `observe_call` is a CallObserver for esper.rpc's servers."""

    def __init__(
        self,
        *,
        max_runs: int = MAX_RUNS,
        clock: Callable[[], float] = time.monotonic,
        bus_drops: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`clock`: for the uptime. `bus_drops`: envelopes dropped so far, by who dropped them."""
        self.registry = CollectorRegistry()
        self._max_runs = max_runs
        self._counts: OrderedDict[str, RunCounts] = OrderedDict()
        self._telemetry: dict[str, Telemetry] = {}
        started = clock()
        uptime = Gauge("esper_uptime_seconds", "Time since Nissa started.", registry=self.registry)
        uptime.set_function(lambda: clock() - started)
        self._kernels = self._counter("esper_kernels", "Kernels by what became of them.", "event")
        for event in KERNEL_EVENTS:
            self._kernels.labels(event)
        self._calls = self._counter("esper_rpc_calls", "Finished calls.", "service", "method", "code")
        self._call_s = Histogram(
            "esper_rpc_seconds",
            "Wall time of finished calls.",
            ["service", "method"],
            registry=self.registry,
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30),
        )
        self.skipped = self._counter("esper_nissa_skipped", "Envelopes that break their rules.", "subject")
        self.gaps = self._counter("esper_nissa_gaps", "Times the bus no longer held what comes next.", "subject")
        self.failed_writes = self._counter("esper_nissa_failed_writes", "Times a run's files were not written.", "file")
        self.registry.register(_RunCollector(self._counts, self._telemetry))
        self.registry.register(_Drops(bus_drops))

    def put_run(self, run_id: str, counts: RunCounts) -> None:
        """Show `counts` for a run from now on; the run that was put longest ago may be forgotten for it."""
        self._counts[run_id] = counts
        self._counts.move_to_end(run_id)
        while len(self._counts) > self._max_runs:
            forgotten, _ = self._counts.popitem(last=False)
            self._telemetry.pop(forgotten, None)

    def telemetry(self, run_id: str) -> Telemetry:
        """Where a run's readings go."""
        if run_id not in self._counts:
            self.put_run(run_id, RunCounts())
        return self._telemetry.setdefault(run_id, Telemetry())

    def count_kernel(self, event: str) -> None:
        """One of KERNEL_EVENTS."""
        assert event in KERNEL_EVENTS
        self._kernels.labels(event).inc()

    def observe_call(self, service: str, method: str, code: str, seconds: float) -> None:
        """One finished call. Methods that do not exist are never observed, so that labels are bounded."""
        self._calls.labels(service, method, code).inc()
        self._call_s.labels(service, method).observe(seconds)

    def text(self) -> str:
        """Everything, in Prometheus text format 0.0.4."""
        return generate_latest(self.registry).decode()

    def expose(self, port: int, host: str = "127.0.0.1") -> tuple[int, Callable[[], None]]:
        """Serve the text at http://host:port/metrics from a thread. Returns the port and what ends it.

        Raises Unavailable where the port cannot be bound. It has no authentication: keep it on loopback.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise Unavailable(f"metrics cannot be served at {host}:{port} ({error}); choose another port") from error

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, end

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


class _RunCollector(Collector):
    """Samples of every run that is kept."""

    def __init__(self, counts: Mapping[str, RunCounts], telemetry: Mapping[str, Telemetry]) -> None:
        self._counts = counts
        self._telemetry = telemetry

    def collect(self) -> Iterable[Metric]:
        # Copies: an HTTP server asks from a thread of its own.
        return samples(dict(self._counts), dict(self._telemetry))


class _Drops(Collector):
    def __init__(self, drops: Callable[[], Mapping[str, int]]) -> None:
        self._drops = drops

    def collect(self) -> Iterable[Metric]:
        metric = Metric("esper_bus_dropped", "Envelopes dropped before they reached the bus.", "counter")
        for sender, count in self._drops().items():
            metric.add_sample("esper_bus_dropped_total", {"sender": sender}, count)
        yield metric
