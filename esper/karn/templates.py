"""The template library: blueprints as data, each from a published building block.

The first nine are here, written out; the families of library_gates.py and library_positional.py use parts.py.
"""

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
)
from esper.karn import library_gates, library_positional
from esper.karn.parts import FOUR, HALF, QUARTER, QUARTER_OF_AT_LEAST_4, Template

__all__ = ["TEMPLATES", "Template"]


def _matrix(name: str, out: Dimension, fan_in: Dimension, initialiser: Initialiser) -> Parameter:
    return Parameter(name, (out, fan_in), initialiser)


def _kernel(name: str, fan_in: Dimension, width: int) -> Parameter:
    return Parameter(name, (CHANNELS, fan_in, constant(width)), Initialiser.HE_UNIFORM)


def _vector(name: str, size: Dimension = CHANNELS, initialiser: Initialiser = Initialiser.ZEROS) -> Parameter:
    return Parameter(name, (size,), initialiser)


def _linear(name: str, source: str, out: Dimension, *parameters: str) -> Node:
    return Node(name, "linear", (source,), parameters, (("out", out),))


def _conv(name: str, width: int, groups: str, *parameters: str) -> Node:
    return Node(name, "conv", (INPUT,), parameters, (("groups", groups), ("kernel", width), ("out", CHANNELS)))


def _mlp(hidden: Dimension, activation: str) -> Graph:
    """Two linear layers with biases, the second zero."""
    return Graph(
        nodes=(
            _linear("expand", INPUT, hidden, "expand_weight", "expand_bias"),
            Node("active", activation, ("expand",)),
            _linear("project", "active", CHANNELS, "project_weight", "project_bias"),
        ),
        parameters=(
            _matrix("expand_weight", hidden, CHANNELS, Initialiser.HE_UNIFORM),
            _vector("expand_bias", hidden),
            _matrix("project_weight", CHANNELS, hidden, Initialiser.ZEROS),
            _vector("project_bias"),
        ),
        output="project",
    )


def _convolution(width: int, groups: str, activation: str) -> Graph:
    """A convolution, an activation and a zero 1-wide linear layer."""
    return Graph(
        nodes=(
            _conv("near", width, groups, "near_weight", "near_bias"),
            Node("active", activation, ("near",)),
            _linear("project", "active", CHANNELS, "project_weight", "project_bias"),
        ),
        parameters=(
            _kernel("near_weight", ONE if groups == "depthwise" else CHANNELS, width),
            _vector("near_bias"),
            _matrix("project_weight", CHANNELS, CHANNELS, Initialiser.ZEROS),
            _vector("project_bias"),
        ),
        output="project",
    )


def _low_rank() -> Graph:
    return Graph(
        nodes=(
            _linear("down", INPUT, QUARTER, "down_weight"),
            _linear("up", "down", CHANNELS, "up_weight"),
        ),
        parameters=(
            _matrix("down_weight", QUARTER, CHANNELS, Initialiser.LECUN_UNIFORM),
            _matrix("up_weight", CHANNELS, QUARTER, Initialiser.ZEROS),
        ),
        output="up",
    )


def _squeeze_excitation() -> Graph:
    """h tanh(W2 relu(W1 mean(h) + b1) + b2): tanh instead of the paper's sigmoid, so that zero W2 and b2 give zero."""
    return Graph(
        nodes=(
            Node("squeeze", "pool_mean"),
            _linear("reduce", "squeeze", QUARTER_OF_AT_LEAST_4, "reduce_weight", "reduce_bias"),
            Node("active", "relu", ("reduce",)),
            _linear("excite", "active", CHANNELS, "excite_weight", "excite_bias"),
            Node("gate", "tanh", ("excite",)),
            Node("gated", "mul", (INPUT, "gate")),
        ),
        parameters=(
            _matrix("reduce_weight", QUARTER_OF_AT_LEAST_4, CHANNELS, Initialiser.HE_UNIFORM),
            _vector("reduce_bias", QUARTER_OF_AT_LEAST_4),
            _matrix("excite_weight", CHANNELS, QUARTER_OF_AT_LEAST_4, Initialiser.ZEROS),
            _vector("excite_bias"),
        ),
        output="gated",
    )


def _normalisation() -> Graph:
    return Graph(
        nodes=(Node("norm", "channel_norm", (INPUT,), ("norm_weight", "norm_bias")),),
        parameters=(_vector("norm_weight"), _vector("norm_bias")),
        output="norm",
    )


def _single_head_attention() -> Graph:
    width = QUARTER_OF_AT_LEAST_4
    return Graph(
        nodes=(
            Node("norm", "channel_norm", (INPUT,), ("norm_weight", "norm_bias")),
            *(_linear(name, "norm", width, f"{name}_weight") for name in ("query", "key", "value")),
            Node("attend", "attention", ("query", "key", "value"), (), (("heads", 1),)),
            _linear("project", "attend", CHANNELS, "project_weight"),
        ),
        parameters=(
            _vector("norm_weight", initialiser=Initialiser.ONES),
            _vector("norm_bias"),
            *(
                _matrix(f"{name}_weight", width, CHANNELS, Initialiser.LECUN_UNIFORM)
                for name in ("query", "key", "value")
            ),
            _matrix("project_weight", CHANNELS, width, Initialiser.ZEROS),
        ),
        output="project",
    )


_LIBRARY = (
    Template(
        "bottleneck_mlp",
        "mlp",
        "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv:1902.00751",
        _mlp(HALF, "gelu"),
    ),
    Template(
        "causal_depthwise",
        "depthwise",
        "So et al. 2021, Primer: Searching for Efficient Transformers for Language Modeling, arXiv:2109.08668",
        _convolution(5, "depthwise", "gelu"),
    ),
    Template(
        "conv3",
        "conv",
        # one dense convolution and a 1-wide zero layer: nonlinear at 10/18 of the price of two convolutions,
        # and a single convolution would only be a linear correction to the layer it follows
        "He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385",
        _convolution(3, "dense", "relu"),
    ),
    Template(
        "depthwise_separable",
        "depthwise",
        "Chollet 2017, Xception, arXiv:1610.02357; Howard et al. 2017, MobileNets, arXiv:1704.04861",
        _convolution(3, "depthwise", "relu"),
    ),
    Template(
        "low_rank",
        "low_rank",
        "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685",
        _low_rank(),
    ),
    Template(
        "normalisation",
        "norm",
        "Ba, Kiros, Hinton 2016, Layer Normalization, arXiv:1607.06450",
        _normalisation(),
    ),
    Template(
        "single_head_attention",
        "attention",
        "Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762; norm first: Xiong et al. 2020, "
        "On Layer Normalization in the Transformer Architecture, arXiv:2002.04745",
        _single_head_attention(),
    ),
    Template(
        "squeeze_excitation",
        "gate",
        "Hu, Shen, Sun 2018, Squeeze-and-Excitation Networks, arXiv:1709.01507",
        _squeeze_excitation(),
    ),
    Template(
        "wide_mlp",
        "mlp",
        "Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762, sec. 3.3",
        _mlp(FOUR, "relu"),
    ),
)

TEMPLATES: dict[str, Template] = {
    template.title: template for template in (*_LIBRARY, *library_gates.LIBRARY, *library_positional.LIBRARY)
}
