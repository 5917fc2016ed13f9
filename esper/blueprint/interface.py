"""What a site offers a graft: where the channels are, how many, and of which type."""

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.errors import InvalidRequest

MAX_CHANNELS = 1 << 20


class Kind(enum.Enum):
    """Layout of a site's output."""

    VECTOR = "vector"  # [B, C]
    TOKENS = "tokens"  # [B, T, C]
    MAP1D = "map1d"  # [B, C, L]
    MAP2D = "map2d"  # [B, C, H, W]

    @property
    def position_dims(self) -> int:
        """How many dimensions positions take: 0, 1 or 2."""
        return {"vector": 0, "tokens": 1, "map1d": 1, "map2d": 2}[self.value]

    @property
    def channels_first(self) -> bool:
        return self in (Kind.MAP1D, Kind.MAP2D)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CAUSAL_KINDS = (Kind.TOKENS, Kind.MAP1D)


@dataclass(frozen=True, slots=True)
class Interface:
    """What a graft is lowered for; it maps a tensor of this kind to one of the same shape.

    `causal`: position t of the output may depend on positions <= t only; TOKENS and MAP1D
    alone have an order for that. Raises InvalidRequest for values nothing can be lowered for.
    """

    kind: Kind
    channels: int
    dtype: torch.dtype = torch.float32
    causal: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise InvalidRequest(f"interface channels is {self.channels}; it must be 1 to {MAX_CHANNELS}")
        if self.dtype not in DTYPES:
            raise InvalidRequest(f"interface dtype is {self.dtype}; it must be one of {_names(DTYPES)}")
        if self.causal and self.kind not in _CAUSAL_KINDS:
            raise InvalidRequest(f"interface is causal on {self.kind.value}; only tokens and map1d have an order")

    @property
    def channel_dim(self) -> int:
        """1 for maps, -1 otherwise."""
        return 1 if self.kind.channels_first else -1

    def shape(self, batch: int, *positions: int) -> tuple[int, ...]:
        """Sizes of a tensor of this interface; as many `positions` as the kind has position dimensions."""
        if len(positions) != self.kind.position_dims:
            raise InvalidRequest(
                f"{self} has {self.kind.position_dims} position dimensions, got {len(positions)}: {list(positions)}"
            )
        if self.kind.channels_first:
            return (batch, self.channels, *positions)
        return (batch, *positions, self.channels)

    def example(
        self,
        batch: int,
        *positions: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Standard normal values; drawn on the CPU, so that a generator gives the same ones everywhere."""
        return torch.randn(self.shape(batch, *positions), generator=generator).to(device, self.dtype)

    def __str__(self) -> str:
        return f"{self.kind.value}[{self.channels}] {_name(self.dtype)}" + (" causal" if self.causal else "")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(_name, dtypes))
