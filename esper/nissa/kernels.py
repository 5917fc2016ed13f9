"""What is known of kernels, by artifact id: title, family, blueprint, size. They never change, and belong to no run."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from esper.api.kasmina.v1 import telemetry_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.records import RecordLog


class KnownKernels(Mapping[str, telemetry_pb2.SeedStatus]):
    """Filled from the seeds that decision points show; kept over restarts. Used from one thread."""

    def __init__(self, path: Path) -> None:
        self._log = RecordLog(path, telemetry_pb2.SeedStatus, lambda status: status.artifact_id)
        self._known = {status.artifact_id: status for status in self._log.all()}

    def learn(self, packet: state_pb2.SystemStatePacket) -> None:
        """Remember what a decision point tells of kernels not met before. Raises Exhausted on a full disk."""
        for seed in packet.seeds:
            if seed.artifact_id and seed.blueprint_id and seed.artifact_id not in self._known:
                facts = telemetry_pb2.SeedStatus(
                    artifact_id=seed.artifact_id,
                    blueprint_id=seed.blueprint_id,
                    title=seed.title,
                    family=seed.family,
                    parameter_count=seed.parameter_count,
                )
                self._log.append(facts)
                self._known[seed.artifact_id] = facts

    def __getitem__(self, artifact_id: str) -> telemetry_pb2.SeedStatus:
        return self._known[artifact_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        self._log.close()
