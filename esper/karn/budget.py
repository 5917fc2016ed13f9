"""Hold designs to what they may take on a target: a budget, and what is predicted against it."""

from dataclasses import dataclass

from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.errors import InvalidRequest
from esper.karn.predict import Predictor


@dataclass(frozen=True, slots=True)
class Budget:
    """The most on an input of `batch` elements with `positions` positions each, inclusive; 0: no limit."""

    target: str
    batch: int
    positions: int
    max_forward_us: float = 0.0
    max_peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a design is predicted to take; the errors are the predictor's, see there.

    `input_measured`: whether kernels were measured with such an input, which alone the errors speak for.
    """

    target: str
    forward_us: float
    peak_bytes: float
    forward_us_error: float
    peak_bytes_error: float
    measurement_count: int
    input_measured: bool


@dataclass(frozen=True, slots=True)
class Allowance:
    """A budget, and the predictor fitted to its target."""

    budget: Budget
    predictor: Predictor

    def judge(self, graph: Graph, interface: Interface) -> tuple[Prediction, bool, str]:
        """(what it is predicted to take, whether that is within the budget, reason).

        The reason names the limit and not the value, so that the same refusals can be counted. Raises
        InvalidBlueprint where the design cannot be lowered for the interface.
        """
        budget, by = self.budget, self.predictor
        forward_us, peak_bytes = by.predict(graph, interface, budget.batch, budget.positions)
        measured = (interface.kind, interface.dtype, budget.batch, budget.positions) in by.inputs
        prediction = Prediction(
            by.target, forward_us, peak_bytes, by.latency_error, by.memory_error, by.count, measured
        )
        if budget.max_forward_us and forward_us > budget.max_forward_us:
            return prediction, False, f"predicted to take over {budget.max_forward_us:g} us on {by.target}"
        if budget.max_peak_bytes and peak_bytes > budget.max_peak_bytes:
            return prediction, False, f"predicted to need over {budget.max_peak_bytes} bytes on {by.target}"
        return prediction, True, "within the budget"


def check_budget(budget: Budget, interface: Interface) -> None:
    """Raises InvalidRequest where the interface cannot have such an input."""
    if budget.positions != 1 and not interface.kind.position_dims:
        raise InvalidRequest(
            f"budget.positions is {budget.positions}, and {interface} has none; say 1",
            {"budget.positions": "must be 1 for this interface"},
        )
