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

SIZES = [CHANNELS, of_channels(divide=2), of_channels(2), of_channels(3, 4, 2), constant(4), ONE]
ACTIVATIONS = ["relu", "gelu", "silu", "tanh", "sigmoid"]
POINTWISE = [*ACTIVATIONS, "channel_norm", "scale", "linear", "add", "mul"]


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
    def __init__(self, draw):
        self.draw = draw
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
        defaults = {s.name: s.default for s in row.settings if s.default is not None}
        given = defaults | attributes
        count = self.draw(st.integers(row.required_parameters, len(row.roles)))
        parameters = [self.parameter(role.shape(values, given)) for role in row.roles[:count]]
        name = f"n{len(self.nodes)}"
        self.nodes.append(Node(name, operator, tuple(inputs), tuple(parameters), tuple(attributes.items())))
        self.values[name] = row.result(values, given)
        return name

    def pick(self, allowed=lambda value: True):
        return self.draw(st.sampled_from([name for name, value in self.values.items() if allowed(value)]))

    def grow(self, operator):
        if operator == "linear":
            return self.node("linear", [self.pick()], out=self.draw(st.sampled_from(SIZES)))
        if operator == "conv":
            source = self.pick(_is_full)
            depthwise = self.draw(st.booleans())
            out = self.values[source].channels if depthwise else self.draw(st.sampled_from(SIZES))
            kernel = self.draw(st.sampled_from([1, 3, 5]))
            return self.node("conv", [source], out=out, kernel=kernel, groups="depthwise" if depthwise else "dense")
        if operator == "attention":
            query = self.pick(_is_full)
            key = self.pick(lambda v: _is_full(v) and v.channels == self.values[query].channels)
            return self.node("attention", [query, key, self.pick(_is_full)])
        if operator == "channel_norm":
            return self.node("channel_norm", [self.pick(lambda v: v.channels in (CHANNELS, constant(4)))])
        if operator in ("add", "mul"):
            first = self.pick()
            mine = self.values[first].channels
            second = self.pick(lambda v: mine == v.channels or ONE in (mine, v.channels))
            return self.node(operator, [first, second])
        return self.node(operator, [self.pick(_is_full if operator == "pool_mean" else lambda v: True)])

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


@st.composite
def graphs(draw, operators=tuple(OPERATORS), most=6):
    """A well-formed graph over `operators`; every value is used."""
    builder = _Builder(draw)
    for _ in range(draw(st.integers(1, most))):
        builder.grow(draw(st.sampled_from(list(operators))))
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
