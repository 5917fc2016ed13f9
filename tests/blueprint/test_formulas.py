"""What each operator computes, against torch's own modules or the formula written out in another way."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter, of_channels
from esper.blueprint.lower import lower
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Value

C, T = 8, 6
SHAPES = {Kind.VECTOR: (3, C), Kind.TOKENS: (3, T, C), Kind.MAP1D: (3, C, T), Kind.MAP2D: (3, C, T, 5)}
KINDS = list(SHAPES)
WITH_POSITIONS = KINDS[1:]


def run(operator, h, kind, *weights, causal=False, **attributes):
    """The operator's value, through a graph whose output is it; `weights` take the parameters' places."""
    row = OPERATORS[operator]
    filled = {s.name: s.default for s in row.settings if s.default is not None} | attributes
    inputs = (Value(CHANNELS),) * row.arity
    roles = row.roles[: len(weights)]
    parameters = tuple(Parameter(f"p_{r.name}", r.shape(inputs, filled), Initialiser.ONES) for r in roles)
    node = Node("a", operator, (INPUT,) * row.arity, tuple(p.name for p in parameters), tuple(attributes.items()))
    module = lower(Graph((node,), parameters, "a"), Interface(kind, C, torch.float64, causal))
    with torch.no_grad():
        for p, weight in zip(module.ordered_parameters(), weights, strict=True):
            p.copy_(weight.reshape(p.shape))
        return module(h)


def example(kind):
    return torch.randn(SHAPES[kind], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def first(x, kind):
    """Channels first: [B, C, ...]."""
    return x.transpose(1, 2) if kind is Kind.TOKENS else x


def last(x, kind):
    """Channels last: [B, ..., C]."""
    return x.movedim(1, -1) if kind in (Kind.MAP1D, Kind.MAP2D) else x


def back(x, kind):
    """From channels last."""
    return x.movedim(-1, 1) if kind in (Kind.MAP1D, Kind.MAP2D) else x


@pytest.mark.parametrize(
    ("name", "attributes", "module"),
    [
        ("relu6", {}, nn.ReLU6()),
        ("hardswish", {}, nn.Hardswish()),
        ("mish", {}, nn.Mish()),
        ("softplus", {}, nn.Softplus()),
        ("gelu_tanh", {}, nn.GELU(approximate="tanh")),
        ("leaky_relu", {"slope": 0.2}, nn.LeakyReLU(0.2)),
        ("elu", {"alpha": 0.5}, nn.ELU(0.5)),
        ("softmax", {}, nn.Softmax(-1)),
        ("rms_norm", {"eps": 1e-3}, nn.RMSNorm(C, eps=1e-3, elementwise_affine=False)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_operators_at_one_position_are_torchs(name, attributes, module, kind):
    h = example(kind)
    torch.testing.assert_close(run(name, h, kind, **attributes), back(module(last(h, kind)), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_a_channel_meet_their_channel(kind):
    h, w, b = example(kind), drawn(C), drawn(C) + 1
    x = last(h, kind)
    torch.testing.assert_close(run("bias", h, kind, b), back(x + b, kind))
    torch.testing.assert_close(run("prelu", h, kind, w), back(x.clamp(min=0) + w * x.clamp(max=0), kind))
    torch.testing.assert_close(run("rms_norm", h, kind, w), back(F.rms_norm(x, [C], w, 1e-5), kind))


@pytest.mark.parametrize("kind", WITH_POSITIONS)
def test_norms_over_positions_are_torchs(kind):
    h, w, b = example(kind), drawn(C), drawn(C) + 1
    want = F.group_norm(first(h, kind), 4, w, b)
    torch.testing.assert_close(run("group_norm", h, kind, w, b, groups=4), first(want, kind))
    want = F.instance_norm(first(h, kind), weight=w, bias=b)
    torch.testing.assert_close(run("position_norm", h, kind, w, b), first(want, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_low_rank_product_is_the_product(kind):
    h, down, up, b = example(kind), drawn(2, C), drawn(C, 2), drawn(C)
    want = back(last(h, kind) @ (up @ down).T + b, kind)
    rank = of_channels(divide=4)
    torch.testing.assert_close(run("low_rank", h, kind, down, up, b, out=CHANNELS, rank=rank), want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixture_asks_the_expert_that_the_router_prefers(kind):
    h, router, experts, b = example(kind), drawn(3, C), drawn(3, C, C), drawn(C)
    x = last(h, kind).reshape(-1, C)
    want = []
    for row in x:
        shares = (router @ row).softmax(0)
        k = int(shares.argmax())
        want.append(shares[k] * (experts[k] @ row) + b)
    want = back(torch.stack(want).reshape(last(h, kind).shape), kind)
    torch.testing.assert_close(run("mixture", h, kind, router, experts, b, experts=3, out=CHANNELS), want)


def through_glu(gate, h, kind):
    """glu over [h, 2 h]."""
    nodes = (
        Node("two", "add", (INPUT, INPUT)),
        Node("both", "concat", (INPUT, "two")),
        Node("a", "glu", ("both",), (), (("gate", gate),)),
    )
    return lower(Graph(nodes, (), "a"), Interface(kind, C, torch.float64))(h)


@pytest.mark.parametrize(
    ("gate", "call"),
    [("sigmoid", torch.sigmoid), ("silu", F.silu), ("gelu", F.gelu), ("relu", torch.relu), ("tanh", torch.tanh)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_is_the_second_half_and_concat_keeps_the_order(gate, call, kind):
    h = example(kind)
    torch.testing.assert_close(through_glu(gate, h, kind), h * call(2 * h))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("groups", ["dense", "depthwise", "2", "4"])
@pytest.mark.parametrize("dilation", [1, 3])
def test_a_convolution_with_groups_and_dilation_is_torchs(dims, groups, dilation):
    count = {"dense": 1, "depthwise": C}.get(groups) or int(groups)
    module = (nn.Conv1d, nn.Conv2d)[dims - 1](C, C, 3, padding=dilation, dilation=dilation, groups=count).double()
    kind = (Kind.MAP1D, Kind.MAP2D)[dims - 1]
    h = example(kind)
    asked = {"kernel": 3, "groups": groups, "dilation": dilation, "out": CHANNELS}
    got = run("conv", h, kind, module.weight, module.bias, **asked)
    torch.testing.assert_close(got, module(h))
    if dims == 1:
        tokens = run("conv", h.mT, Kind.TOKENS, module.weight, module.bias, **asked)
        torch.testing.assert_close(tokens, module(h).mT)


def test_a_causal_dilated_convolution_reaches_back_by_its_dilation():
    h = example(Kind.MAP1D)
    weight = torch.zeros(C, 1, 3, dtype=torch.float64)
    weight[:, :, 0] = 1
    got = run("conv", h, Kind.MAP1D, weight, kernel=3, groups="depthwise", dilation=2, out=CHANNELS, causal=True)
    assert torch.equal(got[:, :, 4:], h[:, :, :-4])
    assert not got[:, :, :4].any()


@pytest.mark.parametrize("kind", WITH_POSITIONS)
def test_local_pools_are_torchs(kind):
    h = example(kind)
    x = first(h, kind)
    mean, most = (nn.AvgPool2d, nn.MaxPool2d) if kind is Kind.MAP2D else (nn.AvgPool1d, nn.MaxPool1d)
    torch.testing.assert_close(run("local_mean", h, kind, kernel=3), first(mean(3, 1, 1)(x), kind))
    torch.testing.assert_close(run("local_max", h, kind, kernel=5), first(most(5, 1, 2)(x), kind))


def test_causal_local_pools_look_back_only():
    h = example(Kind.TOKENS)
    mean, most = (run(name, h, Kind.TOKENS, kernel=3, causal=True) for name in ("local_mean", "local_max"))
    for t in range(T):
        seen = h[:, max(0, t - 2) : t + 1]
        torch.testing.assert_close(mean[:, t], seen.sum(1) / 3)
        torch.testing.assert_close(most[:, t], seen.amax(1))


@pytest.mark.parametrize("kind", WITH_POSITIONS)
@pytest.mark.parametrize("pool", ["pool_mean", "pool_max"])
def test_what_is_pooled_and_broadcast_is_the_same_everywhere(kind, pool):
    h = example(kind)
    nodes = (Node("p", pool), Node("a", "broadcast", ("p", INPUT)))
    got = last(lower(Graph(nodes, (), "a"), Interface(kind, C, torch.float64))(h), kind).reshape(3, -1, C)
    x = last(h, kind).reshape(3, -1, C)
    want = x.mean(1) if pool == "pool_mean" else x.amax(1)
    torch.testing.assert_close(got, want.unsqueeze(1).expand_as(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shuffle_and_parts_are_torchs(kind):
    h = example(kind)
    x = last(h, kind)
    want = x.reshape(*x.shape[:-1], 2, 4).transpose(-2, -1).reshape(x.shape)
    assert torch.equal(run("channel_shuffle", h, kind, groups=2), back(want, kind))
    nodes = (
        *(Node(f"p{i}", "split", (INPUT,), (), (("part", i), ("parts", 4))) for i in range(4)),
        Node("low", "concat", ("p3", "p2")),
        Node("high", "concat", ("p1", "p0")),
        Node("a", "concat", ("low", "high")),
    )
    got = lower(Graph(nodes, (), "a"), Interface(kind, C, torch.float64))(h)
    assert torch.equal(got, back(torch.cat(x.chunk(4, -1)[::-1], -1), kind))


@pytest.mark.parametrize("kind", WITH_POSITIONS)
@pytest.mark.parametrize("by", [-8, -2, 1, 3])
def test_a_shift_moves_positions_and_fills_with_zeros(kind, by):
    h = example(kind)
    for axis in range(kind.position_dims):
        dim = (1 if kind is Kind.TOKENS else 2) + axis
        want = torch.zeros_like(h)
        size = h.size(dim)
        for t in range(size):
            if 0 <= t - by < size:
                want.select(dim, t).copy_(h.select(dim, t - by))
        assert torch.equal(run("shift", h, kind, by=by, axis=axis), want)


@pytest.mark.parametrize("kind", WITH_POSITIONS)
def test_a_flip_turns_every_position_dimension(kind):
    h = example(kind)
    dims = [1] if kind is Kind.TOKENS else list(range(2, h.dim()))
    assert torch.equal(run("flip", h, kind), h.flip(dims))


def attention(x, heads, seen, bias=0.0):
    """[B, T, C] of attention with queries, keys and values x; `seen` [T, T] of booleans, `bias` [H, T, T]."""
    q = x.reshape(3, T, heads, -1).transpose(1, 2)
    scores = q @ q.mT / math.sqrt(q.size(-1)) + bias
    return (scores.masked_fill(~seen, -math.inf).softmax(-1) @ q).transpose(1, 2).reshape(3, T, C)


@pytest.mark.parametrize("kind", [Kind.TOKENS, Kind.MAP1D])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("bias", ["none", "alibi"])
def test_a_window_and_alibi_are_masks_of_the_scores(kind, causal, window, bias):
    h, heads = example(kind), 4
    ahead = torch.arange(T) - torch.arange(T).unsqueeze(1)
    seen = torch.ones(T, T, dtype=torch.bool)
    if window:
        seen &= ahead.abs() < window
    if causal:
        seen &= ahead <= 0
    slopes = torch.tensor([2.0 ** (-8 * (i + 1) / heads) for i in range(heads)], dtype=torch.float64)
    added = -slopes.view(heads, 1, 1) * ahead.abs() if bias == "alibi" else 0.0
    got = run("attention", h, kind, heads=heads, window=window, bias=bias, causal=causal)
    torch.testing.assert_close(got, back(attention(last(h, kind), heads, seen, added), kind))


@pytest.mark.parametrize("kind", WITH_POSITIONS)
def test_queries_that_share_a_key_and_value_are_repeated_ones(kind):
    """Two heads on each key: attention over keys whose heads are written twice."""
    half = of_channels(divide=2)
    nodes = (
        Node("few", "split", (INPUT,), (), (("part", 0), ("parts", 2))),
        Node("a", "attention", (INPUT, "few", "few"), (), (("heads", 4), ("sharing", 2))),
    )
    h = example(kind)
    got = last(lower(Graph(nodes, (), "a"), Interface(kind, C, torch.float64))(h), kind).reshape(3, -1, C)
    x = last(h, kind).reshape(3, -1, C)
    q = x.unflatten(-1, [4, 2]).transpose(1, 2)
    k = x[..., :4].unflatten(-1, [2, 2]).transpose(1, 2).repeat_interleave(2, 1)
    want = ((q @ k.mT / math.sqrt(2)).softmax(-1) @ k).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got, want)
    assert half.times(2) == CHANNELS


@pytest.mark.parametrize("kind", [Kind.TOKENS, Kind.MAP1D])
def test_rotary_turns_pairs_as_complex_numbers(kind):
    h, heads, base = example(kind), 2, 100.0
    x = last(h, kind).unflatten(-1, [heads, 2, 2])
    pairs = torch.complex(x[..., 0, :], x[..., 1, :])
    angle = torch.tensor([[t * base ** (-i / 2) for i in range(2)] for t in range(T)], dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angle), angle).unsqueeze(1)
    want = torch.stack([turned.real, turned.imag], -2).flatten(2)
    torch.testing.assert_close(run("rotary", h, kind, heads=heads, base=base), back(want, kind), rtol=1e-5, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    h = example(Kind.TOKENS)[:, :1].expand(-1, T, -1).contiguous()  # the same token everywhere
    turned = run("rotary", h, Kind.TOKENS)
    scores = turned @ turned.mT
    for distance in range(1, T):
        diagonal = scores.diagonal(distance, 1, 2)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Kind.TOKENS, Kind.MAP1D])
def test_a_sinusoid_is_added(kind):
    h = example(kind)
    waves = torch.zeros(T, C, dtype=torch.float64)
    for t in range(T):
        for i in range(C // 2):
            waves[t, i] = math.sin(t * 50.0 ** (-i / (C // 2)))
            waves[t, C // 2 + i] = math.cos(t * 50.0 ** (-i / (C // 2)))
    want = back(last(h, kind) + waves, kind)
    torch.testing.assert_close(run("sinusoid", h, kind, base=50.0), want, rtol=1e-5, atol=1e-5)
