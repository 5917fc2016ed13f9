"""How each operator that can be fused is written in Triton, forward and backward. An operator not here is not fused.

Values are tiles [positions, channels] in float32; `inside` marks the elements that exist. Formulas of the
gradients are those of the functions in esper/blueprint/pointwise.py.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Names(NamedTuple):
    """What a step's lines call its operands: `inputs` and `parameters` are tiles, `d` is the result's gradient.

    A matrix has no tile: its rule reads it where it needs it.
    """

    number: int
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    channels: int
    attributes: Mapping[str, int | float | str]

    @property
    def out(self) -> str:
        return f"v{self.number}"

    @property
    def d(self) -> str:
        return f"d{self.number}"


class Adjoint(NamedTuple):
    """`lines` first, then an expression for the share of each input and each parameter, before any sum.

    That of a matrix is empty: the kernel writes factors of its gradient, the region's `kept`.
    """

    lines: tuple[str, ...]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...] = ()


class Rule(NamedTuple):
    forward: Callable[[Names], tuple[str, ...]]
    backward: Callable[[Names], Adjoint]
    helpers: tuple[str, ...] = ()  # names in HELPERS


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
}


def _one(line: str) -> Callable[[Names], tuple[str, ...]]:
    """`line` with {o} the result, {x} the first input, {y} the second, {w} the first parameter."""
    return lambda n: (line.format(o=n.out, x=n.inputs[0], y=n.inputs[-1], w=(*n.parameters, "")[0]),)


def _shares(*inputs: str, parameters: tuple[str, ...] = (), lines: tuple[str, ...] = ()) -> Callable[[Names], Adjoint]:
    def fill(n: Names) -> Adjoint:
        words = {"o": n.out, "d": n.d, "x": n.inputs[0], "y": n.inputs[-1], "w": (*n.parameters, "")[0], "n": n.number}
        return Adjoint(*(tuple(text.format(**words) for text in part) for part in (lines, inputs, parameters)))

    return fill


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
    lines = (
        f"share{i} = tl.where(inside, {n.d}{times}, 0.0)",
        f"along{i} = tl.sum(share{i} * unit{i}, axis=1)[:, None] / {n.channels}",
        f"level{i} = tl.sum(share{i}, axis=1)[:, None] / {n.channels}",
    )
    x = f"scale{i} * (share{i} - level{i} - unit{i} * along{i})"
    return Adjoint(lines, (x,), (f"{n.d} * unit{i}", n.d)[: len(n.parameters)])


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
    # written so that NaN stays NaN, as in torch
    "relu": Rule(_one("{o} = tl.where({x} <= 0, 0.0, {x})"), _shares("tl.where({x} <= 0, 0.0, {d})")),
    "gelu": Rule(
        _one("{o} = {x} * normal({x})"),
        _shares("{d} * (normal({x}) + {x} * 0.3989422804014327 * tl.exp(-0.5 * {x} * {x}))"),
        ("normal",),
    ),
    "silu": Rule(
        _one("{o} = {x} * sigmoid({x})"),
        _shares("{d} * gate{n} * (1.0 + {x} * (1.0 - gate{n}))", lines=("gate{n} = sigmoid({x})",)),
        ("sigmoid",),
    ),
    "tanh": Rule(_one("{o} = tanh({x})"), _shares("{d} * (1.0 - {o} * {o})"), ("tanh",)),
    "sigmoid": Rule(_one("{o} = sigmoid({x})"), _shares("{d} * {o} * (1.0 - {o})"), ("sigmoid",)),
    "add": Rule(_one("{o} = {x} + {y}"), _shares("{d}", "{d}")),
    "mul": Rule(_one("{o} = {x} * {y}"), _shares("{d} * {y}", "{d} * {x}")),
    "scale": Rule(_one("{o} = {x} * {w}"), _shares("{d} * {w}", parameters=("{d} * {x}",))),
    "channel_norm": Rule(_norm_forward, _norm_backward),
    "low_rank": Rule(_low_rank_forward, _low_rank_backward),
}
