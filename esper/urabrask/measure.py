"""How fast a kernel is and how much memory a step of it takes, each beside the reference lowering's."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from esper.artifact.agree import difference
from esper.artifact.script import CompiledForm
from esper.urabrask.checks import Finding
from esper.urabrask.subject import Subject, limit_of

WARM_UP = 3
FEWEST_RUNS = 5
BUDGET_S = 5.0
MAX_RATIO = 5.0  # of time, and of memory, to the reference lowering's
MAX_FORWARD_US = 1e6
SLACK_BYTES = 1 << 20
ROUNDS = 5
MAX_VARIATION = 0.05  # from round to round; above it times say nothing about the kernel


@dataclass(frozen=True, slots=True)
class Speed:
    """Wall time on one thread, in microseconds.

    `throughput_per_s`: batch elements of a forward per second at the median. `run_variation`: standard
    deviation of the medians of ROUNDS runs, one after the other, over their mean; `reference_variation`: that of the
    reference lowering's, which no candidate has a hand in. `fastest_ratio`: the fastest forward over the reference
    lowering's fastest, which other load hardly moves.
    """

    forward_us_p50: float
    forward_us_p99: float
    step_us_p50: float
    reference_us_p50: float
    throughput_per_s: float
    run_variation: float
    reference_variation: float
    fastest_ratio: float
    runs: int

    @property
    def ratio(self) -> float:
        """The time that counts over the reference lowering's; below 1 is faster.

        Of medians where the machine was steady for the reference, of the fastest where it was not.
        """
        if self.reference_variation <= MAX_VARIATION:
            return max(self.fastest_ratio, self.forward_us_p50 / self.reference_us_p50)
        return self.fastest_ratio

    @property
    def measurable(self) -> bool:
        """Whether the runs agree well enough for the times to be the kernel's and not the machine's."""
        return self.run_variation <= MAX_VARIATION


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of input, parameters, activations and gradients at the peak of one forward and backward."""

    peak_bytes: int
    reference_peak_bytes: int


@dataclass(frozen=True, slots=True)
class Drift:
    """Largest difference of the output from the float64 reference's over its largest value, in the interface's type.

    Of the compiled form, and of the reference lowering in that type: below it the form is the more exact.
    """

    form: float
    reference: float


def check_drift(subject: Subject) -> tuple[Finding, Drift]:
    """How far the type's precision carries the value from the reference's, on the input that is timed."""
    h, dtype = subject.measured(), subject.interface.dtype
    with torch.no_grad():
        want = subject.reference(h.double(), *[weight.double() for weight in subject.weights])
        seen = [difference(form(h, *subject.weights).double(), want) for form in (subject.form, subject.lowering)]
    drift = Drift(*seen)
    limit = limit_of(dtype, drift.reference)
    detail = (
        f"output off by {drift.form:.3g} of the largest value, limit {limit:.3g}; the lowering's {drift.reference:.3g}"
    )
    return Finding(drift.form <= limit, detail), drift


def check_latency(subject: Subject, runs: int) -> tuple[Finding, Speed]:
    """Forward time, within MAX_FORWARD_US and, see `Speed.ratio`, MAX_RATIO times the reference lowering's."""
    speed = measure_speed(subject, runs)
    agree = f"runs vary by {speed.run_variation:.1%}, at most {MAX_VARIATION:.0%}"
    detail = (
        f"forward p50 {speed.forward_us_p50:.0f} us, p99 {speed.forward_us_p99:.0f} us, at most {MAX_FORWARD_US:.0f}; "
        f"{speed.ratio:.2f} times the reference's, at most {MAX_RATIO:g}; "
        f"step p50 {speed.step_us_p50:.0f} us; {speed.throughput_per_s:.0f} inputs/s; "
        f"{agree if speed.measurable else f'not measurable here: {agree}'}"
    )
    return Finding(speed.forward_us_p50 <= MAX_FORWARD_US and speed.ratio <= MAX_RATIO, detail), speed


def check_memory(subject: Subject) -> tuple[Finding, Memory]:
    """Peak bytes of a step, within MAX_RATIO times the reference lowering's and SLACK_BYTES."""
    memory = measure_memory(subject)
    limit = int(MAX_RATIO * memory.reference_peak_bytes) + SLACK_BYTES
    detail = f"peak of a step {memory.peak_bytes} bytes, at most {limit}; reference {memory.reference_peak_bytes}"
    return Finding(memory.peak_bytes <= limit, detail), memory


def measure_speed(subject: Subject, runs: int) -> Speed:
    """Form and reference take turns, so that whatever else the machine does meets both alike.

    Fewer runs than asked for, but FEWEST_RUNS at least, where they take longer than BUDGET_S.
    """
    h = subject.measured()
    forms = (subject.form, subject.lowering)
    forward, reference, step = list[float](), list[float](), list[float]()
    leaves = [tensor.clone().requires_grad_() for tensor in (h, *subject.weights)]
    deadline = time.perf_counter() + BUDGET_S
    for i in range(runs + WARM_UP):
        if i >= FEWEST_RUNS + WARM_UP and time.perf_counter() > deadline:
            break
        with torch.no_grad():
            one = _us(lambda: forms[0](h, *subject.weights))
            other = _us(lambda: forms[1](h, *subject.weights))
        both = _us(lambda: _step(subject.form, leaves))
        if i >= WARM_UP:
            forward.append(one)
            reference.append(other)
            step.append(both)
    cuts = statistics.quantiles(forward, n=100, method="inclusive")
    return Speed(
        forward_us_p50=statistics.median(forward),
        forward_us_p99=cuts[98],
        step_us_p50=statistics.median(step),
        reference_us_p50=statistics.median(reference),
        throughput_per_s=1e6 * h.size(0) / statistics.median(forward),
        run_variation=_variation(forward),
        reference_variation=_variation(reference),
        fastest_ratio=min(forward) / min(reference),
        runs=len(forward),
    )


def _variation(times: list[float]) -> float:
    """Standard deviation over mean of the medians of ROUNDS runs of equal length."""
    length = max(1, len(times) // ROUNDS)
    medians = [statistics.median(times[i * length : (i + 1) * length]) for i in range(min(ROUNDS, len(times)))]
    return statistics.pstdev(medians) / statistics.mean(medians)


def measure_memory(subject: Subject) -> Memory:
    """What torch's allocator was asked for during one step, by its own profiler; not what the process maps."""
    peaks = [_peak_bytes(subject, form) for form in (subject.form, subject.lowering)]
    return Memory(*peaks)


def warm_profiler() -> None:
    """The profiler starts a thread at its first use, which an isolated process may not."""
    with profile(profile_memory=True):
        torch.ones(1)


def _peak_bytes(subject: Subject, form: CompiledForm) -> int:
    leaves = [tensor.clone().requires_grad_() for tensor in (subject.measured(), *subject.weights)]
    held = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    for _ in range(3):  # TorchScript has optimised after the second
        _step(form, leaves)
    with profile(profile_memory=True) as seen:
        gradients = _step(form, leaves)
    del gradients
    events = [event for event in seen.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return held + peak


def _step(form: CompiledForm, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(form(*leaves).sum(), leaves)


def _us(call: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e3
