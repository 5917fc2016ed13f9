"""How often a verdict keeps a graft that does no good: against its twin, and against the graft switched off.

Every blueprint of the library is grafted at sites of the demo's tasks, at two points of the never-grown run, trained
with the host for the scheme's `verdict_steps` and judged on slice "judge" as in a run (one round; a run asks for two).
What it is worth is read against the twin on the slices no verdict sees ("select" and "test"); worthless is what shows
no more there than the scheme's `min_gain`. That reading has noise of its own: the rates are of this kind of graft and
data, not bounds.

`twin_false_keep_rate` and `ablation_false_keep_rate`: of the worthless, the share that is kept. `ablation_threshold`:
the least gain against the switched-off graft that holds that share to the nominal rate of the twin's rule;
`ablation_false_keep_rate_left_out`: the same rate for the runs of each random seed at the threshold found without them.
`..._missed_rate`: of the others, the share not kept.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from bench.growth.grafted import Graftable, Judged, graftables, judged, trained
from bench.registry import Options
from bench.row import Row, make_row
from esper.stats.verdict import Rule, judge, nominal_false_keep_rate
from esper.tolaria.settings import GrowthSettings
from esper.tolaria.task import Task, load_task

NAME = "verdict"
LONG = True
TASKS = ("digits", "text", "tabular")
STARTS = (0.15, 0.6)  # shares of the run
GRAFTS = 12  # at most per start, drawn anew for each
QUICK = GrowthSettings(verdict_steps=4, verdict_snapshots=2, snapshot_gap_steps=1, ramp_steps=2)

Seeds = list[list[Judged]]  # by random seed


def rows(options: Options) -> Iterator[Row]:
    torch.set_num_threads(1)
    everything: Seeds = [[] for _ in range(options.seeds)]
    for name in tuple(options.tasks) or (TASKS[-1:] if options.quick else TASKS):
        seeds = [list(grafts(name, seed, options.quick)) for seed in range(2 if options.quick else options.seeds)]
        yield from case_rows(name, seeds)
        everything = [[*a, *b] for a, b in zip(everything, seeds, strict=False)]
    if not options.quick and len(options.tasks) != 1:
        yield from case_rows("all", everything)


def grafts(name: str, seed: int, quick: bool = False) -> Iterator[Judged]:
    """Grafts of one run, judged."""
    task = load_task(f"esper.tolaria.tasks.{name}:task", {"seed": seed})
    growth = QUICK if quick else GrowthSettings(**task.growth)
    starts = (2,) if quick else [int(share * task.steps) for share in STARTS]
    for number, start in enumerate(trained(task, starts)):
        yield from judged(task, start, _drawn(task, number, 2 if quick else GRAFTS), growth)


def _drawn(task: Task, number: int, count: int) -> list[Graftable]:
    places = graftables(task)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(100 * task.seed + number))
    return [places[index] for index in order[:count].tolist()]


def case_rows(case: str, seeds: Seeds) -> Iterator[Row]:
    """Rates over all grafts of a case."""
    every = [graft for seed in seeds for graft in seed]
    rule = Rule()
    nominal = nominal_false_keep_rate(rule)
    useless, useful = worthless(every), [graft for graft in every if not _is_worthless(graft)]
    base = f"{len(useless)} worthless of {len(every)}"
    yield make_row(NAME, case, "grafts", len(every), "count")
    yield make_row(NAME, case, "worthless", len(useless), "count")
    yield make_row(NAME, case, "nominal_false_keep_rate", nominal, "share")
    found = threshold(every, nominal)
    rules = {
        "twin": rule,
        "ablation": ablation_rule(GrowthSettings().ablation_min_gain),
        "ablation_at_threshold": ablation_rule(found),
    }
    for name, used in rules.items():
        keeps = _twin_keeps if name == "twin" else _ablation_keeps
        if useless:
            rate = _share(useless, lambda g, u=used, k=keeps: k(g, u))  # type: ignore[misc]
            yield make_row(NAME, case, f"{name}_false_keep_rate", rate, "share", baseline=base)
        if useful:
            missed = 1 - _share(useful, lambda g, u=used, k=keeps: k(g, u))  # type: ignore[misc]
            yield make_row(NAME, case, f"{name}_missed_rate", missed, "share", baseline=f"{len(useful)} useful")
    yield make_row(NAME, case, "ablation_threshold", found, "share", baseline=base)
    left = left_out(seeds, nominal)
    if left is not None:
        yield make_row(NAME, case, "ablation_false_keep_rate_left_out", left, "share", baseline=base)
    yield make_row(NAME, case, "ablation_gain_median", statistics.median(g.ablation.gain for g in every), "share")
    yield make_row(NAME, case, "twin_gain_median", statistics.median(g.twin.gain for g in every), "share")


def worthless(every: Sequence[Judged]) -> list[Judged]:
    """Those whose gain over the twin, where no verdict looks, is not over the least worth keeping."""
    return [graft for graft in every if _is_worthless(graft)]


def threshold(every: Sequence[Judged], rate: float) -> float:
    """The least gain against the switched-off graft at which at most a share `rate` of the worthless is kept."""
    passing = sorted(
        (g.ablation.gain for g in worthless(every) if _ablation_keeps(g, ablation_rule(0.0))), reverse=True
    )
    allowed = math.floor(rate * len(worthless(every)))
    return max(0.0, passing[allowed]) if len(passing) > allowed else 0.0


def left_out(seeds: Seeds, rate: float) -> float | None:
    """The false-keep rate at thresholds that did not see the random seed they are used on; None without a worthless."""
    kept = count = 0
    for index, seed in enumerate(seeds):
        others = [graft for other in seeds[:index] + seeds[index + 1 :] for graft in other]
        rule = ablation_rule(threshold(others, rate))
        useless = worthless(seed)
        kept += sum(_ablation_keeps(graft, rule) for graft in useless)
        count += len(useless)
    return kept / count if count else None


def ablation_rule(min_gain: float) -> Rule:
    return replace(Rule(), min_gain=max(Rule().min_gain, min_gain))


def _is_worthless(graft: Judged) -> bool:
    return not graft.elsewhere.gain > Rule().min_gain  # nor is what is not a number


def _twin_keeps(graft: Judged, rule: Rule) -> bool:
    return judge(graft.twin, rule)[0]


def _ablation_keeps(graft: Judged, rule: Rule) -> bool:
    return judge(graft.ablation, rule)[0]


def _share(grafts: Sequence[Judged], holds: Callable[[Judged], bool]) -> float:
    return sum(map(holds, grafts)) / len(grafts)


def test_verdict(benchmark) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(lambda: list(grafts("tabular", 0, quick=True)), rounds=1)
