"""Rules of what has one value for each value: sums, products, scales, activations, a pooled value at all positions.

Formulas are those of torch's own kernels for a GPU: NaN stays NaN, at a kink the gradient is of torch's side, and what
overflows there does so here.
"""

from esper.tezzeret.rule import Rule, lines, shares

HELPERS = {
    "sigmoid": """@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))
""",
    "tanh": '''@triton.jit
def tanh(x):
    """Near 0 by its series, where 1 - exp(-2 |x|) has lost its digits."""
    t = tl.exp(-2.0 * tl.abs(x))
    far = tl.where(x < 0, -1.0, 1.0) * (1.0 - t) / (1.0 + t)
    s = x * x
    near = x * (1.0 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315 - s * (62 / 2835)))))
    return tl.where(tl.abs(x) < 0.25, near, far)
''',
    "normal": '''@triton.jit
def normal(x):
    """Probability that a standard normal number is below x."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
''',
    "expm1": '''@triton.jit
def expm1(x):
    """exp(x) - 1; near 0 by its series, where the difference has lost its digits."""
    near = x * (1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * (1.0 + x / 5 * (1.0 + x / 6 * (1.0 + x / 7))))))
    return tl.where(tl.abs(x) < 0.25, near, tl.exp(x) - 1.0)
''',
    "log1p": '''@triton.jit
def log1p(x):
    """log(1 + x) for x from 0 to 1, which is 2 atanh(x / (2 + x)), by its series: a logarithm near 1 has few digits."""
    z = x / (2.0 + x)
    s = z * z
    return 2.0 * z * (1.0 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9 + s * (1 / 11 + s / 13))))))
''',
    "mish_gate": '''@triton.jit
def mish_gate(x):
    """(t, 1 - t), t = tanh(log(1 + exp(x))); no exponential is over 1, and neither has lost its digits."""
    e = tl.exp(-tl.abs(x))
    t = tl.where(x < 0, e * (e + 2.0), 1.0 + 2.0 * e)
    rest = tl.where(x < 0, 2.0, 2.0 * e * e)
    return t / (t + rest), rest / (t + rest)
''',
    "two_over_pi": '''@triton.jit
def two_over_pi(word):
    """32 binary digits of 2 / pi: of word 1 the first after the point."""
    digits = word * 0  # in 64 bits, as word
    digits = tl.where(word == 1, 0xA2F9836E, digits)
    digits = tl.where(word == 2, 0x4E441529, digits)
    digits = tl.where(word == 3, 0xFC2757D1, digits)
    digits = tl.where(word == 4, 0xF534DDC0, digits)
    digits = tl.where(word == 5, 0xDB629599, digits)
    digits = tl.where(word == 6, 0x3C439041, digits)
    return digits
''',
    "wave": '''@triton.jit
def wave(x, quarters):
    """sin(x + quarters pi / 2). tl.sin, for large x, has a table on the stack.

    x 2 / pi modulo 4 (Payne and Hanek 1983): 24 digits of x times the 64 of 2 / pi that matter to it, modulo 2^64.
    """
    bits = x.to(tl.int32, bitcast=True)
    exponent = ((bits >> 23) & 255).to(tl.int64)
    digits = ((bits & 0x7FFFFF) | 0x800000).to(tl.int64)  # |x| is digits 2^(exponent - 150)
    first = tl.maximum(exponent - 120, 0)  # place among the digits of 2 / pi, 32 being the first after the point
    word, shift = first >> 5, first & 31
    window = ((two_over_pi(word) << 32) | two_over_pi(word + 1)) << shift
    window = window | (two_over_pi(word + 2) >> (32 - shift))
    turned = window * tl.where(x < 0, -digits, digits)  # in 2^-62 quarter turns
    far = tl.abs(x) > 0.78
    nearest = tl.where(far, (turned + (1 << 61)) >> 62, 0)
    r = tl.where(far, (turned - (nearest << 62)).to(tl.float32) * 3.4061215800865545e-19, x)  # pi / 2 of 2^-62
    s = r * r
    sine = r * (1.0 - s / 6 * (1.0 - s / 20 * (1.0 - s / 42 * (1.0 - s / 72))))
    cosine = 1.0 - s / 2 * (1.0 - s / 12 * (1.0 - s / 30 * (1.0 - s / 56 * (1.0 - s / 90))))
    quarter = (nearest + quarters) & 3
    value = tl.where((quarter & 1) == 0, sine, cosine)
    value = tl.where(quarter < 2, value, -value)
    return tl.where(x - x == 0.0, value, x - x)
''',
}

RULES: dict[str, Rule] = {
    # written so that NaN stays NaN, as in torch
    "relu": Rule(lines("{o} = tl.where({x} <= 0, 0.0, {x})"), shares("tl.where({x} <= 0, 0.0, {d})")),
    "gelu": Rule(
        lines("{o} = {x} * normal({x})"),
        shares("{d} * (normal({x}) + {x} * 0.3989422804014327 * tl.exp(-0.5 * {x} * {x}))"),
        ("normal",),
    ),
    "silu": Rule(
        lines("{o} = {x} * sigmoid({x})"),
        shares("{d} * gate{n} * (1.0 + {x} * (1.0 - gate{n}))", before=("gate{n} = sigmoid({x})",)),
        ("sigmoid",),
    ),
    "tanh": Rule(lines("{o} = tanh({x})"), shares("{d} * (1.0 - {o} * {o})"), ("tanh",)),
    "sigmoid": Rule(lines("{o} = sigmoid({x})"), shares("{d} * {o} * (1.0 - {o})"), ("sigmoid",)),
    "add": Rule(lines("{o} = {x} + {y}"), shares("{d}", "{d}")),
    "mul": Rule(lines("{o} = {x} * {y}"), shares("{d} * {y}", "{d} * {x}")),
    "scale": Rule(lines("{o} = {x} * {w}"), shares("{d} * {w}", parameters=("{d} * {x}",))),
    "bias": Rule(lines("{o} = {x} + {w}"), shares("{d}", parameters=("{d}",))),
    "broadcast": Rule(
        lines("{o} = tl.broadcast_to({x}, [ROWS, COLS])"), shares("{d}", "tl.zeros([ROWS, COLS], tl.float32)")
    ),
    "relu6": Rule(
        lines("{o} = tl.where({x} <= 0, 0.0, tl.where({x} >= 6, 6.0, {x}))"),
        shares("tl.where(({x} <= 0) | ({x} >= 6), 0.0, {d})"),
    ),
    "leaky_relu": Rule(
        lines("{o} = tl.where({x} > 0, {x}, {x} * {a[slope]!r})"), shares("tl.where({x} > 0, {d}, {d} * {a[slope]!r})")
    ),
    "prelu": Rule(
        lines("{o} = tl.where({x} > 0, {x}, {x} * {w})"),
        shares("tl.where({x} > 0, {d}, {d} * {w})", parameters=("tl.where({x} > 0, 0.0, {d}) * {x}",)),
    ),
    "elu": Rule(
        lines("{o} = tl.where({x} <= 0, {a[alpha]!r} * expm1({x}), {x})"),
        shares("tl.where({x} <= 0, {d} * {a[alpha]!r} * tl.exp({x}), {d})"),
        ("expm1",),
    ),
    "gelu_tanh": Rule(  # (1 + tanh(u)) / 2 is sigmoid(2 u), in fewer registers
        lines(
            "bend{n} = 1.5957691216057308 * ({x} + 0.044715 * {x} * {x} * {x})",
            "gate{n} = sigmoid(bend{n})",
            "{o} = {x} * gate{n}",
        ),
        shares(
            "{d} * gate{n} * (1.0 + {x} * sigmoid(-bend{n}) * steep{n})",
            before=("steep{n} = 1.5957691216057308 * (1.0 + 0.134145 * {x} * {x})",),
        ),
        ("sigmoid",),
    ),
    "hardswish": Rule(
        lines("{o} = {x} * tl.where({x} <= -3, 0.0, tl.where({x} >= 3, 6.0, {x} + 3.0)) / 6"),
        shares("tl.where({x} <= -3, 0.0, tl.where({x} < 3, {d} * ({x} / 3 + 0.5), {d}))"),
    ),
    "mish": Rule(
        lines("gate{n}, rest{n} = mish_gate({x})", "{o} = {x} * gate{n}"),
        shares("{d} * (gate{n} + {x} * sigmoid({x}) * rest{n} * (1.0 + gate{n}))"),
        ("mish_gate", "sigmoid"),
    ),
    "softplus": Rule(
        lines("{o} = tl.where({x} > 0, {x}, 0.0) + log1p(tl.exp(-tl.abs({x})))"),
        shares("{d} * sigmoid({x})"),
        ("log1p", "sigmoid"),
    ),
    "sine": Rule(lines("{o} = wave({x}, 0)"), shares("{d} * wave({x}, 1)"), ("two_over_pi", "wave")),
}
