"""Library blueprints that look at one position: gated and normalised layers, scales, thin adapters."""

from esper.blueprint.ir import INPUT, Initialiser, of_channels
from esper.karn.parts import FOUR, HALF, TWICE, Part, Template, graph_of, linear, norm, part, project, zero

_EIGHTH = of_channels(divide=8, minimum=4)
_SHAZEER = "Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202"


def _gated(activation: str) -> tuple[Part, ...]:
    """activation(W h) times V h, then a zero linear layer."""
    return (
        linear("gate", out=TWICE, bias=False),
        part("open", activation, "gate"),
        linear("value", out=TWICE, bias=False),
        part("gated", "mul", "open", "value"),
        project("gated", bias=False),
    )


LIBRARY = (
    Template(
        "glu_mlp",
        "gate",
        "Dauphin et al. 2017, Language Modeling with Gated Convolutional Networks, arXiv:1612.08083",
        graph_of(*_gated("sigmoid")),
    ),
    Template("swiglu_mlp", "gate", _SHAZEER, graph_of(*_gated("silu"))),
    Template("geglu_mlp", "gate", _SHAZEER, graph_of(*_gated("gelu"))),
    Template(
        "highway",
        "gate",
        "Srivastava, Greff, Schmidhuber 2015, Highway Networks, arXiv:1505.00387",
        graph_of(
            linear("transform"),
            part("gate", "sigmoid", "transform"),
            zero("carry"),
            part("bounded", "tanh", "carry"),
            part("gated", "mul", "gate", "bounded"),
        ),
    ),
    Template(
        "squared_relu_mlp",
        "mlp",
        "So et al. 2021, Primer: Searching for Efficient Transformers for Language Modeling, arXiv:2109.08668",
        graph_of(
            linear("expand", out=TWICE),
            part("active", "relu", "expand"),
            part("squared", "mul", "active", "active"),
            project("squared"),
        ),
    ),
    Template(
        "swish_mlp",
        "mlp",
        "Ramachandran, Zoph, Le 2017, Searching for Activation Functions, arXiv:1710.05941",
        graph_of(linear("expand", out=TWICE), part("active", "silu", "expand"), project("active")),
    ),
    Template(
        "prenorm_mlp",
        "mlp",
        "Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv:2002.04745",
        graph_of(norm("norm"), linear("expand", "norm", FOUR), part("active", "gelu", "expand"), project("active")),
    ),
    Template(
        "layer_scale_mlp",
        "mlp",
        "Touvron et al. 2021, Going deeper with Image Transformers, arXiv:2103.17239; from zeros: "
        "Bachlechner et al. 2020, ReZero is All You Need, arXiv:2003.04887",
        graph_of(
            norm("norm"),
            linear("expand", "norm", HALF),
            part("active", "gelu", "expand"),
            linear("back", "active"),
            part("scaled", "scale", "back", weight=Initialiser.ZEROS),
        ),
    ),
    Template(
        "thin_adapter",
        "low_rank",
        "He et al. 2022, Towards a Unified View of Parameter-Efficient Transfer Learning, arXiv:2110.04366",
        graph_of(linear("down", out=_EIGHTH), part("active", "relu", "down"), project("active")),
    ),
    Template(
        "channel_scale",
        "scale",
        "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper (IA3), arXiv:2205.05638",
        graph_of(part("scaled", "scale", INPUT, weight=Initialiser.ZEROS)),
    ),
)
