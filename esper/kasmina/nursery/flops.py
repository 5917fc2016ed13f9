"""Count floating-point operations by torch's own counter, once per kind of work."""

from collections.abc import Callable
from typing import TypeVar

from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")


class FlopMeter:
    """Adds up work. The first call of each kind is counted, later ones are taken to cost the same."""

    def __init__(self) -> None:
        self.total = 0.0
        self._cost: dict[object, float] = {}

    def run(self, kind: object, work: Callable[[], Result]) -> Result:
        """Do `work` and add its cost."""
        if kind not in self._cost:
            with FlopCounterMode(display=False) as counter:
                result = work()
            self._cost[kind] = float(counter.get_total_flops())
        else:
            result = work()
        self.total += self._cost[kind]
        return result
