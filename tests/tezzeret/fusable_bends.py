"""Graphs with the rules that tests/tezzeret/fusable.py has not: activations, norms over channels, a broadcast."""

from esper.blueprint.ir import CHANNELS, INPUT, ONE, Graph, Initialiser, Node, Parameter

_DRAWN = Initialiser.LECUN_UNIFORM
_VECTORS = tuple(Parameter(name, (CHANNELS,), _DRAWN) for name in ("w", "b"))
# operator -> parameters, attributes
BENDS = {
    "bias": (("b",), ()),
    "elu": ((), (("alpha", 1.5),)),
    "gelu_tanh": ((), ()),
    "hardswish": ((), ()),
    "leaky_relu": ((), (("slope", 0.1),)),
    "mish": ((), ()),
    "prelu": (("w",), ()),
    "relu6": ((), ()),
    "sine": ((), ()),
    "softplus": ((), ()),
}
ROW_RULES = {"rms_norm": (("w",), ()), "softmax": ((), ())}

KINKED = ("bias", "hardswish", "leaky_relu", "prelu", "relu6")


def _added(operators: list[str]) -> Graph:
    """Each operator of the same values, times a parameter of its own and added up: one region."""
    first, *others = operators
    sums = [f"times_{first}", *(f"sum_{name}" for name in others)]
    given = {name: BENDS[name] for name in operators}
    own = ["w", *(["b"] if "bias" in operators else []), *(f"s_{name}" for name in operators)]
    return Graph(
        (
            Node("wide", "scale", (INPUT,), ("w",)),
            *(Node(name, name, ("wide",), *given[name]) for name in operators),
            *(Node(f"times_{name}", "scale", (name,), (f"s_{name}",)) for name in operators),
            *(Node(f"sum_{name}", "add", (sums[at], f"times_{name}")) for at, name in enumerate(others)),
        ),
        tuple(Parameter(name, (CHANNELS,), _DRAWN) for name in own),
        sums[-1],
    )


# norms one after another, with and without a weight, and a softmax of what they make
NORMS = Graph(
    (
        Node("normed", "rms_norm", (INPUT,), ("w",)),
        Node("shifted", "bias", ("normed",), ("b",)),
        Node("plain", "rms_norm", ("shifted",)),
        Node("shares", "softmax", ("plain",)),
        Node("gated", "mul", ("shares", "shifted")),
        Node("out", "rms_norm", ("gated",)),
    ),
    _VECTORS,
    "out",
)
# a pooled value given to all positions of the input, of a value in the region, and of one channel
SPREAD = Graph(
    (
        Node("pooled", "pool_mean", (INPUT,)),
        Node("first", "broadcast", ("pooled", INPUT)),
        Node("bent", "mish", ("first",)),
        Node("scaled", "scale", ("bent",), ("w",)),
        Node("level", "linear", ("pooled",), ("m",), (("out", CHANNELS),)),
        Node("second", "broadcast", ("level", "scaled")),
        Node("mask", "linear", (INPUT,), ("one",), (("out", ONE),)),
        Node("third", "broadcast", ("level", "mask")),
        Node("product", "mul", ("second", "scaled")),
        Node("masked", "mul", ("product", "mask")),
        Node("sum", "add", ("masked", INPUT)),
        Node("wave", "sine", ("third",)),
        Node("out", "add", ("sum", "wave")),
    ),
    (_VECTORS[0], Parameter("m", (CHANNELS, CHANNELS), _DRAWN), Parameter("one", (ONE, CHANNELS), _DRAWN)),
    "out",
)
MORE = {
    "kinked": _added([*KINKED]),
    "smooth": _added([name for name in BENDS if name not in KINKED]),
    "norms": NORMS,
    "spread": SPREAD,
}


def alone(operator: str) -> Graph:
    """The operator, and a scale, which with ones changes nothing: a region takes two steps at least."""
    parameters, attributes = (BENDS | ROW_RULES).get(operator, ((), ()))
    used = tuple(one for one in _VECTORS if one.name in parameters)
    return Graph(
        (Node("bent", operator, (INPUT,), parameters, attributes), Node("out", "scale", ("bent",), ("ones",))),
        (*used, Parameter("ones", (CHANNELS,), Initialiser.ONES)),
        "out",
    )
