"""The evaluator: verdicts kept and told in an order that a crash cannot turn into a lie."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from esper.api.common.v1 import resource_pb2
from esper.api.tezzeret.v1.forge_pb2 import KernelReady
from esper.api.urza.v1 import library_pb2
from esper.artifact.attest import PROMOTED
from esper.artifact.attest import verify as verify_attestation
from esper.artifact.bundle import Artifact, verify
from esper.artifact.keys import SigningKey, TrustRoots
from esper.errors import Corrupt, DeadlineExceeded, Exhausted, NotFound, PreconditionFailed, Unavailable, Untrusted
from esper.karn.templates import TEMPLATES
from esper.urabrask import codec
from esper.urabrask.codec import Findings
from esper.urabrask.evaluator import Evaluator, EvaluatorOptions
from esper.urabrask.jail import Isolation
from esper.urabrask.judge import Checked
from esper.urabrask.stages import GATES, NAMES
from tests.artifact.samples import EVALUATION, FORGE, ROOTS, STRANGER, built, flipped
from tests.tezzeret.fakes import Clock, DirectPool, Ears, Library, until

from .hostile.artifacts import TITLE, WHERE, rewritten
from .lab import Lab
from .test_codec import FIGURES

PASSED = tuple(Checked(name, True, "fine") for name in NAMES)
MACHINE = {"torch": "2", "cpu": "x", "threads": "1", "isolation": "network namespace"}
GOOD = Findings(PASSED, FIGURES, "network namespace", MACHINE)
BAD = Findings((PASSED[0], Checked("shape", False, "returns [1]")), None, "network namespace", {"torch": "2"})


class Hall:
    """An evaluator and all it talks to; its workers answer what they are told to."""

    def __init__(
        self,
        options: EvaluatorOptions | None = None,
        key: SigningKey = EVALUATION,
        roots: TrustRoots = ROOTS,
        jobs: dict[str, Callable[[bytes], bytes]] | None = None,
    ) -> None:
        self.library = Library(ROOTS)
        self.findings = GOOD
        self.pool = DirectPool(
            jobs
            or {
                "isolation": lambda _: codec.write_isolation(Isolation("network namespace")),
                "evaluate": lambda _: codec.write_findings(self.findings),
            }
        )
        self.ears = Ears()
        self.evaluator = Evaluator(
            self.library, self.library, self.pool, key, roots, self.ears, Clock(), options or EvaluatorOptions()
        )

    async def add(self, artifact: Artifact | None = None) -> str:
        """Store a kernel as the forge does; returns its id."""
        artifact = artifact or built(TITLE, WHERE)
        blueprint = self.library.add(TEMPLATES[TITLE].graph)
        self.library.blueprints[blueprint].status = library_pb2.BLUEPRINT_STATUS_COMPILING
        copy = Artifact(type(artifact.manifest)(), artifact.files)
        copy.manifest.CopyFrom(artifact.manifest)
        await self.library.create_kernel(library_pb2.KernelManifest(artifact=copy.manifest), copy.files)
        return artifact.artifact_id

    @property
    def blueprint(self) -> str:
        return next(iter(self.library.blueprints))


@asynccontextmanager
async def opened(*args, **settings) -> AsyncIterator[Hall]:
    hall = Hall(*args, **settings)
    async with hall.evaluator:
        yield hall


def ready(artifact_id: str) -> KernelReady:
    return KernelReady(artifact_id=artifact_id, blueprint_id="a" * 64)


async def test_a_kernel_that_passes_is_promoted_by_a_signature_over_its_id():
    async with opened() as hall:
        name = await hall.add()
        report = await hall.evaluator.kernel_ready(ready(name))
        assert report.passed
        kernel = hall.library.kernels[name]
        assert hall.library.kernel_status(name) == "VALIDATED"
        assert kernel.report_name == f"reports/{report.report_id}"
        assert (kernel.forward_us_p50, kernel.peak_bytes) == (10.0, 100)
        assert kernel.interest == report.interest > 0
        assert list(kernel.tags) == ["low_memory", "numerically_stable", "small", "speculative"]
        assert hall.library.status(hall.blueprint) == "VALIDATED"
        manifest, files = hall.library.artifacts[name]
        verify(Artifact(manifest, files), ROOTS)  # it may be loaded now
        statement = verify_attestation(manifest.attestations, PROMOTED, name, ROOTS)
        assert statement == {"isolation": "network namespace", "report_id": report.report_id, "torch": "2"}
        (told,) = hall.ears.heard
        assert (told.artifact_id, told.promoted, told.report_name) == (name, True, kernel.report_name)
        assert (told.forward_us_p50, list(told.tags)) == (10.0, list(kernel.tags))
        assert (hall.evaluator.promoted, hall.evaluator.rejected) == (1, 0)
        assert await hall.evaluator.report(kernel.report_name) == report


async def test_a_kernel_that_fails_is_rejected_with_the_reason_and_gets_no_signature():
    async with opened() as hall:
        name = await hall.add()
        hall.findings = BAD
        report = await hall.evaluator.kernel_ready(ready(name))
        assert not report.passed
        assert hall.library.kernel_status(name) == "REJECTED"
        assert hall.library.kernels[name].status_reason == "shape: returns [1]"
        assert hall.library.status(hall.blueprint) == "UNVALIDATED"
        assert len(hall.library.artifacts[name][0].attestations) == 1
        (told,) = hall.ears.heard
        assert not told.promoted
        assert hall.evaluator.rejected == 1


async def test_the_report_is_stored_before_the_verdict_and_the_verdict_before_it_is_told():
    async with opened() as hall:
        name = await hall.add()
        await hall.evaluator.evaluate(name)
        kinds = [what for what, _ in hall.library.history]
        assert kinds == ["kernel", "report", "kernel", "blueprint"]


async def test_without_isolation_there_is_no_evaluator():
    hall = Hall()
    hall.pool.jobs["isolation"] = lambda _: codec.write_unavailable(Unavailable("candidates cannot be isolated here"))
    with pytest.raises(Unavailable, match="cannot be isolated here"):
        async with hall.evaluator:
            pytest.fail("it started")
    name = await hall.add()
    with pytest.raises(PreconditionFailed, match="no isolation was proved here"):
        await hall.evaluator.evaluate(name)
    assert hall.pool.runs == ["isolation"]


async def test_a_worker_whose_isolation_is_gone_gives_no_verdict():
    async with opened() as hall:
        name = await hall.add()
        hall.pool.jobs["evaluate"] = lambda _: codec.write_unavailable(Unavailable("a namespace was refused"))
        with pytest.raises(Unavailable, match="a namespace was refused"):
            await hall.evaluator.evaluate(name)
        assert hall.library.kernel_status(name) == "PENDING_BENCHMARKING"


async def test_findings_made_without_isolation_promote_nothing():
    async with opened() as hall:
        name = await hall.add()
        hall.findings = Findings(PASSED, FIGURES, "", {"torch": "2"})
        assert not (await hall.evaluator.evaluate(name)).passed
        assert hall.library.kernels[name].status_reason.startswith("isolation: none was in force")


@pytest.mark.parametrize("error", [Unavailable("the worker died"), DeadlineExceeded("still at work")])
async def test_a_worker_that_dies_is_not_the_kernels_fault(error):
    async with opened() as hall:
        name = await hall.add()
        hall.pool.failures = [error]
        assert (await hall.evaluator.evaluate(name)).passed  # at the second attempt
    async with opened() as hall:
        name = await hall.add()
        hall.pool.failures = [error, error]
        with pytest.raises(type(error)):
            await hall.evaluator.evaluate(name)
        assert hall.library.kernel_status(name) == "PENDING_BENCHMARKING"
        assert (await hall.evaluator.evaluate(name)).passed  # and the evaluator goes on


async def test_workers_have_longer_than_their_children():
    async with opened(EvaluatorOptions(timeout_s=7.0)) as hall:
        await hall.evaluator.evaluate(await hall.add())
        assert hall.pool.timeouts[1] > 7.0


async def test_a_kernel_that_has_a_verdict_is_not_evaluated_again_but_what_follows_is_done():
    async with opened() as hall:
        name = await hall.add()
        first = await hall.evaluator.kernel_ready(ready(name))
        # a crash between the verdict and its consequences
        hall.library.blueprints[hall.blueprint].status = library_pb2.BLUEPRINT_STATUS_COMPILING
        again = await hall.evaluator.kernel_ready(ready(name))
        assert again == first
        assert hall.pool.runs.count("evaluate") == 1
        assert hall.library.status(hall.blueprint) == "VALIDATED"
        assert [m.artifact_id for m in hall.ears.heard] == [name, name]


async def test_a_verdict_that_could_not_be_told_is_told_later():
    async with opened() as hall:
        name = await hall.add()
        hall.ears.deaf = True
        with pytest.raises(Unavailable, match="the bus is away"):
            await hall.evaluator.kernel_ready(ready(name))
        hall.ears.deaf = False
        await hall.evaluator.kernel_ready(ready(name))
        assert [m.promoted for m in hall.ears.heard] == [True]


async def test_messages_that_ask_for_nothing_get_nothing():
    async with opened() as hall:
        assert await hall.evaluator.kernel_ready(KernelReady(blueprint_id="a" * 64)) is None  # a failed compilation
        name = await hall.add()
        hall.library.kernels[name].status = library_pb2.KERNEL_STATUS_ARCHIVED
        assert await hall.evaluator.kernel_ready(ready(name)) is None
        with pytest.raises(NotFound):
            await hall.evaluator.kernel_ready(ready("f" * 64))
        assert hall.pool.runs == ["isolation"]


async def test_a_kernel_for_a_device_is_left_as_it_is_and_whoever_asks_is_told():
    async with opened() as hall:
        artifact_id = await hall.add()
        hall.library.kernels[artifact_id].target = resource_pb2.TARGET_SM_90
        assert await hall.evaluator.kernel_ready(ready(artifact_id)) is None
        with pytest.raises(PreconditionFailed, match="is for sm_90, and this evaluator measures on the CPU"):
            await hall.evaluator.evaluate(artifact_id)
        assert hall.library.kernel_status(artifact_id) == "PENDING_BENCHMARKING"
        assert not hall.library.reports
        assert hall.pool.runs == ["isolation"]


async def test_asking_twice_at_once_is_one_evaluation():
    async with opened() as hall:
        name = await hall.add()
        reports = await asyncio.gather(*(hall.evaluator.evaluate(name) for _ in range(4)))
        assert len({report.report_id for report in reports}) == 1
        assert hall.pool.runs.count("evaluate") == 1


async def test_a_promoted_kernel_may_be_evaluated_anew_and_lose_its_place():
    async with opened() as hall:
        name = await hall.add()
        first = await hall.evaluator.evaluate(name)
        second = await hall.evaluator.evaluate(name)
        assert first.report_id != second.report_id
        hall.findings = BAD
        assert not (await hall.evaluator.evaluate(name)).passed
        assert hall.library.kernel_status(name) == "REJECTED"
        with pytest.raises(PreconditionFailed, match=r"is REJECTED; .* esper library move .* PENDING_BENCHMARKING"):
            await hall.evaluator.evaluate(name)


@pytest.mark.parametrize("part", ["file", "body", "signature"])
async def test_bytes_that_are_not_the_forges_are_quarantined_unseen(part):
    async with opened() as hall:
        name = await hall.add()
        manifest, files = hall.library.artifacts[name]
        if part == "file":
            files["module.pt"] = flipped(files["module.pt"])
        elif part == "body":
            manifest.body = flipped(manifest.body)
        else:
            manifest.attestations[0].signature = flipped(manifest.attestations[0].signature)
        with pytest.raises(Untrusted if part == "signature" else Corrupt):
            await hall.evaluator.evaluate(name)
        assert hall.library.kernel_status(name) == "QUARANTINED"
        assert "evaluation refused it" in hall.library.kernels[name].status_reason
        assert hall.pool.runs == ["isolation"]


async def test_a_forge_this_evaluator_does_not_know_is_not_looked_at():
    async with opened(roots=TrustRoots(forge=(STRANGER.public_key,))) as hall:
        name = await hall.add()
        with pytest.raises(Untrusted, match="is no trusted forge key"):
            await hall.evaluator.evaluate(name)
        assert hall.library.kernel_status(name) == "QUARANTINED"


async def test_an_evaluator_the_library_does_not_trust_promotes_nothing():
    async with opened(key=FORGE) as hall:
        name = await hall.add()
        with pytest.raises(Untrusted):
            await hall.evaluator.evaluate(name)
        assert hall.library.kernel_status(name) == "PENDING_BENCHMARKING"


async def test_the_queue_is_bounded():
    async with opened(EvaluatorOptions(max_queued=1)) as hall:
        names = [
            await hall.add(), await hall.add(rewritten("up = up + 0.0")), await hall.add(rewritten("up = up - 0.0"))
        ]  # fmt: skip
        hall.pool.gate = asyncio.Event()
        first = asyncio.create_task(hall.evaluator.evaluate(names[0]))
        await until(lambda: hall.evaluator.busy == 1)
        second = asyncio.create_task(hall.evaluator.evaluate(names[1]))
        await until(lambda: hall.evaluator.queued == 1)
        with pytest.raises(Exhausted, match="1 kernels wait for evaluation"):
            await hall.evaluator.evaluate(names[2])
        hall.pool.gate.set()
        assert (await first).passed
        assert (await second).passed
        assert hall.evaluator.queued == 0


async def test_a_blueprint_called_invalid_is_valid_once_a_kernel_of_it_is_promoted():
    async with opened() as hall:
        name = await hall.add()
        hall.library.blueprints[hall.blueprint].status = library_pb2.BLUEPRINT_STATUS_INVALID
        await hall.evaluator.evaluate(name)
        assert hall.library.status(hall.blueprint) == "VALIDATED"


async def test_a_real_candidate_in_a_real_isolated_process(lab: Lab):
    jobs = {
        "isolation": lambda payload: lab.call("esper.urabrask.job:isolation_job", payload),
        "evaluate": lambda payload: lab.call("esper.urabrask.job:evaluate_job", payload),
    }
    async with opened(EvaluatorOptions(runs=10, timeout_s=5.0), jobs=jobs) as hall:
        good = await hall.add()
        report = await hall.evaluator.evaluate(good)
        assert report.passed
        assert [check.name for check in report.checks] == list(GATES)
        assert report.machine["isolation"] == hall.evaluator.isolation.how
        assert report.forward_us_p50 > 0
        assert report.peak_bytes > 0
        assert hall.library.kernel_status(good) == "VALIDATED"
        # one that kills its process, one that hangs: rejected, and the next one is evaluated
        waste = await hall.add(rewritten("waste = torch.zeros([68719476736])", "up = up + 0.0 * waste[0]"))
        assert not (await hall.evaluator.evaluate(waste)).passed
        assert hall.library.kernels[waste].status_reason.startswith("memory: ")
        hang = await hall.add(rewritten("i = 0", "while i >= 0:", "    i = (i + 1) % 7"))
        report = await hall.evaluator.evaluate(hang)
        assert report.checks[-1].detail == "the process was still at work after 5 s and was ended"
        assert hall.library.kernel_status(hang) == "REJECTED"
        assert (await hall.evaluator.evaluate(good)).passed


async def test_without_a_jail_every_verdict_is_unpromotable_by_name():
    async with opened(EvaluatorOptions(jailed=False)) as hall:
        name = await hall.add()
        for findings in (GOOD, replace(GOOD, isolation=""), BAD):
            hall.findings = findings
            report = await hall.evaluator.evaluate(name)
            assert not report.passed
            assert report.unpromotable.startswith("--unsafe-no-jail: ")
            assert hall.library.kernel_status(name) == "PENDING_BENCHMARKING"
        assert len(hall.library.artifacts[name][0].attestations) == 1
        assert (hall.evaluator.promoted, hall.evaluator.rejected, hall.pool.runs[0]) == (0, 0, "evaluate")
        assert hall.ears.heard == []
