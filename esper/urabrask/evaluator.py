"""The evaluator: has new kernels run through the gauntlet in isolation, keeps the report, and promotes or rejects.

A kernel is promoted by a signature over its id, made here and nowhere else, and only if
isolation was in force and every check passed. Nothing is kept here that a restart would
lose: a kernel without a verdict is found again in the library (backlog.py).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType

from esper.api.common.v1 import resource_pb2
from esper.api.common.v1.artifact_pb2 import Attestation
from esper.api.tezzeret.v1 import forge_pb2
from esper.api.urabrask.v1 import evaluation_pb2 as pb
from esper.api.urza.v1 import library_pb2
from esper.artifact.attest import BUILT, PROMOTED, attest
from esper.artifact.body import Body
from esper.artifact.bundle import Artifact, to_bytes, verify
from esper.artifact.keys import SigningKey, TrustRoots
from esper.errors import (
    Corrupt,
    DeadlineExceeded,
    Exhausted,
    InvalidRequest,
    PreconditionFailed,
    Unavailable,
    Untrusted,
)
from esper.urabrask import codec, outcome
from esper.urabrask.backlog import Backlog
from esper.urabrask.codec import EvaluationOrder
from esper.urabrask.jail import UNSAFE, Isolation, Limits
from esper.urabrask.job import ISOLATION_KIND, KIND, USEFULNESS_KIND
from esper.urabrask.judge import Checked, Verdict, judge
from esper.urabrask.port import Library, Pool, Publish, Reports
from esper.urabrask.report import give_words, report_id, write_report
from esper.urabrask.second_pass import SecondPass
from esper.urabrask.stages import GATES, SIGNATURE
from esper.urabrask.usefulness import Usefulness

log = logging.getLogger(__name__)

_PENDING, _VALIDATED = library_pb2.KERNEL_STATUS_PENDING_BENCHMARKING, library_pb2.KERNEL_STATUS_VALIDATED
_MEASURED_HERE = (resource_pb2.TARGET_UNSPECIFIED, resource_pb2.TARGET_CPU)
# How long a worker has beyond what it gives its child.
_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class EvaluatorOptions:
    """`timeout_s`: wall time of one candidate. `attempts`: how many workers are tried where one dies.

    `jailed` False: candidates run without isolation, and nothing is promoted or rejected.
    `second_pass_after_s`: how often an idle evaluator looks for promoted kernels to try further; None: never.
    """

    workers: int = 1
    max_queued: int = 1024
    timeout_s: float = 120.0
    attempts: int = 2
    runs: int = 50
    limits: Limits = Limits()  # noqa: RUF009  frozen
    jailed: bool = True
    second_pass_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A report as it is put into the library."""

    name: str
    artifact_id: str
    body: bytes


class Evaluator:
    """One evaluation engine; use inside `async with`, which fails with Unavailable where isolation cannot be had.

    `roots` says whose kernels are looked at; `publish` is told of every verdict; `clock` dates reports.
    """

    def __init__(
        self,
        library: Library,
        reports: Reports,
        pool: Pool,
        key: SigningKey,
        roots: TrustRoots,
        publish: Publish,
        clock: Callable[[], datetime],
        options: EvaluatorOptions = EvaluatorOptions(),  # noqa: B008  frozen
    ) -> None:
        self.options = options
        self.public_key = key.public_key
        self.isolation = Isolation("")
        self.promoted = 0
        self.rejected = 0
        self.busy = 0
        self.reports = reports
        self._library = library
        self._pool = pool
        self._key = key
        self._roots = roots
        self._publish = publish
        self._clock = clock
        self._places = asyncio.Semaphore(options.workers)
        self._open: dict[str, asyncio.Task[pb.Report]] = {}
        self.second_pass = SecondPass(
            reports, self._kernel, self._probe_usefulness, self._promote_again, lambda: not self._open
        )
        self.backlog = Backlog(library, self.evaluate, _MEASURED_HERE, clock, lambda: not self._open)
        self._idle_work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Evaluator":
        if not self.options.jailed:
            log.warning("%s; nothing is promoted", self.unpromotable)
            return self
        self.isolation = codec.read_isolation(await self._pool.run(ISOLATION_KIND, b"", _GRACE_S * 2))
        if self.options.second_pass_after_s is not None:
            work = self.second_pass.run(self.options.second_pass_after_s)
            self._idle_work = asyncio.create_task(work, name="urabrask/second-pass")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self._open.values(), *([self._idle_work] if self._idle_work else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def unpromotable(self) -> str:
        """Why nothing found here promotes or rejects a kernel; empty: it does."""
        return "" if self.options.jailed else f"{UNSAFE}: this evaluator runs candidates without isolation"

    @property
    def queued(self) -> int:
        """Kernels nobody works on yet."""
        return max(0, len(self._open) - self.busy)

    async def kernel_ready(self, message: forge_pb2.KernelReady) -> pb.Report | None:
        """Evaluate what the forge made. None: the message is of a failed compilation, or the kernel is out of use.

        None as well for a kernel that is for a device: it stays as it is. One that has a verdict is not evaluated
        again; what followed from the verdict is done if it was not.
        """
        if not message.artifact_id:
            return None
        kernel = await self._kernel(message.artifact_id)
        if kernel.target not in _MEASURED_HERE:
            log.info("%s", _needs_device(kernel))
            return None
        if kernel.status == _PENDING:
            return await self.evaluate(message.artifact_id)
        if kernel.report_name and kernel.status in (_VALIDATED, library_pb2.KERNEL_STATUS_REJECTED):
            await self._tell(kernel)
            return await self.report(kernel.report_name)
        return None

    async def evaluate(self, artifact_id: str) -> pb.Report:
        """Evaluate a kernel that awaits it, or, anew, one that is promoted; join an evaluation that is at work.

        Raises as `admit`, Corrupt and Untrusted (the kernel is quarantined then), and Unavailable.
        """
        await self.admit(artifact_id)
        if artifact_id not in self._open:
            task = asyncio.create_task(self._evaluate(artifact_id))
            self._open[artifact_id] = task
            task.add_done_callback(lambda _: self._open.pop(artifact_id, None))
        return await asyncio.shield(self._open[artifact_id])

    async def admit(self, artifact_id: str) -> None:
        """Raises NotFound, PreconditionFailed (no isolation, a kernel out of use or for a device) and Exhausted."""
        if self.options.jailed and not self.isolation.in_force:
            raise PreconditionFailed(
                "no isolation was proved here, so nothing can be promoted; start the evaluator first"
            )
        kernel = await self._kernel(artifact_id)
        if kernel.status not in (_PENDING, _VALIDATED):
            word = library_pb2.KernelStatus.Name(kernel.status).removeprefix("KERNEL_STATUS_")
            raise PreconditionFailed(
                f"kernels/{artifact_id} is {word}; to have it evaluated again: "
                f"esper library move kernels/{artifact_id} PENDING_BENCHMARKING --reason WHY"
            )
        if kernel.target not in _MEASURED_HERE:
            raise PreconditionFailed(_needs_device(kernel))
        if artifact_id not in self._open and self.queued >= self.options.max_queued:
            raise Exhausted(f"{self.queued} kernels wait for evaluation, the limit; send it again later")

    async def report(self, name: str) -> pb.Report:
        """A stored report. Raises NotFound."""
        return pb.Report.FromString((await self.reports.get_report(name)).body)

    async def _evaluate(self, artifact_id: str) -> pb.Report:
        async with self._places:
            self.busy += 1
            try:
                body, artifact = await self._fetch(artifact_id)
                findings = codec.read_findings(await self._run(KIND, artifact))
            finally:
                self.busy -= 1
        signed = Checked(SIGNATURE, True, "built by a forge that is trusted here; every byte is the one it signed")
        findings = replace(findings, checks=(signed, *findings.checks))
        measured = codec.read_measured(findings.figures, body.parameter_count) if findings.figures else None
        verdict = judge(findings.checks, GATES, measured, findings.isolation, self.unpromotable)
        report = write_report(artifact_id, body, findings, verdict)
        if verdict.passed:
            give_words(report, self.second_pass.standing(report))
        self._date(report)
        await self._conclude(report, verdict)
        return report

    def _date(self, report: pb.Report) -> None:
        report.end_time.FromDatetime(self._clock())
        report.report_id = report_id(report)

    async def _fetch(self, artifact_id: str) -> tuple[Body, Artifact]:
        """The kernel, known to be the forge's own bytes; one that is not is quarantined."""
        manifest, files = await self._library.download_kernel(
            library_pb2.DownloadKernelRequest(artifact_id=artifact_id)
        )
        artifact = Artifact(manifest, files)
        try:
            return verify(artifact, self._roots, require=(BUILT,)), artifact
        except (Corrupt, Untrusted, InvalidRequest) as error:
            await outcome.quarantine(self._library, artifact_id, f"evaluation refused it: {error}")
            raise

    async def _run(self, kind: str, artifact: Artifact) -> bytes:
        """A worker's reply; whatever becomes of the candidate is a finding.

        A worker that dies is not: the candidate runs in a child of it. Raises Unavailable and
        DeadlineExceeded after `attempts` of these, and Unavailable where a worker has no isolation.
        """
        options = self.options
        order = EvaluationOrder(to_bytes(artifact), options.limits, options.timeout_s, options.runs, options.jailed)
        payload = codec.write_order(order)
        for number in range(1, options.attempts + 1):
            try:
                return await self._pool.run(kind, payload, options.timeout_s + _GRACE_S)
            except (Unavailable, DeadlineExceeded) as error:
                log.warning("attempt %d of %d at %s failed: %s", number, options.attempts, artifact.artifact_id, error)
                if number == options.attempts:
                    raise
        raise Unavailable(f"attempts is {options.attempts}; at least 1 worker must be tried")

    async def _conclude(self, report: pb.Report, verdict: Verdict) -> None:
        """The report first: a verdict whose reasons cannot be read would be worth nothing."""
        await self._store(report)
        if verdict.unpromotable:
            log.warning("kernels/%s keeps its status: %s", report.artifact_id, verdict.reason)
            return
        attestation = self._attestation(report, report.report_id) if verdict.passed else None
        kernel = await outcome.settle_kernel(self._library, report, verdict.reason, attestation)
        self.promoted += verdict.passed
        self.rejected += not verdict.passed
        self.second_pass.characterized(report)
        await self._tell(kernel)

    async def _promote_again(self, report: pb.Report) -> None:
        """Give a promoted kernel new words, under the signature it has: that of the report that was measured."""
        self._date(report)
        await self._store(report)
        attestation = self._attestation(report, report.follows_report_id)
        reason = f"words of the second pass: {', '.join(report.tags)}"
        kernel = await outcome.settle_kernel(self._library, report, reason, attestation)
        await self._publish(outcome.characterized(kernel))

    async def _probe_usefulness(self, artifact_id: str) -> Usefulness:
        _, artifact = await self._fetch(artifact_id)
        return codec.read_usefulness(await self._run(USEFULNESS_KIND, artifact))

    async def _store(self, report: pb.Report) -> None:
        name = f"reports/{report.report_id}"
        await self.reports.put_report(Stored(name, report.artifact_id, report.SerializeToString(deterministic=True)))

    def _attestation(self, report: pb.Report, measured_in: str) -> Attestation:
        machine = dict(report.machine)
        statement = {"isolation": machine["isolation"], "report_id": measured_in, "torch": machine["torch"]}
        return attest(self._key, PROMOTED, report.artifact_id, statement)

    async def _tell(self, kernel: library_pb2.Kernel) -> None:
        await outcome.settle_blueprint(self._library, kernel)
        await self._publish(outcome.characterized(kernel))

    async def _kernel(self, artifact_id: str) -> library_pb2.Kernel:
        return (await self._library.get_kernel(library_pb2.GetKernelRequest(artifact_id=artifact_id))).kernel


def _needs_device(kernel: library_pb2.Kernel) -> str:
    target = resource_pb2.Target.Name(kernel.target).removeprefix("TARGET_").lower()
    return (
        f"kernels/{kernel.artifact_id} is for {target}, and this evaluator measures on the CPU: it says nothing of it; "
        "for a verdict here order pipeline fast, which makes the CPU's"
    )
