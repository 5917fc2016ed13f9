"""Library blueprints that look at other positions: convolutions, their gates, and attention."""

from esper.blueprint.ir import CHANNELS, ONE, Graph, Initialiser, constant
from esper.karn.parts import (
    QUARTER_OF_AT_LEAST_4,
    TWICE,
    Part,
    Template,
    depthwise,
    graph_of,
    linear,
    norm,
    part,
    project,
    zero,
)

_HEADS, _WIDTH = 4, constant(32)  # a constant width, so that the heads divide it at every interface


def _projections(*names: str) -> list[Part]:
    return [part(name, "linear", "norm", weight=Initialiser.LECUN_UNIFORM, out=_WIDTH, bias=False) for name in names]


def _attention(gated: bool) -> Graph:
    attend = part("attend", "attention", "query", "key", "value", heads=_HEADS)
    if not gated:
        return graph_of(norm("norm"), *_projections("query", "key", "value"), attend, project("attend", bias=False))
    return graph_of(
        norm("norm"),
        *_projections("query", "key", "value", "gate"),
        attend,
        part("open", "silu", "gate"),
        part("gated", "mul", "open", "attend"),
        project("gated", bias=False),
    )


LIBRARY = (
    Template(
        "inverted_bottleneck",
        "depthwise",
        "Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381",
        graph_of(
            linear("expand", out=TWICE),
            part("active", "relu", "expand"),
            depthwise("near", "active", 3, TWICE),
            part("again", "relu", "near"),
            project("again"),
        ),
    ),
    Template(
        "convnext",
        "depthwise",
        "Liu et al. 2022, A ConvNet for the 2020s, arXiv:2201.03545",
        graph_of(
            depthwise("near", width=7),
            norm("norm", "near"),
            linear("expand", "norm", TWICE),
            part("active", "gelu", "expand"),
            project("active"),
        ),
    ),
    Template(
        "conv_mixer",
        "depthwise",
        "Trockman, Kolter 2022, Patches Are All You Need?, arXiv:2201.09792",
        graph_of(depthwise("near", width=9), part("gelu", "gelu", "near"), norm("norm", "gelu"), project("norm")),
    ),
    Template(
        "conformer_conv",
        "depthwise",
        "Gulati et al. 2020, Conformer: Convolution-augmented Transformer for Speech Recognition, arXiv:2005.08100",
        graph_of(
            norm("norm"),
            linear("gate", "norm"),
            part("open", "sigmoid", "gate"),
            linear("value", "norm"),
            part("gated", "mul", "open", "value"),
            depthwise("near", "gated", 5),
            part("active", "silu", "near"),
            project("active"),
        ),
    ),
    Template(
        "two_scales",
        "depthwise",
        "Szegedy et al. 2015, Going Deeper with Convolutions, arXiv:1409.4842",
        graph_of(
            depthwise("near", width=3),
            depthwise("far", width=7),
            part("both", "add", "near", "far"),
            part("active", "relu", "both"),
            project("active"),
        ),
    ),
    Template(
        "bottleneck_conv",
        "conv",
        "He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385, sec. 4.1",
        graph_of(
            linear("reduce", out=QUARTER_OF_AT_LEAST_4),
            part("active", "relu", "reduce"),
            part("near", "conv", "active", kernel=3, out=QUARTER_OF_AT_LEAST_4),
            part("again", "relu", "near"),
            project("again"),
        ),
    ),
    Template(
        "preactivation_conv",
        "conv",
        "He et al. 2016, Identity Mappings in Deep Residual Networks, arXiv:1603.05027",
        graph_of(
            norm("norm"),
            part("active", "relu", "norm"),
            part("near", "conv", "active", kernel=3, out=CHANNELS),
            part("again", "relu", "near"),
            project("again"),
        ),
    ),
    Template(
        "gated_conv",
        "gate",
        "van den Oord et al. 2016, WaveNet: A Generative Model for Raw Audio, arXiv:1609.03499",
        graph_of(
            depthwise("near"),
            part("filter", "tanh", "near"),
            depthwise("beside"),
            part("open", "sigmoid", "beside"),
            part("gated", "mul", "filter", "open"),
            project("gated"),
        ),
    ),
    Template(
        "large_kernel_attention",
        "gate",
        "Guo et al. 2022, Visual Attention Network, arXiv:2202.09741; two undilated kernels for the dilated one",
        graph_of(
            depthwise("near", width=5),
            depthwise("far", "near", 7),
            linear("mix", "far"),
            part("gated", "mul", "input", "mix"),
            project("gated"),
        ),
    ),
    Template(
        "spatial_gate",
        "gate",
        # tanh from zeros in place of the sigmoid, so that the branch is zero at birth
        "Woo et al. 2018, CBAM: Convolutional Block Attention Module, arXiv:1807.06521",
        graph_of(
            part("near", "conv", "input", kernel=7, out=QUARTER_OF_AT_LEAST_4),
            part("active", "relu", "near"),
            zero("score", "active", ONE),
            part("bounded", "tanh", "score"),
            part("gated", "mul", "input", "bounded"),
        ),
    ),
    Template(
        "four_head_attention",
        "attention",
        "Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762, sec. 3.2.2",
        _attention(gated=False),
    ),
    Template(
        "gated_attention",
        "attention",
        "Hua et al. 2022, Transformer Quality in Linear Time, arXiv:2202.10447",
        _attention(gated=True),
    ),
)
