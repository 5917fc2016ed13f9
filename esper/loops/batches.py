"""A task's batches as a dataset, for a trainer that takes its data from a DataLoader."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.utils.data import IterableDataset

from esper.errors import InvalidConfig, PreconditionFailed
from esper.tolaria.task import Batch, Task, load_task

_REMEMBERED_STEPS = 3  # the one in training, the one that a loader fetches ahead, and one to spare


class TaskBatches(IterableDataset[Batch]):
    """The batches of a task's steps, one after the other, without an end or in epochs of `steps_per_epoch` steps.

    An item is a micro-batch: `task.batch(step)` as it is, or, of a task with `accumulate` n, each of its n in turn.
    Without a run the steps are counted here. In a run they follow it: where the run goes back, the next
    item is from the step it went back to.
    """

    def __init__(self, task: str | Task, steps_per_epoch: int = 0) -> None:
        if steps_per_epoch < 0:
            raise InvalidConfig(f"steps_per_epoch must be >= 0, got {steps_per_epoch}")
        self.task = known_task(task)
        self.steps_per_epoch = steps_per_epoch
        self._next_step = 0
        self._steps_done: Callable[[], int] | None = None
        self._given: deque[tuple[int, list[Batch]]] = deque(maxlen=_REMEMBERED_STEPS)

    def __len__(self) -> int:
        """Items of an epoch. Raises TypeError where there is no end, as Python's own endless iterables do."""
        if not self.steps_per_epoch:
            raise TypeError("these batches have no end, so no length; give steps_per_epoch")
        return self.steps_per_epoch * self.task.accumulate

    def __iter__(self) -> Iterator[Batch]:
        if self._steps_done is not None:
            self._next_step = self._steps_done()
        begun = 0
        while not self.steps_per_epoch or begun < self.steps_per_epoch:
            step = self._next_step
            self._next_step, begun = step + 1, begun + 1
            micro_batches = self.task.micro_batches(step)
            self._given.append((step, micro_batches))
            yield from micro_batches

    def follow(self, steps_done: Callable[[], int]) -> None:
        """Be the batches of a run: each iteration begins at the step after those that it has done."""
        self._steps_done = steps_done
        self._next_step = steps_done()

    def go_to(self, step: int) -> None:
        """Give the batch of `step` next."""
        self._next_step = step

    def given(self, step: int) -> list[Batch]:
        """The micro-batches last given for a recent step. Raises PreconditionFailed where none were."""
        for given, micro_batches in reversed(self._given):
            if given == step:
                return micro_batches
        raise PreconditionFailed(
            f"the trainer trains step {step} on batches that are not from its TaskBatches; let it fetch at most "
            "one step ahead, in its own process"
        )


def known_task(task: str | Task) -> Task:
    """The task itself; of "module:callable", what esper.attach would load."""
    return load_task(task, None, (str(Path.cwd()),)) if isinstance(task, str) else task
