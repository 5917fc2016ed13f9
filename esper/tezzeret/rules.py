"""How each operator that can be fused is written in Triton, forward and backward. An operator not here is not fused.

What a rule is: rule.py. Why an operator has none: unfused.py. Formulas of the gradients are those of the functions in
esper/blueprint.
"""

from esper.tezzeret import rules_pointwise, rules_rows
from esper.tezzeret.rule import Adjoint, Names, Rule, lines, shares

HELPERS = {
    **rules_pointwise.HELPERS,
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
}


def _norm_forward(n: Names) -> tuple[str, ...]:
    x, i, eps = n.inputs[0], n.number, float(n.attributes["eps"])
    affine = "".join(f" {sign} {p}" for sign, p in zip("*+", n.parameters, strict=False))
    return (
        f"mean{i} = tl.sum(tl.where(inside, {x}, 0.0), axis=1)[:, None] / {n.channels}",
        f"centred{i} = tl.where(inside, {x} - mean{i}, 0.0)",
        f"scale{i} = 1.0 / tl.sqrt(tl.sum(centred{i} * centred{i}, axis=1)[:, None] / {n.channels} + {eps!r})",
        f"unit{i} = centred{i} * scale{i}",
        f"{n.out} = unit{i}{affine}",
    )


def _norm_backward(n: Names) -> Adjoint:
    i = n.number
    times = f" * {n.parameters[0]}" if n.parameters else ""
    before = (
        f"share{i} = tl.where(inside, {n.d}{times}, 0.0)",
        f"along{i} = tl.sum(share{i} * unit{i}, axis=1)[:, None] / {n.channels}",
        f"level{i} = tl.sum(share{i}, axis=1)[:, None] / {n.channels}",
    )
    x = f"scale{i} * (share{i} - level{i} - unit{i} * along{i})"
    return Adjoint(before, (x,), (f"{n.d} * unit{i}", n.d)[: len(n.parameters)])


def _low_rank_forward(n: Names) -> tuple[str, ...]:
    i, (down, _, *bias) = n.number, n.parameters
    return (
        f"outer{i} = {_rounded(f'tl.where(inside, {n.inputs[0]}, 0.0)', down)}",
        f"{n.out} = tl.zeros([ROWS, COLS], tl.float32){''.join(f' + {one}' for one in bias)}",
        *_each_rank(n),
        f"    {n.out} += inner{i} * up{i}",
    )


def _low_rank_backward(n: Names) -> Adjoint:
    """The matrices' gradients are products over all positions, torch's: their factors are kept for it."""
    i, c, rank, (_, up, *bias) = n.number, n.channels, _rank(n), n.parameters
    lines = (
        f"row{i} = sample * positions + position  # [ROWS]",
        f"all{i} = row{i}[:, None] * {c} + channel[None, :]",
        f"behind{i} = {_rounded(f'tl.where(inside, {n.d}, 0.0)', up)}",
        *(
            f"tl.store({word}{i}_ptr + all{i}, {word}{i}.to({word}{i}_ptr.dtype.element_ty), mask=inside)"
            for word in ("outer", "behind")
        ),
        f"ahead{i} = tl.zeros([ROWS, COLS], tl.float32)",
        *_each_rank(n),
        f"    within{i} = {_rounded(f'tl.sum(behind{i} * up{i}, axis=1)[:, None]', up)}",
        f"    ahead{i} += within{i} * down{i}",
        f"    one{i} = row{i}[:, None] * {rank} + rank{i}",
        *(
            f"    tl.store({word}{i}_ptr + one{i}, {word}{i}.to({word}{i}_ptr.dtype.element_ty), "
            "mask=(position < positions)[:, None])"
            for word in ("inner", "within")
        ),
    )
    return Adjoint(lines, (f"ahead{i}",), ("", "", *(n.d for _ in bias)))


def _each_rank(n: Names) -> tuple[str, ...]:
    """The head of a loop: a row of the first matrix, a column of the second, and the values between them."""
    i, c, rank, (down, up, *_) = n.number, n.channels, _rank(n), n.parameters
    tail = f"mask=channel < {c}, other=0).to(tl.float32)[None, :]"
    return (
        f"for rank{i} in range({rank}):",
        f"    down{i} = tl.load({down}_ptr + rank{i} * {c} + channel, {tail}",
        f"    up{i} = tl.load({up}_ptr + channel * {rank} + rank{i}, {tail}",
        f"    inner{i} = {_rounded(f'tl.sum(outer{i} * down{i}, axis=1)[:, None]', down)}  # [ROWS, 1]",
    )


def _rank(n: Names) -> int:
    return int(n.attributes["rank"])


def _rounded(value: str, matrix: str) -> str:
    """To the matrix's type, as torch rounds both factors of a product."""
    return f"{value}.to({matrix}_ptr.dtype.element_ty).to(tl.float32)"


RULES: dict[str, Rule] = {
    **rules_pointwise.RULES,
    **rules_rows.RULES,
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
    "channel_norm": Rule(_norm_forward, _norm_backward),
    "low_rank": Rule(_low_rank_forward, _low_rank_backward),
}
