"""The ranks of a data-parallel run: processes that train one model together, each on a replica of its own.

What passes between them is bytes and tensors, no pickles.
"""

import json
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper import errors
from esper.errors import Conflict, EsperError

_GOOD, _BAD = b"\0", b"\1"


class Ranks:
    """This process's place among the ranks, and what they do together: all of them, in the same order."""

    def __init__(self, device: torch.device) -> None:
        """Of the default process group, whose backend must know `device`, that of the model."""
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._device = device

    @property
    def first(self) -> bool:
        """Whether this is the rank that talks to the runtime."""
        return self.rank == 0

    def share(self, make: Callable[[], bytes]) -> bytes:
        """What `make` returns on the first rank, on all. An EsperError that it raises there is raised on all."""
        said, caught = b"", None
        if self.first:
            try:
                said = _GOOD + make()
            except EsperError as error:
                said, caught = _BAD + _write_error(error), error
        said = self._broadcast(said)
        if caught is not None:
            raise caught
        if said.startswith(_BAD):
            raise _read_error(said[1:])
        return said[1:]

    def gather(self, data: bytes) -> list[bytes]:
        """What every rank gives, by rank, on all."""
        size = torch.tensor([len(data)], device=self._device)
        sizes = [torch.zeros_like(size) for _ in range(self.world)]
        dist.all_gather(sizes, size)
        padded = self._tensor(data.ljust(max(1, *(int(size) for size in sizes)), b"\0"))
        parts = [torch.zeros_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return [_bytes(part)[: int(size)] for part, size in zip(parts, sizes, strict=True)]

    def check_same(self, state: Mapping[str, str]) -> None:
        """Raise Conflict on all ranks, saying where they differ, unless all give the same."""
        texts = self.gather(json.dumps(dict(state)).encode())
        first = json.loads(texts[0])
        for rank, text in enumerate(texts):
            for name, value in json.loads(text).items():
                if value != first[name]:
                    raise Conflict(
                        f"the ranks have parted: {name} is {first[name]} on rank 0 and {value} on rank {rank}; "
                        "every rank must do the same with model, optimiser and session"
                    )

    @torch.no_grad()
    def make_equal(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers of the first one."""
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.numel():
                own = tensor.detach().clone(memory_format=torch.contiguous_format)
                dist.broadcast(own.view(-1).view(torch.uint8), 0)
                tensor.copy_(own)

    def mean(self, flat: Tensor) -> None:
        """Replace a tensor by its mean over the ranks."""
        flat.div_(self.world)  # before the sum, which could overflow, as DDP does
        dist.all_reduce(flat)

    def begin_mean(self, flat: Tensor) -> "dist.Work":
        """As `mean`, while something else is done: its result is there after `wait`."""
        flat.div_(self.world)
        work: dist.Work = dist.all_reduce(flat, async_op=True)
        return work

    def _broadcast(self, data: bytes) -> bytes:
        size = torch.tensor([len(data)], device=self._device)
        dist.broadcast(size, 0)
        buffer = self._tensor(data) if self.first else torch.zeros(int(size), dtype=torch.uint8, device=self._device)
        dist.broadcast(buffer, 0)
        return _bytes(buffer)

    def _tensor(self, data: bytes) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device)


def open_ranks(device: torch.device) -> Ranks | None:
    """The ranks of the default process group, with models on `device`; None where this process trains alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Ranks(device)
    return None


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.cpu().numpy().tobytes())


def _write_error(error: EsperError) -> bytes:
    return json.dumps([type(error).__name__, str(error)]).encode()


def _read_error(data: bytes) -> EsperError:
    name, text = json.loads(data)
    error: EsperError = getattr(errors, name, EsperError)(text)
    return error
