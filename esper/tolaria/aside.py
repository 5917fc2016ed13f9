"""What a checkpoint keeps besides the run as it is: states to go back to, and fossils that may be put back.

Their tensors are files in the spool, each written once, by the first checkpoint after it came up. At most half of
the spool is for them; what has no room is left out, and a note says what a resumed run will do without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.message import Message

from esper.api.common.v1 import seed_pb2, training_pb2
from esper.api.kasmina.v1 import telemetry_pb2
from esper.errors import Corrupt, NotFound, Unavailable
from esper.host.graft import Graft
from esper.kasmina.codec import read_graft, read_seed, write_graft, write_seed
from esper.kasmina.lifecycle import SeedId
from esper.kasmina.regrow import born
from esper.tolaria.governor import LossWindow
from esper.tolaria.rollback import Point
from esper.tolaria.snapshot import Snapshot

if TYPE_CHECKING:
    from esper.tolaria.session import Session


class Aside:
    """The files of one session's rollback points and removed fossils."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._files: list[tuple[Point | Graft, Path]] = []

    def save(self, snapshot: Snapshot, reference: training_pb2.SnapshotReference) -> None:
        """At a checkpoint, whose own tensors are `snapshot` in `reference`: write what is new, release what is gone."""
        run, points = self._session.run, self._session.points
        removed = [graft for graft, _ in run.executor.removed.values()]
        alive = {id(owner) for owner in (*points.latest, *removed)}
        for _, path in [entry for entry in self._files if id(entry[0]) not in alive]:
            run.spool.release(path)
        self._files = [entry for entry in self._files if id(entry[0]) in alive]
        for point in points.latest:
            if self._path(point) is not None:
                continue
            if point.snapshot is snapshot:
                self._files.append((point, run.spool.hold(Path(reference.path))))
            else:
                self._write(point, point.snapshot, "point")
        for graft in removed:
            if self._path(graft) is None:
                tensors = {name: tensor.detach().clone() for name, tensor in graft.state_dict().items()}
                self._write(graft, Snapshot(run.step, tensors, {}), "removed")

    def write(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        session, run = self._session, self._session.run
        points = [(point, self._path(point)) for point in session.points.latest]
        removed = [(record, self._path(graft)) for graft, record in run.executor.removed.values()]
        return {
            "point_step": session.points.taken_step,
            "points": [self._point(point) | {"path": str(path)} for point, path in points if path],
            "before": [
                self._point(point) | {"seed": [seed.site, seed.slot]}
                for seed, point in session.points.before.items()
                if seed in session.adaptations.grafts  # the file is the one that the graft's twin began with
            ],
            "removed": [
                {"record": _json(write_seed(record, run.run_id)), "path": str(path)} for record, path in removed if path
            ],
        }

    def restore(self, values: Mapping[str, Any]) -> list[Path]:
        """Put back what `write` wrote, after grafts and adaptations; the files that are held for it."""
        session, run = self._session, self._session.run
        self._files = []
        for kept in values["points"]:
            path = Path(kept["path"])
            snapshot = self._read(path, "the run cannot go back to it")
            if snapshot is not None:
                self._files.append((_read_point(snapshot, kept), path))
        points = [owner for owner, _ in self._files if isinstance(owner, Point)]
        session.points.resume(run, session.governor.window, points, values["point_step"])
        for before in values["before"]:
            seed = SeedId(*before["seed"])
            path = Path(session.adaptations.grafts[seed].before.path)
            snapshot = self._read(path, f"the run cannot go back to before {seed} was inserted")
            if snapshot is not None:
                session.points.before[seed] = _read_point(snapshot, before)
        for removed in values["removed"]:
            self._restore_removed(removed)
        return [path for _, path in self._files]

    def _restore_removed(self, values: Mapping[str, Any]) -> None:
        executor = self._session.run.executor
        record, path = read_seed(json_format.ParseDict(values["record"], telemetry_pb2.SeedStatus())), values["path"]
        without = f"fossil {record.id}, which was removed, cannot be put back"
        snapshot = self._read(Path(path), without)
        if snapshot is None:
            return
        interface = executor.offered(record.id, record.span)
        try:
            kernel = self._session.arrivals.load_now(record.id, record.artifact_id, interface).kernel
        except Unavailable as error:
            self._session.run.post_note("warning", f"{error}; {without}")
            return
        assert kernel is not None
        alpha = executor.table.alpha_view(executor.table[record.id])
        site = executor.sites[record.id.site]
        graft = born(kernel, 0, site, executor.model, alpha, record.strategy, record.span)
        graft.load_state_dict(snapshot.tensors)
        graft.settle()
        graft.requires_grad_(not record.frozen)
        executor.removed[record.id] = (graft, record)
        self._files.append((graft, Path(path)))

    def _point(self, point: Point) -> dict[str, Any]:
        run_id, grafted = self._session.run.run_id, {spec.seed for spec in point.specs}
        return {
            "grafts": [_json(write_graft(spec, run_id)) for spec in point.specs],
            "seeds": [_json(write_seed(seed, run_id)) for seed in point.seeds if seed.id in grafted],
            "window": asdict(point.window),
            "uses": point.uses,
            "certified": point.certified,
        }

    def _path(self, owner: Point | Graft) -> Path | None:
        return next((path for other, path in self._files if other is owner), None)

    def _write(self, owner: Point | Graft, snapshot: Snapshot, name: str) -> None:
        """Have a file written, where there is room for it."""
        run = self._session.run
        if run.spool.used_bytes + snapshot.size_bytes > run.spool.max_bytes // 2:
            run.post_note(
                "warning",
                f"the snapshot spool has no room for the {name} of step {snapshot.step}; "
                "a run that is resumed will do without it",
            )
            return
        self._files.append((owner, Path(run.write(snapshot, name).path)))

    def _read(self, path: Path, without: str) -> Snapshot | None:
        try:
            return self._session.run.read_snapshot(path)
        except (NotFound, Corrupt) as error:
            self._session.run.post_note("warning", f"{error}; {without}")
            return None


def _read_point(snapshot: Snapshot, values: Mapping[str, Any]) -> Point:
    return Point(
        snapshot=snapshot,
        specs=[read_graft(json_format.ParseDict(graft, seed_pb2.Graft())) for graft in values["grafts"]],
        seeds=[read_seed(json_format.ParseDict(seed, telemetry_pb2.SeedStatus())) for seed in values["seeds"]],
        window=LossWindow(**values["window"]),
        uses=values["uses"],
        certified=values["certified"],
    )


def _json(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message)
