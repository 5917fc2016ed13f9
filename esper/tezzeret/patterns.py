"""Structures that are known to be worthless, read from the graph alone: each with the reason and the remedy.

Only what is provable is refused; an operator without a rule here is taken to pass every gradient on.
"""

from collections.abc import Callable, Iterator, Sequence

from esper.blueprint.canonical import Canonical, canonical
from esper.blueprint.ir import Graph
from esper.blueprint.redundant import redundant
from esper.tezzeret.birth import zeros_at_birth

# (which inputs are zero, which of the given parameters are) -> which inputs a gradient of the result reaches
Passes = Callable[[Sequence[bool], Sequence[bool]], Sequence[bool]]
# The same -> which parameters it reaches.
Reaches = Callable[[Sequence[bool], Sequence[bool]], Sequence[bool]]


def bad_patterns(graph: Graph) -> tuple[str, ...]:
    """Every pattern found; empty: none. Raises InvalidBlueprint where the graph is not well formed."""
    form = canonical(graph)
    return (*_dead(form), *redundant(graph))


def _dead(form: Canonical) -> Iterator[str]:
    """Where no parameter has a gradient at birth, none ever has: nothing moves, so nothing changes."""
    if form.parameters and not _learning(form):
        yield (
            "no parameter gets a gradient at birth, so none ever will: what is zero meets what is zero in a product; "
            "let one of the two start from random values"
        )


def _learning(form: Canonical) -> bool:
    """Whether some parameter's gradient at birth is not zero for every input and loss."""
    zero, first = zeros_at_birth(form)
    reached = [False] * len(zero)
    reached[-1] = True
    for number in range(len(form.steps), 0, -1):
        if not reached[number]:
            continue
        step = form.steps[number - 1]
        inputs, parameters = [zero[i] for i in step.inputs], [first[i] for i in step.parameters]
        passes, reaches = _RULES.get(step.node.operator, _EVERYTHING)
        if any(reaches(inputs, parameters)):
            return True
        for i, passed in zip(step.inputs, passes(inputs, parameters), strict=True):
            reached[i] = reached[i] or passed
    return False


def _weighted(inputs: Sequence[bool], parameters: Sequence[bool]) -> tuple[bool, ...]:
    """d weight = d x, which is zero for x = 0; d bias = d."""
    return (not inputs[0], *[True] * (len(parameters) - 1))


def _through_weight(_inputs: Sequence[bool], parameters: Sequence[bool]) -> tuple[bool, ...]:
    return (not parameters[0],)


def _low_rank(inputs: Sequence[bool], parameters: Sequence[bool]) -> tuple[bool, ...]:
    """Each factor's gradient has the other in it."""
    down, up, *biases = parameters
    return (not (inputs[0] or up), not (inputs[0] or down), *[True] * len(biases))


def _mixture(inputs: Sequence[bool], parameters: Sequence[bool]) -> tuple[bool, ...]:
    """The router learns by what the experts answer."""
    _, experts, *biases = parameters
    return (not (inputs[0] or experts), not inputs[0], *[True] * len(biases))


def _product(inputs: Sequence[bool], _parameters: Sequence[bool]) -> tuple[bool, ...]:
    return (not inputs[1], not inputs[0])


def _attention(inputs: Sequence[bool], _parameters: Sequence[bool]) -> tuple[bool, ...]:
    """Which weights a mean of zeros has does not matter."""
    return (not inputs[2], not inputs[2], True)


def _all_inputs(inputs: Sequence[bool], _parameters: Sequence[bool]) -> tuple[bool, ...]:
    return (True,) * len(inputs)


def _all_parameters(_inputs: Sequence[bool], parameters: Sequence[bool]) -> tuple[bool, ...]:
    return (True,) * len(parameters)


_EVERYTHING: tuple[Passes, Reaches] = (_all_inputs, _all_parameters)
_RULES: dict[str, tuple[Passes, Reaches]] = {
    "linear": (_through_weight, _weighted),
    "conv": (_through_weight, _weighted),
    "scale": (_through_weight, _weighted),
    "low_rank": (lambda _, parameters: (not (parameters[0] or parameters[1]),), _low_rank),
    "mixture": (lambda _, parameters: (not parameters[1],), _mixture),
    "mul": (_product, _all_parameters),
    "attention": (_attention, _all_parameters),
}
