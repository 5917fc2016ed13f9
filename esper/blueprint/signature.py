"""What a row of the operator table is made of: settings, parameters, rules, costs and forms."""

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from esper.blueprint.interface import Kind
from esper.blueprint.ir import Attribute, Dimension
from esper.errors import InvalidBlueprint

Attributes = Mapping[str, Attribute]
EVERYWHERE = frozenset(Kind)
WITH_POSITIONS = frozenset({Kind.TOKENS, Kind.MAP1D, Kind.MAP2D})


class Extent(enum.Enum):
    """Which positions a value has: all of the input's, or one that stands for all (kept as size-1 dimensions)."""

    FULL = "full"
    POOLED = "pooled"


class Positions(enum.Enum):
    """How far an operator looks from a position."""

    NONE = "none"
    LOCAL = "local"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class Value:
    """The type of a node's result, for every channel count at once."""

    channels: Dimension
    extent: Extent = Extent.FULL


def need_positions(values: tuple[Value, ...]) -> None:
    """Raises InvalidBlueprint where a value is pooled."""
    if any(value.extent is Extent.POOLED for value in values):
        raise InvalidBlueprint("its input is pooled to one position; it needs all positions")


class Count(NamedTuple):
    """A number that is a polynomial in the positions P of a batch element: a P + b + c P^2."""

    per_position: int = 0
    per_sample: int = 0
    per_pair: int = 0

    def at(self, positions: int) -> int:
        """Of one batch element with so many positions."""
        return self.per_position * positions + self.per_sample + self.per_pair * positions * positions

    def plus(self, other: "Count") -> "Count":
        return Count(*(a + b for a, b in zip(self, other, strict=True)))

    @classmethod
    def over(cls, extent: Extent, amount: int) -> "Count":
        """`amount` for each position a value of this extent has."""
        return cls(per_position=amount) if extent is Extent.FULL else cls(per_sample=amount)


class Cost(NamedTuple):
    """Floating-point operations of one node. `products`: matrix products and convolutions, a multiply-add is 2."""

    products: Count = Count()
    elementwise: Count = Count()


@dataclass(frozen=True, slots=True)
class Setting:
    """An attribute: its type, its bounds, and its default where it may be left out.

    `implied`: left out of the canonical form where it has its default, because graphs were written before it was there.
    """

    name: str
    type: type[int] | type[float] | type[str] | type[Dimension]
    default: Attribute | None = None
    low: float = -math.inf
    high: float = math.inf
    odd: bool = False
    words: tuple[str, ...] = ()
    implied: bool = False

    @property
    def rule(self) -> str:
        if self.type is Dimension:
            return "a dimension"
        if self.type is str:
            return "one of " + ", ".join(self.words)
        noun = ("an odd whole number" if self.odd else "a whole number") if self.type is int else "a real number"
        return f"{noun}, {self.low:g} to {self.high:g}"

    def allows(self, value: Attribute) -> bool:
        if type(value) is not self.type:
            return False
        if isinstance(value, str):
            return value in self.words
        if isinstance(value, Dimension):
            return True
        return self.low <= value <= self.high and (not self.odd or value % 2 == 1)


@dataclass(frozen=True, slots=True)
class Role:
    """A place for a parameter. `per_axis`: the last size is repeated for every position dimension of the kind."""

    name: str
    shape: Callable[[tuple[Value, ...], Attributes], tuple[Dimension, ...]]
    optional: bool = False
    per_axis: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """One operator at one interface: all that a cost rule or a lowering may look at."""

    kind: Kind
    causal: bool
    inputs: tuple[tuple[int, Extent], ...]  # channels and extent of each input
    channels: int  # of the result
    extent: Extent  # of the result
    parameter_count: int  # how many parameters were given; optional ones come last
    attributes: Mapping[str, int | float | str]
    parameter_sizes: tuple[tuple[int, ...], ...] = ()  # as declared, by role; all that the operator could be given

    def integer(self, name: str) -> int:
        value = self.attributes[name]
        assert isinstance(value, int)
        return value


def csv(sizes: Iterable[int]) -> str:
    """Sizes as source: "-1, 8, 1"."""
    return ", ".join(map(str, sizes))


class Form(NamedTuple):
    """An operator at an interface: called on inputs then parameters, and as source with {0}, {1}, ... for these.

    `before`: (word, source) of values that are computed first; what follows writes {word} for them.
    """

    call: Callable[..., Tensor]
    source: str
    before: tuple[tuple[str, str], ...] = ()


def _always(_binding: Binding) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Operator:
    """One row: everything the rest of the package asks about an operator."""

    name: str
    formula: str
    arity: int
    result: Callable[[tuple[Value, ...], Attributes], Value]  # raises InvalidBlueprint
    cost: Callable[[Binding], Cost]
    form: Callable[[Binding], Form]
    roles: tuple[Role, ...] = ()
    settings: tuple[Setting, ...] = ()
    positions: Positions = Positions.NONE
    can_be_causal: bool = True
    kinds: frozenset[Kind] = EVERYWHERE
    commutative: bool = False
    fits: Callable[[Binding], str] = _always  # "" or why this binding cannot be lowered

    @property
    def mixes_positions(self) -> bool:
        return self.positions is not Positions.NONE

    @property
    def required_parameters(self) -> int:
        return sum(not role.optional for role in self.roles)
