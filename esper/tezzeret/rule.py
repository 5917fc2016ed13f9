"""What a rule of the generator is, and how most are written: lines of Triton with names to fill in.

Values are tiles [positions, channels] in float32, or what broadcasts to one; `inside` marks the elements that exist.
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


def lines(*texts: str) -> Callable[[Names], tuple[str, ...]]:
    """Lines with {o} the result, {x} the first input, {y} the last, {w} the first parameter, {a[name]} an attribute.

    {n} is the step's number, for names of its own; the backward kernel has these lines too.
    """
    return lambda n: tuple(text.format(**_words(n)) for text in texts)


def shares(*inputs: str, parameters: tuple[str, ...] = (), before: tuple[str, ...] = ()) -> Callable[[Names], Adjoint]:
    """An expression for each input and each parameter, after the lines `before`; {d} is the result's gradient."""

    def fill(n: Names) -> Adjoint:
        words = _words(n)
        return Adjoint(*(tuple(text.format(**words) for text in part) for part in (before, inputs, parameters)))

    return fill


def _words(n: Names) -> dict[str, object]:
    return {
        "o": n.out,
        "d": n.d,
        "x": n.inputs[0],
        "y": n.inputs[-1],
        "w": (*n.parameters, "")[0],
        "n": n.number,
        "a": n.attributes,
    }
