"""An executor with moments in its optimiser and a seed somewhere in its life."""

from esper.kasmina.lifecycle import State
from tests import builders
from tests.host.optimizers import OPTIMIZERS


def prepared(state=State.DORMANT, optimizer_name="adam", foreach=None, **options):
    """(executor, optimizer, seed) with moments in the optimiser and a seed in `state`."""
    executor = builders.executor()
    optimizer = OPTIMIZERS[optimizer_name](executor.model.parameters(), foreach=foreach)
    builders.train(executor.model, optimizer, [builders.rows(seed=i) for i in range(4)])
    return executor, optimizer, builders.lead(executor, state, optimizer, **options)
