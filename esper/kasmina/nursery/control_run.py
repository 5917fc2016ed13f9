"""Train a whole control run: the model as it was, or with its final grafts in place from the start."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from esper.kasmina.nursery.flops import FlopMeter
from esper.kasmina.nursery.measure import Reading, read
from esper.kasmina.nursery.port import HostRun

VALIDATION = ("select", "judge")


@dataclass(slots=True)
class ControlOutcome:
    """The best validated state's test reading, and the losses on the way."""

    test: Reading
    best_validation_loss: float
    best_step: int
    parameter_count: int
    flops: float
    losses: list[tuple[int, float, float]] = field(default_factory=list)  # step, training, validation


def run_control(
    run: HostRun, steps: int, validate_every_steps: int, best_file: Path, *, stop: Callable[[], bool] = lambda: False
) -> ControlOutcome:
    """Train `steps` steps, validate at the period and at the end, return to the best and read the test slice.

    Ends sooner when `stop()` says so between two steps.
    """
    meter = FlopMeter()
    losses: list[tuple[int, float, float]] = []
    mean = best = float("nan")
    best_step = 0
    stopped = run.step >= steps or stop()
    while not losses or not stopped:
        if not stopped:
            loss = meter.run("step", run.gradients)
            run.update(loss)
            mean = float(loss) if mean != mean else mean + 0.02 * (float(loss) - mean)
            stopped = run.step >= steps or stop()
        if run.step % validate_every_steps == 0 or stopped:
            validation = read(run, VALIDATION).loss
            losses.append((run.step, mean, validation))
            if best != best or validation < best:  # a loss that is not a number is better than none at all only
                best, best_step = validation, run.step
                run.save(best_file, model_only=True)
    run.load(best_file)
    parameters = sum(p.numel() for p in run.model.parameters())
    return ControlOutcome(read(run, ("test",)), best, best_step, parameters, meter.total, losses)
