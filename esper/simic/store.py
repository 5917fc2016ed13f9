"""The replay store: every seed's end, kept once, for policies to learn from."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.common.v1 import seed_pb2
from esper.api.simic.v1 import replay_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.errors import InvalidRequest
from esper.records import RecordLog, Value
from esper.simic.summaries import Summaries

# How a seed's life can end; a filter for any other state would find nothing, for ever.
ENDS = (
    seed_pb2.SEED_STATE_FOSSILIZED,
    seed_pb2.SEED_STATE_CULLED,
    seed_pb2.SEED_STATE_CANCELLED,
    seed_pb2.SEED_STATE_ROLLED_BACK,
)

_MAX_SUMS = 64


class ReplayStore:
    """Experiences in the order they came. The same report is stored once. Used from one thread."""

    def __init__(self, path: Path, now: Callable[[], Timestamp]) -> None:
        """`path`: the SQLite file. `now`: the time an experience is stored at."""
        self._log = _experience_log(path)
        self._now = now
        # Sums per filter, and the position they reach: controllers ask for the same few again and again.
        self._sums: OrderedDict[tuple[bytes, bool], tuple[int, Summaries]] = OrderedDict()

    def add(self, report: controller_pb2.FieldReport) -> tuple[int, bool]:
        """Store one report. Returns its position, and whether it was there before. Raises Exhausted on a full disk."""
        return self._log.append(pb.Experience(report=report, store_time=self._now()))

    def newest(self, wanted: pb.Filter, *, before: int = 0, limit: int = 100) -> list[pb.Experience]:
        """Up to `limit` experiences that fit, newest first; `before`: only those below this position."""
        rows = self._log.list(columns_of(wanted), before=before, limit=limit, newest_first=True)
        return [_placed(position, experience) for position, experience in rows]

    def all(self, wanted: pb.Filter) -> Iterator[pb.Experience]:
        """Every experience that fits, oldest first, read in pages."""
        return (_placed(position, found) for position, found in self._log.after(0, columns_of(wanted)))

    def summaries(self, wanted: pb.Filter, by_kernel: bool = False) -> list[pb.Summary]:
        """Those that fit, added up by task, layer kind, family and title, `by_kernel` of each kernel apart."""
        key = wanted.SerializeToString(deterministic=True), by_kernel
        reached, sums = self._sums.pop(key, (0, Summaries(by_kernel)))
        for position, experience in self._log.after(reached, columns_of(wanted)):
            sums.add(experience.report)
            reached = position
        self._sums[key] = (reached, sums)
        if len(self._sums) > _MAX_SUMS:
            self._sums.popitem(last=False)
        return sums.write()

    @property
    def last_position(self) -> int:
        """Position of the newest experience; 0 for an empty store."""
        return self._log.last_position

    def close(self) -> None:
        self._log.close()


def columns_of(wanted: pb.Filter) -> dict[str, Value]:
    """The columns a filter names, and their values. Raises InvalidRequest for an outcome that is no end."""
    if wanted.outcome and wanted.outcome not in ENDS:
        ends = ", ".join(seed_pb2.SeedState.Name(end) for end in ENDS)
        name = seed_pb2.SeedState.Name(wanted.outcome)
        raise InvalidRequest(
            f"filter.outcome is {name}, which is no end of a seed's life; the ends are {ends}",
            {"filter.outcome": f"must be one of {ends}"},
        )
    asked: dict[str, Value] = {
        "task_name": wanted.task_name,
        "run_id": wanted.run_id,
        "outcome": wanted.outcome,
        "family": wanted.family,
        "judged": int(wanted.only_judged),
    }
    return {name: value for name, value in asked.items() if value}


def _experience_log(path: Path) -> RecordLog[pb.Experience]:
    return RecordLog(
        path,
        pb.Experience,
        key=lambda experience: experience.report.report_id,
        columns={
            "task_name": lambda experience: experience.report.task_name,
            "run_id": lambda experience: experience.report.seed.run_id,
            "outcome": lambda experience: experience.report.outcome,
            "family": lambda experience: experience.report.family,
            "judged": lambda experience: int(experience.report.HasField("gain")),
        },
    )


def _placed(position: int, experience: pb.Experience) -> pb.Experience:
    experience.position = position
    return experience
