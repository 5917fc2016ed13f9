"""Random interfaces and random well-formed graphs, and ways to write the same graph differently."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import (
    CHANNELS,
    INPUT,
    ONE,
    Dimension,
    Graph,
    Initialiser,
    Node,
    Parameter,
    constant,
    of_channels,
)
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Extent, Value
from esper.errors import InvalidBlueprint
from esper.karn.grammar import allowed
from esper.karn.grammar import result as typed

SIZES = [CHANNELS, of_channels(divide=2), of_channels(2), of_channels(3, 4, 2), constant(4), ONE]
ACTIVATIONS = [name for name, row in OPERATORS.items() if not row.roles and not row.mixes_positions and row.arity == 1]
# enough for graphs that a vector has too
POINTWISE = ["relu", "gelu", "silu", "tanh", "sigmoid", "channel_norm", "scale", "linear", "add", "mul"]
# graphs of these fit most interfaces, whatever the interface
COMMON = [*POINTWISE, "conv", "attention", "pool_mean", "low_rank", "rms_norm", "elu", "bias", "pool_max", "local_mean"]


def interfaces(kinds=tuple(Kind), most_channels=12, dtypes=(torch.float32,)):
    def build(kind, count, dtype, causal):
        return Interface(kind, count, dtype, causal and kind in (Kind.TOKENS, Kind.MAP1D))

    return st.builds(
        build, st.sampled_from(list(kinds)), st.integers(2, most_channels), st.sampled_from(list(dtypes)), st.booleans()
    )


def positions(interface):
    """Sizes of the position dimensions, one and odd ones among them."""
    return st.tuples(*[st.integers(1, 7)] * interface.kind.position_dims)


class _Builder:
    """Puts down nodes that are well formed and, where an `interface` is given, fit it."""

    def __init__(self, draw, interface=None):
        self.draw = draw
        self.interface = interface
        self.nodes: list[Node] = []
        self.parameters: list[Parameter] = []
        self.values: dict[str, Value] = {INPUT: Value(CHANNELS)}

    def parameter(self, shape):
        """A parameter of this shape: sometimes one that is used already."""
        alike = [p.name for p in self.parameters if p.shape == tuple(shape)]
        if alike and self.draw(st.booleans()):
            return self.draw(st.sampled_from(alike))
        initialiser = self.draw(st.sampled_from([Initialiser.LECUN_UNIFORM, Initialiser.ONES]))
        self.parameters.append(Parameter(f"p{len(self.parameters)}", tuple(shape), initialiser))
        return self.parameters[-1].name

    def node(self, operator, inputs, **attributes):
        row = OPERATORS[operator]
        values = tuple(self.values[name] for name in inputs)
        filled = {s.name: s.default for s in row.settings if s.default is not None} | attributes
        try:
            result = row.result(values, filled)
        except InvalidBlueprint:
            return None
        count = self.draw(st.integers(row.required_parameters, len(row.roles)))
        if self.interface and typed(row, values, attributes, count, self.interface) is None:
            return None
        parameters = [self.parameter(role.shape(values, filled)) for role in row.roles[:count]]
        name = f"n{len(self.nodes)}"
        self.nodes.append(Node(name, operator, tuple(inputs), tuple(parameters), tuple(attributes.items())))
        self.values[name] = result
        return name

    def pick(self, allowed=lambda value: True):
        found = [name for name, value in self.values.items() if allowed(value)]
        return self.draw(st.sampled_from(found)) if found else None

    def inputs(self, operator):
        if operator == "broadcast":
            return [self.pick(lambda v: not _is_full(v)), self.pick(_is_full)]
        first = self.pick(_is_full if OPERATORS[operator].mixes_positions else lambda v: True)
        if operator == "attention":
            width = self.values[first].channels
            return [first, self.pick(lambda v: _is_full(v) and v.channels == width), self.pick(_is_full)]
        if operator == "concat":
            return [first, self.pick(lambda v: v.extent is self.values[first].extent)]
        if OPERATORS[operator].arity == 2:
            mine = self.values[first].channels
            return [first, self.pick(lambda v: mine == v.channels or ONE in (mine, v.channels))]
        return [first]

    def grow(self, operator):
        """A node, or None where what was drawn does not go together."""
        inputs = self.inputs(operator)
        if None in inputs:
            return None
        attributes = self.draw(attributes_of(operator))
        if attributes.get("groups") == "depthwise":
            attributes["out"] = self.values[inputs[0]].channels
        return self.node(operator, inputs, **attributes)

    def finish(self):
        """Join whatever is not used yet into one output of the input's shape."""
        used = {name for node in self.nodes for name in node.inputs}
        total = INPUT
        for name in [node.name for node in self.nodes if node.name not in used]:
            if self.values[name].channels not in (CHANNELS, ONE):
                name = self.node("linear", [name], out=CHANNELS)
            total = self.node("add", [total, name])
        return Graph(tuple(self.nodes), tuple(self.parameters), total)


def _is_full(value):
    return value.extent is Extent.FULL


def attributes_of(operator):
    """Values for the operator's settings; those with a default are sometimes left out."""
    kinds = {}
    for setting in OPERATORS[operator].settings:
        if setting.type is Dimension:
            one = st.sampled_from(SIZES)
        elif setting.type is str:
            one = st.sampled_from(setting.words)
        elif setting.type is int:
            one = st.sampled_from([n for n in (-2, 0, 1, 2, 3, 4, 5) if setting.allows(n)])
        else:
            one = st.sampled_from([value for value in (0.25, 1.0, 100.0) if setting.allows(value)])
        kinds[setting.name] = one if setting.default is None else st.one_of(st.just(setting.default), one)
    optional = {s.name for s in OPERATORS[operator].settings if s.default is not None}
    needed = {name: one for name, one in kinds.items() if name not in optional}
    return st.fixed_dictionaries(needed, optional={name: kinds[name] for name in optional})


@st.composite
def graphs(draw, operators=tuple(COMMON), most=6, interface=None):
    """A well-formed graph over `operators`; every value is used. With an interface, it fits that."""
    builder = _Builder(draw, interface)
    for _ in range(draw(st.integers(1, most))):
        builder.grow(draw(st.sampled_from(list(operators))))
    if not builder.nodes:
        builder.node("tanh", [INPUT])
    return builder.finish()


@st.composite
def cases(draw, interface=None, operators=tuple(OPERATORS), most=6):
    """(graph, interface), the graph over those of `operators` that the interface allows, and fitting it."""
    at = draw(interfaces() if interface is None else interface)
    there = [row.name for row in allowed(at) if row.name in operators]
    return draw(graphs(there, most, at)), at


@st.composite
def single(draw, operator, interface):
    """A graph around one node of `operator` that fits the interface, or None where the draw does not go together."""
    builder = _Builder(draw, interface)
    if operator == "broadcast":
        builder.node("pool_mean", [INPUT])
    # a second value, so that two inputs differ; twice as wide, so that it has halves
    builder.node("linear", [INPUT], out=draw(st.sampled_from([CHANNELS, of_channels(2)])))
    if builder.grow(operator) is None:
        return None
    return builder.finish()


def renamed(graph, random):
    """The same graph under other names."""
    nodes = [n.name for n in graph.nodes]
    parameters = [p.name for p in graph.parameters]
    fresh = random.sample([f"other_{i}" for i in range(len(nodes) + len(parameters))], len(nodes) + len(parameters))
    node_names = dict(zip(nodes, fresh, strict=False)) | {INPUT: INPUT}
    names = dict(zip(parameters, fresh[len(nodes) :], strict=True))
    return Graph(
        tuple(
            replace(
                n,
                name=node_names[n.name],
                inputs=tuple(node_names[i] for i in n.inputs),
                parameters=tuple(names[p] for p in n.parameters),
            )
            for n in graph.nodes
        ),
        tuple(replace(p, name=names[p.name]) for p in graph.parameters),
        node_names[graph.output],
    )


def reordered(graph, random):
    """The same graph with its lists shuffled."""
    return replace(
        graph,
        nodes=tuple(random.sample(graph.nodes, len(graph.nodes))),
        parameters=tuple(random.sample(graph.parameters, len(graph.parameters))),
    )


def commuted(graph, random):
    """The same graph with the arguments of some sums and products exchanged."""
    return replace(
        graph,
        nodes=tuple(
            replace(n, inputs=n.inputs[::-1]) if n.operator in ("add", "mul") and random.random() < 0.5 else n
            for n in graph.nodes
        ),
    )


def bigger(size: Dimension) -> Dimension:
    """Another dimension of the same form."""
    return replace(size, minimum=size.minimum + 1)
