"""Know which batches the run trained on, so that a twin can train on the same.

A task's `batch(step)` is the record: the step number says it all. At steps 0, 1, 2, 4,
8, ... the batch in hand is compared with what the task gives.
"""

from typing import Any

from torch import Tensor
from torch.utils import _pytree

from esper.errors import InvalidRequest
from esper.tolaria.task import Batch, Task, same_batch


def shard(batch: Batch, rank: int, world: int) -> Batch:
    """A rank's equal share of a global batch: of B rows of every tensor, B / world in a row.

    Raises InvalidRequest where the rows do not divide: a mean over unequal shares is another mean.
    """

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        count, rest = divmod(len(leaf), world)
        if rest:
            raise InvalidRequest(
                f"a batch of {len(leaf)} rows does not divide among {world} ranks; make batch(step) give a multiple"
            )
        return leaf[rank * count : (rank + 1) * count]

    return batch if world == 1 else _pytree.tree_map(rows, batch)


def is_checked(step: int) -> bool:
    """Whether the batch of this step, counted from 0, is compared."""
    return not step & (step - 1)


def check_batch(task: Task, step: int, batch: Batch, rank: int = 0, world: int = 1) -> None:
    """Raise InvalidRequest where the batch of a step is not the task's own, or the rank's share."""
    given = _pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, batch)
    if not same_batch(shard(task.batch(step), rank, world), given):
        raise InvalidRequest(
            f"the batch of step {step} is not what task {task.name!r} gives for it, so a twin would train on "
            "other data: take batches from task.batch(session.steps_done)"
            + ("" if world == 1 else " and train on session.shard(batch)")
        )
