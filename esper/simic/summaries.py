"""Add experiences up, one at a time: counts, means and variances per task, layer kind, family and title, and per kernel
where that is asked for. Pure.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from esper.api.common.v1 import seed_pb2
from esper.api.simic.v1 import replay_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2


@dataclass(slots=True)
class Moments:
    """Mean and variance of numbers that are not kept (Welford 1962, doi:10.1080/00401706.1962.10490022)."""

    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0  # sum of squared differences from the mean

    def add(self, value: float) -> None:
        self.count += 1
        before = value - self.mean
        self.mean += before / self.count
        self._squares += before * (value - self.mean)

    @property
    def variance(self) -> float:
        """Unbiased; 0 for fewer than two numbers."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0


@dataclass(slots=True)
class _Sums:
    count: int = 0
    fossilised: int = 0
    gain: Moments = field(default_factory=Moments)
    isolated: Moments = field(default_factory=Moments)


class Summaries:
    """Sums per (task, layer kind, family, title), `by_kernel` of each kernel apart; add to them as experiences come."""

    def __init__(self, by_kernel: bool = False) -> None:
        self._by_kernel = by_kernel
        self._sums: dict[tuple[str, str, str, str, str], _Sums] = {}

    def add(self, report: controller_pb2.FieldReport) -> None:
        """A gain that is not a finite number was not measured: it enters neither count nor mean."""
        kernel = report.artifact_id if self._by_kernel else ""
        key = (report.task_name, report.layer_kind, report.family, report.title, kernel)
        _add(self._sums.setdefault(key, _Sums()), report)

    def write(self) -> list[pb.Summary]:
        """The sums so far, by task, layer kind, family, title and kernel."""
        return [_write(key, self._sums[key]) for key in sorted(self._sums)]


def summarise(reports: Iterable[controller_pb2.FieldReport]) -> list[pb.Summary]:
    """`reports` added up."""
    summaries = Summaries()
    for report in reports:
        summaries.add(report)
    return summaries.write()


def _add(sums: _Sums, report: controller_pb2.FieldReport) -> None:
    sums.count += 1
    sums.fossilised += report.outcome == seed_pb2.SEED_STATE_FOSSILIZED
    if report.HasField("gain") and math.isfinite(report.gain):
        sums.gain.add(report.gain)
    if report.HasField("isolated_gain") and math.isfinite(report.isolated_gain):
        sums.isolated.add(report.isolated_gain)


def _write(key: tuple[str, str, str, str, str], sums: _Sums) -> pb.Summary:
    task_name, layer_kind, family, title, artifact_id = key
    return pb.Summary(
        task_name=task_name,
        layer_kind=layer_kind,
        family=family,
        title=title,
        count=sums.count,
        fossilised=sums.fossilised,
        judged=sums.gain.count,
        mean_gain=sums.gain.mean,
        gain_variance=sums.gain.variance,
        tried=sums.isolated.count,
        mean_isolated_gain=sums.isolated.mean,
        isolated_gain_variance=sums.isolated.variance,
        artifact_id=artifact_id,
    )
