"""Designs that Karn makes: how many are valid, compile and pass checks, and how many opportunities they answer.

Opportunities are those that `esper.karn.opportunity` finds at the sites of the compatibility architectures.
`valid`: the forge's static check. `compiled`: built by the pipeline fast, in this process. `passed`: of a sample
(`checked` says how large), the evaluator's checks of correctness and stability, in this process.
`answered`: share of the opportunities with at least one design. `latency_error`, `memory_error`: median error
of the predictor on kernels it was not fitted on, measured here.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from random import Random

import torch

from bench.flow.architectures import TORCH
from bench.flow.bench_compat import architectures
from bench.harness import one_thread
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.artifact.body import read_body
from esper.artifact.bundle import Artifact
from esper.artifact.contents import open_contents
from esper.errors import EsperError, WrapRefused
from esper.karn.generate import Generated, generate, parents_of_the_library
from esper.karn.opportunity import Found, SiteDescription, opportunities
from esper.karn.predict import Measurement, fit
from esper.kasmina.wrap import wrap
from esper.tezzeret.check import check
from esper.tezzeret.compile import build
from esper.urabrask.gauntlet import CHECKS
from esper.urabrask.measure import measure_memory, measure_speed
from esper.urabrask.subject import Subject, prepare

NAME = "generate"
LONG = True
DESIGNS, CHECKED, MEASURED, RUNS = 1000, 1000, 240, 15
QUICK_DESIGNS, QUICK_CHECKED, QUICK_MEASURED = 6, 2, 0
ALL, COMPILED, PASSED, ANSWERED = (Target(limit, at_least=True) for limit in (1.0, 0.99, 0.95, 0.8))
FASTER, CLOSE = Target(100.0), Target(0.2)


def rows(options: Options) -> Iterator[Row]:
    with one_thread():
        yield from _rows(options)


def _rows(options: Options) -> Iterator[Row]:
    quick = options.quick
    found = found_at(sorted(TORCH) if quick else None)
    began = time.perf_counter()
    made, answered = designs_for(found, QUICK_DESIGNS if quick else DESIGNS)
    spent_ms = (time.perf_counter() - began) * 1e3
    case = f"{len(made)} designs"
    distinct = {design.blueprint_id for _, design in made}
    yield make_row(NAME, case, "duplicates", len(made) - len(distinct), "designs", target=Target(0))
    yield make_row(NAME, case, "time_per_design", spent_ms / max(1, len(made)), "ms", target=FASTER)
    valid = [check(design.graph, where.interface)[0] for where, design in made]
    yield make_row(NAME, case, "valid", _share(valid), "share", target=ALL)
    artifacts = [_built(where, design) for where, design in made]
    yield make_row(NAME, case, "compiled", _share([one is not None for one in artifacts]), "share", target=COMPILED)
    sample = [one for one in artifacts if one is not None]
    sample = Random(0).sample(sample, min(len(sample), QUICK_CHECKED if quick else CHECKED))
    subjects = [_subject(one) for one in sample]
    yield make_row(
        NAME, f"{len(sample)} of them", "passed", _share(list(map(passes, subjects))), "share", target=PASSED
    )
    opportunities_case = f"{len(found)} opportunities"
    yield make_row(NAME, opportunities_case, "answered", answered / len(found), "share", target=ANSWERED)
    yield from prediction_rows(subjects[: QUICK_MEASURED if quick else MEASURED])


def _share(answers: Sequence[bool]) -> float:
    return sum(answers) / len(answers)


def found_at(names: Sequence[str] | None) -> list[Found]:
    """Opportunities at the sites of the compatibility architectures of these names; None: of all there are."""
    chosen = {name: TORCH[name] for name in names} if names is not None else architectures()
    found: list[Found] = []
    for name, architecture in chosen.items():
        try:
            handle = wrap(architecture.model(), architecture.targets, example=architecture.inputs())
        except WrapRefused as error:
            print(f"{NAME}: {name}: {error}", file=sys.stderr)
            continue
        sites = handle.executor.sites.values()
        found += opportunities(
            SiteDescription(f"{name}/{s.name}", s.layer_kind, s.interface, s.parameter_count) for s in sites
        )
    return found


def designs_for(found: Sequence[Found], count: int) -> tuple[list[tuple[Found, Generated]], int]:
    """`count` designs, spread over the opportunities as evenly as may be, and how many of these have one."""
    parents, rng = parents_of_the_library(), Random(0)
    made: list[tuple[Found, Generated]] = []
    known, answered, turn = set[str](), set[int](), 0
    while (len(made) < count and turn < 4 * max(count, len(found))) or turn < len(found):
        place = turn % len(found)
        turn += 1
        designs, reason = generate(found[place], rng, parents, 1, exclude=known)
        if reason:
            print(f"{NAME}: {found[place].site}: {found[place].kind.value}: {reason}", file=sys.stderr)
        for design in designs:
            answered.add(place)
            known.add(design.blueprint_id)
            made.append((found[place], design))
    return made, len(answered)


def _built(where: Found, design: Generated) -> Artifact | None:
    try:
        return build(design.graph, where.interface, "cpu", "fast")
    except EsperError as error:
        print(f"{NAME}: {where.site}: {design.blueprint_id[:12]}: {error}", file=sys.stderr)
        return None


def _subject(artifact: Artifact) -> Subject:
    contents = open_contents(read_body(artifact.manifest.body), artifact.files)
    return prepare(contents, contents.form)


def passes(subject: Subject) -> bool:
    """Every check of correctness and stability; the first that is not passed is named on standard error."""
    for name, one in CHECKS.items():
        finding = one(subject)
        if not finding.passed:
            print(f"{NAME}: {subject.interface}: {name}: {finding.detail}", file=sys.stderr)
            return False
    return True


def prediction_rows(subjects: Sequence[Subject]) -> Iterator[Row]:
    """Errors on the held-out share of what is measured here; none where too little is."""
    measured = []
    for subject in subjects:
        speed, memory, shape = measure_speed(subject, RUNS), measure_memory(subject), subject.measured().shape
        graph, interface = subject.contents.graph, subject.interface
        positions = subject.measured().numel() // (shape[0] * interface.channels)
        measured.append(
            Measurement(graph, interface, "cpu", shape[0], positions, speed.forward_us_p50, memory.peak_bytes)
        )
    predictor, reason = fit(measured, "cpu")
    if predictor is None:
        print(f"{NAME}: no prediction: {reason}", file=sys.stderr)
        return
    case = f"{len(measured)} kernels"
    yield make_row(NAME, case, "latency_error", predictor.latency_error, "median share", target=CLOSE)
    yield make_row(NAME, case, "memory_error", predictor.memory_error, "median share", target=CLOSE)


def test_generate(benchmark):  # type: ignore[no-untyped-def]
    found = found_at(["mlp"])
    torch.manual_seed(0)
    made, answered = benchmark.pedantic(lambda: designs_for(found, 2), rounds=1)
    assert len(made) >= 2 and answered == len(found)
