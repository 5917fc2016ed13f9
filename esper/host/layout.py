"""How a site's output is laid out: which dimension is the batch and which holds channels.

Some classes say it themselves. For the others the probe keeps a trail: where channels
were in the latest output of a layer that does say, and how many examples the batch has.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from esper.blueprint.interface import Kind

CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
)
CHANNELS_LAST = (
    *(nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.TransformerEncoder, nn.TransformerDecoder),
)
# Rank of these classes' output with a batch; one less is a single example, which no graft can take.
_RANKS = ((nn.Conv1d, 3), (nn.Conv2d, 4))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a site's output keeps what a graft needs.

    `transposed`: tokens come as [T, B, C] instead of [B, T, C]. `first_of_tuple`: the
    output is a tuple and the graft joins its first element.
    """

    kind: Kind
    transposed: bool = False
    first_of_tuple: bool = False

    @property
    def channel_dim(self) -> int:
        return 1 if self.kind.channels_first else -1

    @property
    def batch_dim(self) -> int:
        return 1 if self.transposed else 0

    @property
    def position_dim(self) -> int | None:
        """Which dimension is the order of TOKENS and MAP1D; None where there is no order."""
        return {Kind.TOKENS: 1 - self.batch_dim, Kind.MAP1D: 2}.get(self.kind)


@dataclass(slots=True)
class Trail:
    """What the layers called so far have said about layouts."""

    channels_first: bool | None = None
    channels: int = 0
    input_batch: int | None = None  # leading size of the model's first input
    stated_batch: int | None = None  # batch size by a block that knows its batch dimension
    roots: list[Tensor] = field(default_factory=list)  # float inputs and embeddings with an order, in train mode
    closed: bool = False  # nothing more is to be recorded

    def see(self, module: nn.Module, tensor: Tensor) -> None:
        """Remember what `module`'s output says."""
        if tensor.ndim < 3 or self.closed:
            return
        if isinstance(module, nn.Embedding) and tensor.requires_grad:
            self.roots.append(tensor)
        if isinstance(module, CHANNELS_FIRST):
            self.channels_first, self.channels = True, tensor.shape[1]
        elif isinstance(module, CHANNELS_LAST):
            self.channels_first, self.channels = False, tensor.shape[-1]
        batch_first = states_batch_first(module)
        if batch_first is not None and tensor.ndim == 3:
            self.stated_batch = tensor.shape[0 if batch_first else 1]

    def puts_channels_first(self, tensor: Tensor) -> bool:
        """Whether a tensor of rank 3 or 4 has its channels in dimension 1: by their number, else as they were last."""
        second, last = tensor.shape[1] == self.channels, tensor.shape[-1] == self.channels
        if second != last:
            return second
        return tensor.ndim == 4 if self.channels_first is None else self.channels_first

    def is_transposed(self, shape: torch.Size, stated_batch_first: bool | None) -> bool:
        """Whether tokens of this shape are [T, B, C]: by the batch's size, else by what the enclosing block states."""
        batch = self.stated_batch or self.input_batch
        if (shape[0] == batch) != (shape[1] == batch):
            return shape[1] == batch
        return stated_batch_first is False


def layout_of(module: nn.Module, output: object, trail: Trail | None = None) -> tuple[Layout, Tensor] | str:
    """How `module`'s output is laid out, or why no graft can join it."""
    first_of_tuple = isinstance(output, tuple)
    tensor = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return f"its output is {type(output).__name__}, not a floating-point tensor"
    trail = trail or Trail()
    kind = _kind(module, tensor, trail)
    if kind is None:
        return (
            f"its output has shape {list(tensor.shape)}; grafts need 2 to 4 dimensions, "
            "the batch first and a map's channels second"
        )
    transposed = kind is Kind.TOKENS and trail.is_transposed(tensor.shape, states_batch_first(module))
    return Layout(kind, transposed, first_of_tuple), tensor


def states_batch_first(module: nn.Module) -> bool | None:
    """What a module says of its batch dimension; None for most."""
    for owner in (module, getattr(module, "self_attn", None)):
        flag = getattr(owner, "batch_first", None)
        if isinstance(flag, bool):
            return flag
    return None


def _kind(module: nn.Module, tensor: Tensor, trail: Trail) -> Kind | None:
    rank = tensor.ndim
    if any(isinstance(module, cls) and rank != wanted for cls, wanted in _RANKS):
        return None
    if rank == 2:
        return Kind.VECTOR
    if rank not in (3, 4):
        return None
    if isinstance(module, CHANNELS_FIRST + CHANNELS_LAST):
        channels_first = isinstance(module, CHANNELS_FIRST)
    else:
        channels_first = trail.puts_channels_first(tensor)
    if rank == 3:
        return Kind.MAP1D if channels_first else Kind.TOKENS
    return Kind.MAP2D if channels_first else None
