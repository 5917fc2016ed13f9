"""Know which batches the run trained on, so that a twin can train on the same.

A task's `batch(step)` is the record: the step number says it all. At steps 0, 1, 2, 4,
8, ... the batch in hand is compared with what the task gives.
"""

from torch import Tensor
from torch.utils import _pytree

from esper.errors import InvalidRequest
from esper.tolaria.task import Batch, Task, same_batch


def check_batch(task: Task, step: int, batch: Batch) -> None:
    """Raise InvalidRequest where the batch of a step counted from 0 is not the task's own."""
    if step & (step - 1):
        return
    given = _pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, batch)
    if not same_batch(task.batch(step), given):
        raise InvalidRequest(
            f"the batch of step {step} is not what task {task.name!r} gives for it, so a twin would train on "
            "other data: take batches from task.batch(session.steps_done)"
        )
