"""What a run's report says, as values for its template. Pure. What was not recorded is said to be missing."""

import math
from collections import Counter
from dataclasses import dataclass

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1 import controller_pb2
from esper.api.urza.v1 import library_pb2
from esper.errors import InvalidBlueprint
from esper.nissa.codec import control_name, decision_name, ending, seed_name, state_name
from esper.nissa.genealogy import Ancestor, family
from esper.nissa.lineage import Fossil, Kernels
from esper.nissa.pedigrees import NO_PEDIGREES, Pedigrees
from esper.nissa.seeds import DORMANT
from esper.nissa.summary import Cull, RunRecord

ARMS = ("grown", "never-grown", "static-final")
NONE = "\N{EN DASH}"  # where a cell has nothing to say
STRANGERS = "the library has not told what every one of these descends from"
_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One decision."""

    step: int
    kind: str
    reason: str
    facts: str
    candidates: list[tuple[str, ...]]
    verdict: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything the template shows. `missing`: by section, what was not recorded and why."""

    title: str
    position: int
    status: str
    facts: list[tuple[str, str]]
    arms: list[tuple[str, ...]]
    totals: list[tuple[str, str]]
    decisions: list[DecisionRow]
    unchanging_decisions: int
    fossils: list[tuple[str, ...]]
    genealogy: list[tuple[int, tuple[str, ...]]]  # generation and cells, each design before its parents
    designs: list[tuple[str, str]]  # title and SVG of each kept design, once
    removed: list[tuple[str, ...]]
    culls: list[tuple[str, ...]]
    ends: list[tuple[str, int]]
    refused: list[tuple[int, str, str]]
    rollbacks: list[tuple[int, int, str, str]]
    notes: list[tuple[int, str, str, str]]
    states: list[tuple[int, str]]
    missing: dict[str, str]


def page_of(record: RunRecord, kernels: Kernels, pedigrees: Pedigrees = NO_PEDIGREES) -> Page:
    """The page of a run."""
    summary = record.summary
    genealogy, known = _genealogy(record, kernels, pedigrees)
    return Page(
        title=record.run_id,
        position=record.position,
        status=_status(record),
        facts=_facts(record),
        arms=_arms(summary) if summary is not None else [],
        totals=_totals(record),
        decisions=[_decision(decision) for decision in record.decisions],
        unchanging_decisions=record.unchanging_decisions,
        fossils=[_fossil(f, record, kernels) for f in record.lineage.fossils if f.removed_step is None],
        genealogy=genealogy,
        designs=_designs(record, kernels, pedigrees),
        removed=[_removed(f, record, kernels) for f in record.lineage.fossils if f.removed_step is not None],
        culls=[_cull(cull, record, kernels) for cull in record.culls()],
        ends=sorted(Counter(state_name(report.outcome).lower() for report in record.reports).items()),
        refused=[(outcome.step, outcome.command_id, outcome.detail) for outcome in record.refused],
        rollbacks=[(r.step, r.restored_step, r.reason, ", ".join(r.locked_seeds) or NONE) for r in record.rollbacks],
        notes=[(step, note.level, note.source, note.text) for step, note in record.notes],
        states=_states(record),
        missing=_missing(record) | ({} if known else {"genealogy": STRANGERS}),
    )


def _status(record: RunRecord) -> str:
    if record.goodbye is None:
        return "not over: no goodbye was heard"
    return ending(record.goodbye, record.hello.total_steps if record.hello is not None else 0)


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    facts = [("run", record.run_id)]
    if (hello := record.hello) is not None:
        facts += [
            ("task", hello.task_name),
            ("policy", hello.settings.policy),
            ("random seed", str(hello.random_seed)),
            ("steps", f"{record.step:,} of {hello.total_steps:,}" if hello.total_steps else f"{record.step:,}"),
            ("deterministic", "yes" if hello.deterministic else "no"),
            ("versions", ", ".join(f"{name} {version}" for name, version in sorted(hello.versions.items())) or NONE),
        ]
    return [*facts, ("began", record.began or NONE), ("ended", record.ended or NONE)]


def _arms(summary: pb.RunSummary) -> list[tuple[str, ...]]:
    """One row per arm, the known ones first and said to be missing where they are."""
    there = {arm.arm: arm for arm in summary.arms}
    names = [*ARMS, *(name for name in there if name not in ARMS)]
    return [_arm(there[name]) if name in there else (name, *["not measured"] * 5) for name in names]


def _arm(arm: pb.ArmSummary) -> tuple[str, ...]:
    score = f"{arm.test_score:.4f}" if arm.HasField("test_score") else "the task has none"
    flops = scaled(arm.total_flops)
    return (arm.arm, number(arm.test_loss), score, f"{arm.parameters:,}", flops, f"{arm.best_step:,}")


def _totals(record: RunRecord) -> list[tuple[str, str]]:
    if (summary := record.summary) is not None:
        return [
            ("stalled_steps", str(summary.stalled_steps)),
            ("fossilised", str(summary.fossilised)),
            ("culled", str(summary.culled)),
            ("training", scaled(summary.train_flops)),
            ("nursery, twins, measurements", scaled(summary.nursery_flops)),
        ]
    return [] if record.stalled_steps is None else [("stalled_steps", str(record.stalled_steps))]


def _decision(decision: controller_pb2.Decision) -> DecisionRow:
    facts = f"{decision.policy}, confidence {decision.confidence:.2f}, urgency {decision.urgency:.2f}"
    return DecisionRow(
        step=decision.step,
        kind=decision_name(decision.kind),
        reason=decision.reason,
        facts=facts,
        candidates=[_candidate(candidate) for candidate in decision.candidates],
        verdict=verdict_text(decision.verdict) if decision.HasField("verdict") else "",
    )


def _candidate(candidate: controller_pb2.Candidate) -> tuple[str, ...]:
    estimates = (
        percent(getattr(candidate, name)) if candidate.HasField(name) else NONE
        for name in ("expected_reward", "exploration_bonus", "isolated_gain")
    )
    mark = "chosen" if candidate.chosen else ""
    return (
        mark,
        seed_name(candidate.seed),
        candidate.title or short(candidate.artifact_id),
        *estimates,
        candidate.reason,
    )


def verdict_text(verdict: controller_pb2.Verdict) -> str:
    """One line: keep or cull, gain ± standard error, the control, the false-keep rate."""
    words = "keep" if verdict.keep else "cull"
    confounded = ", confounded by another graft" if verdict.confounded else ""
    return (
        f"{words} {seed_name(verdict.seed)}: gain {percent(verdict.gain)} ± {percent(verdict.standard_error, sign='')} "
        f"against its {control_name(verdict.control)} on {verdict.measurement.pairs:,} examples, false-keep rate "
        f"{percent(verdict.false_keep_rate, sign='')}, round {verdict.round}{confounded}: {verdict.reason}"
    )


def _title(artifact_id: str, record: RunRecord, kernels: Kernels) -> str:
    known = kernels.get(artifact_id)
    return (known.title if known is not None else "") or record.titles.get(artifact_id, "") or NONE


def _fossil(fossil: Fossil, record: RunRecord, kernels: Kernels) -> tuple[str, ...]:
    title = _title(fossil.artifact_id, record, kernels)
    return (fossil.seed, title, f"{fossil.step:,}", fossil.artifact_id or NONE, fossil.reason)


def _genealogy(
    record: RunRecord, kernels: Kernels, pedigrees: Pedigrees
) -> tuple[list[tuple[int, tuple[str, ...]]], bool]:
    """(the family tree of every fossil that is there, whether the library has told of all of them)."""
    there, rows, known = [f for f in record.lineage.fossils if f.removed_step is None], [], True
    for fossil in there:
        kernel = kernels.get(fossil.artifact_id)
        tree = family(kernel.blueprint_id, pedigrees) if kernel is not None and kernel.blueprint_id else []
        known = known and bool(tree) and tree[0].blueprint_id in pedigrees
        rows += [(one.generation, _ancestor(fossil.seed, one)) for one in tree if one.blueprint_id in pedigrees]
    return rows, known


def _designs(record: RunRecord, kernels: Kernels, pedigrees: Pedigrees) -> list[tuple[str, str]]:
    """(title, SVG) of every design that is there and known, in the order in which they fossilised."""
    there = [kernels.get(f.artifact_id) for f in record.lineage.fossils if f.removed_step is None]
    names = dict.fromkeys(kernel.blueprint_id for kernel in there if kernel is not None)
    known = [pedigrees[name] for name in names if name in pedigrees]
    return [(one.title, drawn) for one in known if (drawn := _drawn(one))]


def _drawn(blueprint: library_pb2.Blueprint) -> str:
    """Its SVG; nothing for a graph that this version cannot read, as the report is of more than one design."""
    from esper.blueprint.codec import read_graph  # loads torch, which recording does not need
    from esper.blueprint.picture import picture

    try:
        drawn = picture(read_graph(blueprint.graph), blueprint.title)
    except InvalidBlueprint:
        return ""
    return drawn.replace(' xmlns="http://www.w3.org/2000/svg"', "")  # only files need it; a page names no address


def _ancestor(seed: str, one: Ancestor) -> tuple[str, ...]:
    """Cells: seed (of what fossilised itself), design, maker, and what it comes from."""
    origin = "as above" if one.repeated else one.source or NONE
    return ("" if one.generation else seed, one.title or short(one.blueprint_id), one.author or NONE, origin)


def _removed(fossil: Fossil, record: RunRecord, kernels: Kernels) -> tuple[str, ...]:
    title = _title(fossil.artifact_id, record, kernels)
    return (fossil.seed, title, f"{fossil.step:,}", f"{fossil.removed_step:,}", fossil.removed_reason)


def _cull(cull: Cull, record: RunRecord, kernels: Kernels) -> tuple[str, ...]:
    gain = "not judged"
    if cull.report is not None and cull.report.HasField("gain"):
        error = percent(cull.report.standard_error, sign="")
        gain = f"{percent(cull.report.gain)} ± {error} against its {control_name(cull.report.control)}"
    return (cull.seed, _title(cull.artifact_id, record, kernels), f"{cull.step:,}", gain, cull.reason)


def _states(record: RunRecord) -> list[tuple[int, str]]:
    seen = {stay.state for stays in record.seeds.stays.values() for stay in stays} - {DORMANT}
    return [(state, state_name(state).lower().replace("_", " ")) for state in sorted(seen)]


def _missing(record: RunRecord) -> dict[str, str]:
    """By section, what to say where there is nothing to show."""
    arms = {arm.arm for arm in record.summary.arms} if record.summary is not None else set()
    twin = "never-grown" in record.validations
    known = {
        "facts": ("the run's hello was not heard; task, policy and versions are not known", record.hello is not None),
        "results": ("no summary of the run was heard, so there is nothing to compare", record.summary is not None),
        "controls": (
            "not every control was trained; what was not measured is not compared",
            record.summary is None or arms >= set(ARMS),
        ),
        "losses": ("no losses were heard", bool(record.train or record.validations)),
        "twin": ("no loss of the never-grown twin was heard; the curve is the run's alone", twin),
        "parameters": ("no progress was heard", bool(record.parameters)),
        "costs": ("no summary was heard; the cost is not known", record.summary is not None),
        "lanes": ("no seed moved", any(record.seeds.stays.values())),
        "decisions": ("no decision that changes something was heard", bool(record.decisions)),
        "fossils": ("nothing was fossilised, or it was removed again", any(_present(record))),
    }
    return {section: words for section, (words, there) in known.items() if not there}


def _present(record: RunRecord) -> list[bool]:
    return [fossil.removed_step is None for fossil in record.lineage.fossils]


def number(value: float) -> str:
    """Four significant digits; a value that is not finite is named."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def percent(value: float, sign: str = "+") -> str:
    """A share in percent, with its sign unless `sign` is empty."""
    return f"{value * 100:{sign}.2f} %" if math.isfinite(value) else str(value)


def scaled(flops: float) -> str:
    """Floating-point operations with a prefix: 1.23 TFLOP."""
    for scale, prefix in _SCALES:
        if flops >= scale:
            return f"{flops / scale:.3g} {prefix}FLOP"
    return f"{flops:.3g} FLOP"


def short(artifact_id: str) -> str:
    """The head of a digest."""
    return artifact_id[:12] or NONE
