"""Rules of what is over the channels of a position: norms, and a softmax.

All channels of a position are in one program, so that a sum over them is one of the tile, over what is `inside`.
"""

from esper.tezzeret.rule import Adjoint, Names, Rule


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


def _rms_forward(n: Names) -> tuple[str, ...]:
    x, i = n.inputs[0], n.number
    affine = "".join(f" * {weight}" for weight in n.parameters)
    return (
        f"level{i} = tl.sum(tl.where(inside, {x} * {x}, 0.0), axis=1)[:, None] / {n.channels}",
        f"scale{i} = 1.0 / tl.sqrt(level{i} + {n.attributes['eps']!r})",
        f"unit{i} = tl.where(inside, {x}, 0.0) * scale{i}",
        f"{n.out} = unit{i}{affine}",
    )


def _rms_backward(n: Names) -> Adjoint:
    i = n.number
    times = "".join(f" * {weight}" for weight in n.parameters)
    before = (
        f"share{i} = tl.where(inside, {n.d}{times}, 0.0)",
        f"along{i} = tl.sum(share{i} * unit{i}, axis=1)[:, None] / {n.channels}",
    )
    return Adjoint(before, (f"scale{i} * (share{i} - unit{i} * along{i})",), (f"{n.d} * unit{i}",)[: len(n.parameters)])


def _softmax_forward(n: Names) -> tuple[str, ...]:
    x, i = n.inputs[0], n.number
    return (
        f'highest{i} = tl.max(tl.where(inside, {x}, -float("inf")), axis=1)[:, None]',
        f"part{i} = tl.where(inside, tl.exp({x} - highest{i}), 0.0)",
        f"{n.out} = part{i} / tl.sum(part{i}, axis=1)[:, None]",
    )


def _softmax_backward(n: Names) -> Adjoint:
    i = n.number
    before = (
        f"share{i} = tl.where(inside, {n.d} * {n.out}, 0.0)",
        f"along{i} = tl.sum(share{i}, axis=1)[:, None]",
    )
    return Adjoint(before, (f"share{i} - {n.out} * along{i}",))


RULES: dict[str, Rule] = {
    "channel_norm": Rule(_norm_forward, _norm_backward),
    "rms_norm": Rule(_rms_forward, _rms_backward),
    "softmax": Rule(_softmax_forward, _softmax_backward),
}
