"""The twin: the same snapshot continued without the graft, on the same batches, schedule and generators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.kasmina.nursery.flops import FlopMeter
from esper.kasmina.nursery.port import HostRun


@dataclass(frozen=True, slots=True)
class Saved:
    """One state of the twin."""

    step: int
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class TwinOutcome:
    saved: list[Saved]
    flops: float


def run_twin(
    run: HostRun,
    save_steps: Sequence[int],
    folder: Path,
    name: str,
    *,
    on_saved: Callable[[Saved, float], None] = lambda _saved, _flops: None,
    stop: Callable[[], bool] = lambda: False,
) -> TwinOutcome:
    """Continue `run` and save its whole state after each of `save_steps` (absolute, ascending) as `<name>-<step>`.

    Ends after the last of them, or when `stop()` says so between two steps.
    """
    meter = FlopMeter()
    saved = []
    for target in save_steps:
        while run.step < target and not stop():
            run.update(meter.run("step", run.gradients))
        if run.step < target:
            break
        path = folder / f"{name}-{run.step}.safetensors"
        run.save(path, model_only=False)
        state = Saved(run.step, path, path.stat().st_size)
        saved.append(state)
        on_saved(state, meter.total)
    return TwinOutcome(saved, meter.total)
