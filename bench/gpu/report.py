"""One table of what ran: steps, tests by name, benches."""

from collections import Counter
from collections.abc import Iterator, Sequence

from bench.gpu.outcomes import Outcome
from bench.gpu.steps import Ended
from bench.row import Row

Line = tuple[str, str, str, str]  # part, name, result, detail
HEADING: Line = ("part", "name", "result", "detail")
RESULTS = ("passed", "failed", "stopped", "skipped")


def table(ended: Sequence[Ended], tests: Sequence[Outcome], memcheck: Sequence[Outcome], rows: Sequence[Row]) -> str:
    """Columns of text. Tests are one line a function, one a failure and one a reason to skip."""
    lines = [HEADING, *map(step_line, ended), *test_lines("test", tests), *test_lines("memcheck", memcheck)]
    lines += map(row_line, rows)
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[3]]).rstrip() for line in lines)


def step_line(step: Ended) -> Line:
    return "step", step.name, step.result, f"{step.seconds:.0f} s{'; ' if step.detail else ''}{step.detail}"


def test_lines(part: str, outcomes: Sequence[Outcome]) -> Iterator[Line]:
    for function in dict.fromkeys(outcome.function for outcome in outcomes):
        of_it = [outcome for outcome in outcomes if outcome.function == function]
        counts = Counter(outcome.result for outcome in of_it)
        worst = next(result for result in ("failed", "stopped", "skipped", "passed") if counts[result])
        yield part, function, worst, ", ".join(f"{counts[result]} {result}" for result in RESULTS if counts[result])
        yield from ((part, o.test, o.result, o.reason) for o in of_it if o.result in ("failed", "stopped"))
        skips = Counter(o.reason for o in of_it if o.result == "skipped")
        yield from ((part, f"{function}, {count} of {len(of_it)}", "skipped", why) for why, count in skips.items())


def row_line(row: Row) -> Line:
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    target = "" if row.target is None else f"target {row.target:g}"
    noise = "" if row.aa_low is None or row.aa_high is None else f"A/A {row.aa_low:.3f} to {row.aa_high:.3f}"
    against = f"against {row.baseline}" if row.baseline else ""
    said = [f"{row.metric} {row.value:.4g} {row.unit}", target, noise, against]
    return "bench", f"{row.bench} {row.case}", verdict, "; ".join(filter(None, said))


def failed(ended: Sequence[Ended], tests: Sequence[Outcome]) -> bool:
    """Whether anything that ran did not succeed, or no test passed. What is absent is said, and no failure."""
    broken = any(step.result in ("failed", "stopped") for step in ended)
    left_out = any(step.result == "not run" and step.name != "memcheck" for step in ended)
    return broken or left_out or not any(outcome.result == "passed" for outcome in tests)
