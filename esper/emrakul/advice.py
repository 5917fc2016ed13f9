"""From packet to advice: read, look up earlier findings, decide, write, remember."""

from collections.abc import Callable
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.emrakul.v1 import sculptor_pb2 as pb
from esper.api.kasmina.v1 import control_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.emrakul.codec import is_busy, read_fossils, read_probes, write_finding, write_probe, write_removal
from esper.emrakul.sculptor import judge, probe_now
from esper.records import RecordLog


class Sculptor:
    """Advises runs at their decision points. Keeps its findings."""

    def __init__(self, findings: RecordLog[pb.ProbeFinding], now: Callable[[], Timestamp]) -> None:
        self.findings = findings
        self.now = now
        self._last_probe: dict[str, int] = {}

    async def advise(self, packet: state_pb2.SystemStatePacket) -> pb.AdviseResponse:
        """Probes that are due, and removals that the probes call for."""
        run_id, step = packet.run_id, packet.step
        judged = [judge(probed, self._strikes(run_id)) for probed in read_probes(packet.results)]
        commands = [write_removal(finding, run_id, step) for finding in judged if finding.remove]
        findings = [write_finding(finding, run_id, step, self.now()) for finding in judged]
        for finding in findings:
            self.findings.append(finding)
        commands += self._probe(packet)
        return pb.AdviseResponse(commands=commands, findings=findings)

    def _probe(self, packet: state_pb2.SystemStatePacket) -> list[control_pb2.ControlCommand]:
        last = self._last_probe.get(packet.run_id, self._last_found(packet.run_id))
        every = packet.settings.probe_every_steps
        busy = is_busy(packet) or packet.paused or packet.final
        fossils, reason = probe_now(read_fossils(packet), packet.step, last, every, busy)
        if not fossils:
            return []
        self._last_probe[packet.run_id] = packet.step
        return [write_probe(fossils, packet.run_id, packet.step, reason)]

    def _strikes(self, run_id: str) -> dict[str, int]:
        """Per fossil, how many of its latest findings in a row saw no use."""
        strikes: dict[str, int] = {}
        for finding in self.findings.all({"run_id": run_id}):
            key = f"{finding.seed.site}/{finding.seed.slot}"
            useless = finding.measurement.mean >= finding.measurement.control_mean
            strikes[key] = strikes.get(key, 0) + 1 if useless and not finding.remove else 0
        return strikes

    def _last_found(self, run_id: str) -> int:
        rows = self.findings.list({"run_id": run_id}, limit=1, newest_first=True)
        return rows[0][1].step if rows else 0


def finding_log(path: Path) -> RecordLog[pb.ProbeFinding]:
    """Findings by run."""
    return RecordLog(
        path,
        pb.ProbeFinding,
        key=lambda f: f"{f.seed.run_id}/{f.probe_id}/{f.seed.site}/{f.seed.slot}",
        columns={"run_id": lambda f: f.seed.run_id},
    )
