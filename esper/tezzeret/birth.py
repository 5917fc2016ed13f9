"""Decide, from the graph alone, whether a graft changes nothing at birth: g(h) = 0 for every h.

A value is known to be zero where an operator with zero parameters makes it, or where an
operator that maps zero to zero is given it. What is not known to be zero counts as not.
"""

from collections.abc import Callable, Sequence

from esper.blueprint.canonical import Canonical, canonical
from esper.blueprint.ir import Graph, Initialiser

# (which inputs are zero, which of the given parameters start at zero) -> whether the result is zero
Rule = Callable[[Sequence[bool], Sequence[bool]], bool]


def _weighted(inputs: Sequence[bool], parameters: Sequence[bool]) -> bool:
    """weight . x + bias."""
    return (inputs[0] or parameters[0]) and all(parameters[1:])


def _norm(inputs: Sequence[bool], parameters: Sequence[bool]) -> bool:
    """Its weight may be left out; the mean of zeros is 0, and so is 0 / sqrt(eps)."""
    return (inputs[0] or parameters[:1] == [True]) and all(parameters[1:])


def _unary(inputs: Sequence[bool], _parameters: Sequence[bool]) -> bool:
    """f(0) = 0."""
    return inputs[0]


def _low_rank(inputs: Sequence[bool], parameters: Sequence[bool]) -> bool:
    """up . down . x + bias."""
    return (inputs[0] or parameters[0] or parameters[1]) and all(parameters[2:])


def _mixture(inputs: Sequence[bool], parameters: Sequence[bool]) -> bool:
    """share . expert . x + bias; the router alone makes nothing zero."""
    return (inputs[0] or parameters[1]) and all(parameters[2:])


def _never(_inputs: Sequence[bool], _parameters: Sequence[bool]) -> bool:
    """f(0) is not 0."""
    return False


def _all_zero(inputs: Sequence[bool], parameters: Sequence[bool]) -> bool:
    """Zero where everything it takes is."""
    return all(inputs) and all(parameters)


RULES: dict[str, Rule] = {
    "linear": _weighted,
    "conv": _weighted,
    "scale": _weighted,
    "low_rank": _low_rank,
    "mixture": _mixture,
    "channel_norm": _norm,
    "rms_norm": _norm,
    "group_norm": _norm,
    "position_norm": _norm,
    "add": _all_zero,
    "bias": _all_zero,
    "concat": _all_zero,
    "mul": lambda inputs, _: any(inputs),
    "attention": lambda inputs, _: inputs[2],  # a weighted mean of the values
    "sigmoid": _never,  # 1/2
    "softplus": _never,  # log 2
    "softmax": _never,  # 1 over the channels
    "sinusoid": _never,
    **dict.fromkeys(
        (
            *("relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish", "mish", "tanh", "sine", "leaky_relu", "elu"),
            *("prelu", "glu", "pool_mean", "pool_max", "local_mean", "local_max", "broadcast"),
            *("split", "channel_shuffle", "shift", "flip", "rotary"),
        ),
        _unary,
    ),
}


def zeros_at_birth(form: Canonical) -> tuple[list[bool], list[bool]]:
    """(which values are zero, the input first; which parameters start from zeros)."""
    zero, first = [False], [parameter.initialiser is Initialiser.ZEROS for parameter in form.parameters]
    for step in form.steps:
        rule = RULES[step.node.operator]
        zero.append(rule([zero[i] for i in step.inputs], [first[i] for i in step.parameters]))
    return zero, first


def zero_at_birth(graph: Graph) -> tuple[bool, str]:
    """(answer, reason). Raises InvalidBlueprint where the graph is not well formed."""
    form = canonical(graph)
    zero, _ = zeros_at_birth(form)
    if zero[-1]:
        return True, "the output is zero at birth"
    last = form.steps[-1].node
    return False, (
        f"output {last.name!r} ({last.operator}) is not zero at birth, so grafting it would change the host at once; "
        "let the last operator with parameters start from zeros"
    )
