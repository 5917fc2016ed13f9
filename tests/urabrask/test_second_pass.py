"""The second pass: usefulness and words by rank, under the signature there is, while nothing else is evaluated."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from esper.api.urza.v1 import library_pb2
from esper.artifact.bundle import to_bytes
from esper.urabrask import codec
from esper.urabrask.evaluator import Evaluator, EvaluatorOptions
from esper.urabrask.usefulness import Usefulness
from tests.artifact.samples import EVALUATION, ROOTS, built
from tests.tezzeret.fakes import Clock, until

from .hostile.artifacts import TITLE, WHERE, rewritten
from .lab import Lab
from .test_codec import FIGURES
from .test_evaluator import GOOD, Hall, opened

USEFUL = Usefulness(384, 0.5, 0.6, 0.16, 0.02, "words")


@asynccontextmanager
async def hall_of_many(count: int) -> AsyncIterator[tuple[Hall, list[str]]]:
    """An evaluator that has promoted `count` kernels, the later the slower, and can make the second pass."""
    async with opened() as hall:
        hall.pool.jobs["usefulness"] = lambda _: codec.write_usefulness(USEFUL)
        names = []
        for number in range(count):
            names.append(await hall.add(rewritten(*["up = up + 0.0"] * number)))
            speed = {**FIGURES["speed"], "forward_us_p50": 10.0 + number}
            hall.findings = replace(GOOD, figures={**FIGURES, "speed": speed})
            await hall.evaluator.evaluate(names[-1])
        yield hall, names


async def test_the_second_pass_adds_usefulness_under_the_signature_there_is():
    async with hall_of_many(1) as (hall, (name,)):
        first = await hall.evaluator.report(hall.library.kernels[name].report_name)
        assert hall.evaluator.second_pass.queued == 1
        report = await hall.evaluator.second_pass.step()
        assert (report.usefulness.pairs, report.usefulness.gain) == (384, 0.16)
        assert report.follows_report_id == first.report_id
        assert hall.library.kernels[name].report_name == f"reports/{report.report_id}"
        assert report.stages[-2].name == "usefulness" and not report.stages[-2].gates
        _, *promoted = hall.library.artifacts[name][0].attestations
        assert len({one.signature for one in promoted}) == 1
        assert (hall.evaluator.promoted, hall.evaluator.second_pass.queued) == (1, 0)


async def test_words_are_given_anew_when_the_population_has_grown():
    async with hall_of_many(8) as (hall, names):
        assert "speculative" in hall.library.kernels[names[0]].tags
        while hall.evaluator.second_pass.queued:
            await hall.evaluator.second_pass.step()
        latest = [await hall.evaluator.report(hall.library.kernels[name].report_name) for name in names]
        assert ["high_speed" in report.tags for report in latest] == [True, True, *[False] * 6]
        assert all("moderate" in report.tags and report.standing.members == 8 for report in latest)
        assert hall.pool.runs.count("usefulness") == 8


async def test_a_kernel_that_was_rejected_meanwhile_is_left_alone():
    async with hall_of_many(1) as (hall, (name,)):
        hall.library.kernels[name].status = library_pb2.KERNEL_STATUS_REJECTED
        assert await hall.evaluator.second_pass.step() is None
        assert hall.pool.runs.count("usefulness") == 0
        assert hall.library.kernel_status(name) == "REJECTED"


async def test_a_restart_finds_again_what_waits():
    async with hall_of_many(2) as (hall, names):
        await hall.evaluator.second_pass.step()
        evaluator = Evaluator(hall.library, hall.library, hall.pool, EVALUATION, ROOTS, hall.ears, Clock())
        await evaluator.second_pass.load()
        assert evaluator.second_pass.queued == 1
        report = await evaluator.second_pass.step()
        assert (report.artifact_id, report.standing.members) == (names[1], 2)


async def test_the_second_pass_is_made_while_nothing_else_is_evaluated():
    async with opened(EvaluatorOptions(second_pass_after_s=0.01)) as hall:
        hall.pool.jobs["usefulness"] = lambda _: codec.write_usefulness(USEFUL)
        name = await hall.add()
        first = await hall.evaluator.evaluate(name)
        await until(lambda: hall.library.kernels[name].report_name != f"reports/{first.report_id}")
        report = await hall.evaluator.report(hall.library.kernels[name].report_name)
        assert report.usefulness.pairs == USEFUL.pairs


async def test_a_real_usefulness_probe_in_a_real_isolated_process(lab: Lab):
    order = codec.write_order(codec.EvaluationOrder(to_bytes(built(TITLE, WHERE))))
    seen = codec.read_usefulness(lab.call("esper.urabrask.job:usefulness_job", order))
    assert seen.pairs == 384, seen.detail
    assert seen.loss > 0 and seen.gain_standard_error > 0
    waste = to_bytes(rewritten("waste = torch.zeros([68719476736])", "up = up + 0.0 * waste[0]"))
    seen = codec.read_usefulness(
        lab.call("esper.urabrask.job:usefulness_job", codec.write_order(codec.EvaluationOrder(waste)))
    )
    assert seen.pairs == 0 and "allocate" in seen.detail
