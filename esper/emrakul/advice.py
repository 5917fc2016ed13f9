"""From packet to advice: read, look up earlier findings, decide, write, remember."""

from collections.abc import Callable, Mapping, Set
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from esper.api.emrakul.v1 import sculptor_pb2 as pb
from esper.api.kasmina.v1 import control_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.emrakul.codec import (
    probe_id,
    read_fossils,
    read_paired,
    read_probes,
    what_hinders,
    write_finding,
    write_probe,
    write_removal,
)
from esper.emrakul.sculptor import Finding, Fossil, is_measured, is_useless, judge, one_at_a_time, probe_now
from esper.records import RecordLog


class Sculptor:
    """Advises runs at their decision points. Keeps its findings."""

    def __init__(self, findings: RecordLog[pb.ProbeFinding], now: Callable[[], Timestamp]) -> None:
        self.findings = findings
        self.now = now
        self._last_probe: dict[str, tuple[int, control_pb2.ControlCommand]] = {}  # by run: step and command

    async def advise(self, packet: state_pb2.SystemStatePacket) -> pb.AdviseResponse:
        """Probes that are due, and removals that the probes call for. The same packet again gets the same answer.

        Raises InvalidRequest for a packet that no run writes.
        """
        judged = self._judge(packet)
        commands = [write_removal(finding, packet) for finding in judged if finding.remove]
        findings = [write_finding(finding, packet.run_id, packet.step, self.now()) for finding in judged]
        for finding in findings:
            self.findings.append(finding)
        commands += self._probe(packet, {finding.probed.key for finding in judged if finding.remove})
        return pb.AdviseResponse(commands=commands, findings=findings)

    def _judge(self, packet: state_pb2.SystemStatePacket) -> list[Finding]:
        """What the probes that came back say of fossils that are still there, the last one of each."""
        fossils = {fossil.key: fossil for fossil in read_fossils(packet) if not fossil.folded}
        probes = {probed.key: probed for probed in read_probes(packet.results) if probed.key in fossils}
        strikes = self._strikes(packet, fossils, {probed.probe_id for probed in probes.values()})
        return one_at_a_time([judge(probed, strikes, what_hinders(packet)) for probed in probes.values()])

    def _probe(self, packet: state_pb2.SystemStatePacket, going: Set[str]) -> list[control_pb2.ControlCommand]:
        step, command = self._last_probe.get(packet.run_id, (0, None))
        if command is not None and command.probe.probe_id == probe_id(packet):
            return [command]  # the packet came again
        last = step or self._last_found(packet.run_id)
        if last > packet.step:
            last = 0  # the run has gone back behind it
        every = packet.settings.probe_every_steps
        staying = [fossil for fossil in read_fossils(packet) if fossil.key not in going]
        fossils, reason = probe_now(staying, packet.step, last, every, what_hinders(packet))
        if not fossils:
            return []
        command = write_probe(fossils, packet, reason)
        self._last_probe[packet.run_id] = packet.step, command
        return [command]

    def _strikes(
        self, packet: state_pb2.SystemStatePacket, fossils: Mapping[str, Fossil], judged_now: Set[str]
    ) -> dict[str, int]:
        """Per fossil, how many of its latest findings in a row saw no use.

        Left out: those of probes that are judged now, of what the slot held before, and of
        steps that the run has gone back behind.
        """
        strikes: dict[str, int] = {}
        for finding in self.findings.all({"run_id": packet.run_id}):
            key = f"{finding.seed.site}/{finding.seed.slot}"
            fossil = fossils.get(key)
            if fossil is None or finding.probe_id in judged_now:
                continue
            if fossil.fossil_step <= finding.step <= packet.step and is_measured(read_paired(finding.measurement)):
                strike = is_useless(read_paired(finding.measurement)) and not finding.remove
                strikes[key] = strikes.get(key, 0) + 1 if strike else 0
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
