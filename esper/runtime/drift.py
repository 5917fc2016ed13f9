"""How far a form of a model is from the float32 model on held-out data, and how long it takes beside it."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from esper.errors import PreconditionFailed
from esper.tolaria.task import VALIDATION, Batch, Task

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Drift:
    """Losses and scores are means over the held-out examples; drifts are relative, 0.01 is 1 %.

    `largest` is the largest difference of an output relative to the largest output, `mean` the mean
    difference relative to the mean magnitude.
    """

    float32_loss: float
    loss: float
    float32_score: float | None
    score: float | None
    largest: float
    mean: float
    examples: int

    @property
    def loss_change(self) -> float:
        """|loss - float32 loss| / |float32 loss|; infinite or not a number where one of them is."""
        difference = abs(self.loss - self.float32_loss)
        return 0.0 if difference == 0 else difference / max(abs(self.float32_loss), 1e-12)


@dataclass(frozen=True, slots=True)
class Latency:
    """Medians of one interleaved loop relative to the float32 model; `control` is that model against itself."""

    ratio: float
    control: float
    rounds: int


def held_out(task: Task) -> list[Batch]:
    """The batches that a form is judged on: those of validation, because the test slice is read once.

    Raises PreconditionFailed where there are none.
    """
    batches = task.examples(VALIDATION)
    if not batches:
        slices = " and ".join(f"held_out({name!r})" for name in VALIDATION)
        raise PreconditionFailed(
            f"task {task.name}: {slices} are empty; a form is judged on held-out data, so give the task some"
        )
    return batches


def measure_drift(task: Task, plain: Run, form: Run, batches: Sequence[Batch]) -> Drift:
    """Both on every batch. Raises PreconditionFailed for a batch that the form does not take, or makes NaN of."""
    losses: tuple[list[Tensor], list[Tensor]] = ([], [])
    scores: tuple[list[Tensor], list[Tensor]] = ([], [])
    largest_difference = largest = difference = magnitude = 0.0
    with torch.no_grad():
        for batch in batches:
            outputs = task.forward(plain, batch), _outputs(task, form, batch)  # type: ignore[arg-type]  # callables
            for side, each in enumerate(outputs):
                losses[side].append(task.loss(each, batch).reshape(-1).double())
                if task.score is not None:
                    scores[side].append(task.score(each, batch).reshape(-1).double())
            for a, b in zip(*map(_floats, outputs), strict=True):
                a, b = _both_finite(a, b)
                apart = (a - b).abs()
                largest_difference = max(largest_difference, _most(apart))
                largest = max(largest, _most(a))
                difference, magnitude = difference + float(apart.sum()), magnitude + float(a.abs().sum())
    (float32_loss, loss), means = (float(torch.cat(each).mean()) for each in losses), [None, None]
    float32_score, score = (float(torch.cat(each).mean()) for each in scores) if scores[0] else means
    return Drift(
        float32_loss,
        loss,
        float32_score,
        score,
        largest_difference / (largest or 1.0),
        difference / (magnitude or 1.0),
        sum(len(_pytree.tree_leaves(batch)[0]) for batch in batches),
    )


def _outputs(task: Task, form: Run, batch: Batch) -> Any:
    try:
        return task.forward(form, batch)  # type: ignore[arg-type]  # a callable
    except Exception as error:  # the form's own check, or torch at a size that it was not made for
        raise PreconditionFailed(
            f"the form does not take a held-out batch of task {task.name} ({type(error).__name__}: {error}); "
            "give the batches one shape, or ask for another form"
        ) from error


def _both_finite(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Their finite elements. Where one is not finite the other must be the same, whatever the loss says."""
    finite = a.isfinite()
    same = torch.equal(finite, b.isfinite()) and torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num())
    if not same:
        raise PreconditionFailed(
            "the form's outputs are infinite or not a number where the float32 model's are not; take another form"
        )
    return a[finite], b[finite]


def _floats(outputs: Any) -> list[Tensor]:
    return [
        leaf.double() for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _most(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def measure_latency(
    task: Task, plain: Run, form: Run, batch: Batch, *, seconds: float = 1.5, rounds: tuple[int, int] = (5, 200)
) -> Latency:
    """Float32, form and float32 again on one batch, round by round in shuffled order, for about `seconds`."""
    runs, order = [plain, form, plain], random.Random(0)
    taken: list[list[float]] = [[], [], []]
    with torch.no_grad():
        for run in runs * 3:  # TorchScript optimises itself in the first calls
            task.forward(run, batch)  # type: ignore[arg-type]  # a callable
        begun = time.perf_counter()
        while len(taken[0]) < rounds[0] or (len(taken[0]) < rounds[1] and time.perf_counter() - begun < seconds):
            for i in order.sample(range(3), 3):  # each after each: what ran before leaves its threads and caches
                start = time.perf_counter()
                task.forward(runs[i], batch)  # type: ignore[arg-type]  # a callable
                taken[i].append(time.perf_counter() - start)
    first, middle, again = map(statistics.median, taken)
    return Latency(middle / first, again / first, len(taken[0]))
