"""The evaluator: has new kernels run through the gauntlet in isolation, keeps the report, and promotes or rejects.

A kernel is promoted by a signature over its id, made here and nowhere else, and only if
isolation was in force and every check passed. Nothing is kept here that a restart would
lose: a kernel without a verdict is asked for again by whoever asked.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

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
from esper.urabrask.codec import EvaluationOrder, Findings
from esper.urabrask.gauntlet import NAMES
from esper.urabrask.jail import Isolation, Limits
from esper.urabrask.job import ISOLATION_KIND, KIND
from esper.urabrask.judge import Verdict, judge
from esper.urabrask.port import Library, Pool, Publish, Reports

log = logging.getLogger(__name__)

_PENDING, _VALIDATED = library_pb2.KERNEL_STATUS_PENDING_BENCHMARKING, library_pb2.KERNEL_STATUS_VALIDATED
# How long a worker has beyond what it gives its child.
_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class EvaluatorOptions:
    """`timeout_s`: wall time of one candidate. `attempts`: how many workers are tried where one dies."""

    workers: int = 1
    max_queued: int = 1024
    timeout_s: float = 120.0
    attempts: int = 2
    runs: int = 50
    limits: Limits = Limits()  # noqa: RUF009  frozen


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

    async def __aenter__(self) -> "Evaluator":
        self.isolation = codec.read_isolation(await self._pool.run(ISOLATION_KIND, b"", _GRACE_S * 2))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._open.values():
            task.cancel()
        await asyncio.gather(*self._open.values(), return_exceptions=True)

    @property
    def queued(self) -> int:
        """Kernels nobody works on yet."""
        return max(0, len(self._open) - self.busy)

    async def kernel_ready(self, message: forge_pb2.KernelReady) -> pb.Report | None:
        """Evaluate what the forge made. None: the message is of a failed compilation, or the kernel is out of use.

        A kernel that has a verdict is not evaluated again; what followed from the verdict is done if it was not.
        """
        if not message.artifact_id:
            return None
        kernel = await self._kernel(message.artifact_id)
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
        """Raises NotFound, PreconditionFailed (no isolation, or the kernel is out of use) and Exhausted."""
        if not self.isolation.in_force:
            raise PreconditionFailed(
                "no isolation was proved here, so nothing can be promoted; start the evaluator first"
            )
        kernel = await self._kernel(artifact_id)
        if kernel.status not in (_PENDING, _VALIDATED):
            word = library_pb2.KernelStatus.Name(kernel.status).removeprefix("KERNEL_STATUS_")
            raise PreconditionFailed(
                f"kernels/{artifact_id} is {word}; move it to PENDING_BENCHMARKING to have it evaluated again"
            )
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
                findings = await self._run(artifact)
            finally:
                self.busy -= 1
        measured = findings.figures and codec.read_measured(findings.figures, body.parameter_count)
        verdict = judge(findings.checks, NAMES, measured or None, findings.isolation)
        report = codec.write_report(artifact_id, findings, verdict)
        report.end_time.FromDatetime(self._clock())
        report.report_id = codec.report_id(report)
        await self._conclude(report, verdict, findings.isolation)
        return report

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

    async def _run(self, artifact: Artifact) -> Findings:
        """What a worker found; whatever becomes of the candidate is a finding.

        A worker that dies is not: the candidate runs in a child of it. Raises Unavailable and
        DeadlineExceeded after `attempts` of these, and Unavailable where a worker has no isolation.
        """
        options = self.options
        order = EvaluationOrder(to_bytes(artifact), options.limits, options.timeout_s, options.runs)
        payload = codec.write_order(order)
        for number in range(1, options.attempts + 1):
            try:
                reply = await self._pool.run(KIND, payload, options.timeout_s + _GRACE_S)
                break
            except (Unavailable, DeadlineExceeded) as error:
                log.warning("attempt %d of %d at %s failed: %s", number, options.attempts, artifact.artifact_id, error)
                if number == options.attempts:
                    raise
        return codec.read_findings(reply)

    async def _conclude(self, report: pb.Report, verdict: Verdict, isolation: str) -> None:
        """The report first: a verdict whose reasons cannot be read would be worth nothing."""
        name = f"reports/{report.report_id}"
        await self.reports.put_report(Stored(name, report.artifact_id, report.SerializeToString(deterministic=True)))
        attestation = None
        if verdict.passed:
            statement = {"isolation": isolation, "report_id": report.report_id, "torch": report.machine["torch"]}
            attestation = attest(self._key, PROMOTED, report.artifact_id, statement)
        kernel = await outcome.settle_kernel(self._library, report, verdict.reason, attestation)
        self.promoted += verdict.passed
        self.rejected += not verdict.passed
        await self._tell(kernel)

    async def _tell(self, kernel: library_pb2.Kernel) -> None:
        await outcome.settle_blueprint(self._library, kernel)
        await self._publish(outcome.characterized(kernel))

    async def _kernel(self, artifact_id: str) -> library_pb2.Kernel:
        return (await self._library.get_kernel(library_pb2.GetKernelRequest(artifact_id=artifact_id))).kernel
