"""The blueprint graph as frozen values. What makes one well formed is check.py's matter."""

import enum
import math
from dataclasses import dataclass

from esper.errors import InvalidBlueprint

VERSION = 1
INPUT = "input"  # the name of the graft's input, the site's output h
MAX_SIZE = 1 << 20
MAX_FACTOR = 4096


@dataclass(frozen=True, slots=True)
class Dimension:
    """A size: max(minimum, floor(channels * multiply / divide)), or `minimum` where not `of_channels`.

    Kept in lowest terms (0 stands for 1, 2/4 becomes 1/2, a constant has no factor), so
    that equal sizes are equal values. Raises InvalidBlueprint for a number out of bounds.
    """

    of_channels: bool = False
    multiply: int = 1
    divide: int = 1
    minimum: int = 1

    def __post_init__(self) -> None:
        limits = {"multiply": MAX_FACTOR, "divide": MAX_FACTOR, "minimum": MAX_SIZE}
        for name, limit in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= limit:
                raise InvalidBlueprint(f"dimension {name} is {value!r}; it must be a whole number, 0 to {limit}")
        multiply, divide = self.multiply or 1, self.divide or 1
        common = math.gcd(multiply, divide)
        object.__setattr__(self, "multiply", multiply // common if self.of_channels else 1)
        object.__setattr__(self, "divide", divide // common if self.of_channels else 1)
        object.__setattr__(self, "minimum", self.minimum or 1)

    def resolve(self, channels: int) -> int:
        """The size for an interface of so many channels."""
        return max(self.minimum, channels * self.multiply // self.divide) if self.of_channels else self.minimum

    def times(self, count: int) -> "Dimension":
        """The size of `count` of this one side by side. Raises InvalidBlueprint where that is out of bounds.

        Of the channels it is exact where no part of a channel was rounded away; operators check that at the interface.
        """
        if not self.of_channels:
            return Dimension(minimum=self.minimum * count)
        common = math.gcd(count, self.divide)
        # a minimum of 1 says no more than that a size is none: it stays
        minimum = 1 if self.minimum == 1 else self.minimum * count
        return Dimension(True, self.multiply * (count // common), self.divide // common, minimum)

    def part(self, count: int) -> "Dimension":
        """The size of one of `count` equal parts. Raises InvalidBlueprint for a constant that has none.

        Of the channels it is rounded down; operators check at the interface that nothing is left over.
        """
        if not self.of_channels:
            if self.minimum % count:
                raise InvalidBlueprint(f"{self} channels have no {count} equal parts")
            return Dimension(minimum=self.minimum // count)
        common = math.gcd(count, self.multiply)
        minimum = max(1, self.minimum // count)
        return Dimension(True, self.multiply // common, self.divide * (count // common), minimum)

    def plus(self, other: "Dimension") -> "Dimension":
        """The size of both side by side. Raises InvalidBlueprint where no dimension says it for every channel count.

        Of the channels it is exact where no part of a channel was rounded away; operators check that at the interface.
        """
        if self == other:
            return self.times(2)
        if not self.of_channels and not other.of_channels:
            return Dimension(minimum=self.minimum + other.minimum)
        if not (self.of_channels and other.of_channels and self.minimum == other.minimum == 1):
            raise InvalidBlueprint(f"{self} and {other} channels have no sum that is one size of the channels")
        divide = math.lcm(self.divide, other.divide)
        multiply = self.multiply * (divide // self.divide) + other.multiply * (divide // other.divide)
        common = math.gcd(multiply, divide)
        return Dimension(True, multiply // common, divide // common)

    def __str__(self) -> str:
        """For people: "8", "4c", "c/4" (at least 1), "max(4, c/4)"."""
        if not self.of_channels:
            return str(self.minimum)
        share = (
            ("" if self.multiply == 1 else str(self.multiply)) + "c" + ("" if self.divide == 1 else f"/{self.divide}")
        )
        return share if self.minimum == 1 else f"max({self.minimum}, {share})"


def of_channels(multiply: int = 1, divide: int = 1, minimum: int = 1) -> Dimension:
    """max(minimum, channels * multiply / divide)."""
    return Dimension(True, multiply, divide, minimum)


def constant(size: int) -> Dimension:
    """The same size at every interface."""
    return Dimension(minimum=size)


CHANNELS = of_channels()
ONE = constant(1)

Attribute = int | float | str | Dimension


class Initialiser(enum.Enum):
    """How a parameter's first values are drawn; fan_in is defined in initialise.py."""

    ZEROS = "zeros"
    ONES = "ones"
    LECUN_UNIFORM = "lecun_uniform"  # +-sqrt(3 / fan_in), LeCun et al. 1998
    HE_UNIFORM = "he_uniform"  # +-sqrt(6 / fan_in), He et al. 2015


@dataclass(frozen=True, slots=True)
class Parameter:
    """A learnable tensor: sizes outermost first."""

    name: str
    shape: tuple[Dimension, ...]
    initialiser: Initialiser


@dataclass(frozen=True, slots=True)
class Node:
    """One operator applied to values. `attributes` are (name, value) pairs, kept sorted by name."""

    name: str
    operator: str
    inputs: tuple[str, ...] = (INPUT,)
    parameters: tuple[str, ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", tuple(sorted(self.attributes, key=lambda pair: pair[0])))


@dataclass(frozen=True, slots=True)
class Graph:
    """A blueprint: g(h) of h's shape. Nodes and parameters in any order."""

    nodes: tuple[Node, ...]
    parameters: tuple[Parameter, ...]
    output: str
    version: int = VERSION
