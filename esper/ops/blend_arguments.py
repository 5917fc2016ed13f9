"""What blend accepts. Each refusal names the argument, the value, the limit and the remedy."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from esper.errors import InvalidRequest, ShapeMismatch

Spans = Sequence[tuple[int, int]]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # those whose alphas are float32


def checked(
    host: Tensor,
    seeds: Sequence[Tensor],
    alphas: Tensor | Sequence[Tensor],
    spans: Spans | None,
    channel_dim: int,
    convex: bool,
) -> tuple[list[Tensor], Tensor, list[int], int]:
    """(seeds, alphas [S], start and stop of each slot in turn, channel_dim counted from the front).

    Raises ShapeMismatch and InvalidRequest.
    """
    if spans is None and _usual(host, seeds, alphas, channel_dim):
        return seeds, alphas, [0, host.shape[channel_dim]], channel_dim % host.ndim  # type: ignore[return-value]
    check_host("host", host)
    dim = check_channel_dim(host, channel_dim)
    if not seeds:
        refuse(InvalidRequest, "seeds", "is empty; with no seed there is nothing to blend, use host itself")
    channels = host.shape[dim]
    pairs = [(0, channels)] * len(seeds) if spans is None else spans
    if len(pairs) != len(seeds):
        refuse(
            ShapeMismatch, "spans", f"has {len(pairs)} entries for {len(seeds)} seeds; give one (start, stop) a seed"
        )
    check_spans(pairs, channels, convex)
    made = [_seed(f"seeds[{s}]", seed, host, dim, pairs[s]) for s, seed in enumerate(seeds)]
    return made, _alphas(alphas, host, len(seeds)), [bound for pair in pairs for bound in pair], dim


def _usual(host: Tensor, seeds: Sequence[Tensor], alphas: Tensor | Sequence[Tensor], channel_dim: int) -> bool:
    """Whether this is one seed over the whole host with nothing wrong: 1 us, where naming what is wrong costs 6."""
    if len(seeds) != 1 or type(alphas) is not Tensor or alphas.dtype is not torch.float32:
        return False
    seed, dtype = seeds[0], host.dtype
    return (
        seed.shape == host.shape
        and alphas.shape == (1,)
        and seed.dtype is dtype
        and dtype in _FAST_DTYPES
        and seed.device == host.device == alphas.device
        and host.layout is seed.layout is torch.strided
        and -host.ndim <= channel_dim < host.ndim
    )


def check_host(name: str, host: Tensor) -> None:
    """Refuse what no implementation can read."""
    if host.dtype not in DTYPES:
        refuse(InvalidRequest, name, f"has dtype {host.dtype}; supported are {', '.join(map(str, DTYPES))}")
    if host.layout is not torch.strided:
        refuse(InvalidRequest, name, f"has layout {host.layout}; only strided tensors can be blended, use .to_dense()")


def check_channel_dim(host: Tensor, channel_dim: int) -> int:
    """channel_dim counted from the front."""
    if not -host.ndim <= channel_dim < host.ndim:
        limit = f"host {list(host.shape)} has dimensions {-host.ndim} to {host.ndim - 1}"
        refuse(ShapeMismatch, "channel_dim", f"is {channel_dim}; {limit}")
    return channel_dim % host.ndim


def check_spans(spans: Spans, channels: int, convex: bool) -> None:
    """Refuse a span outside the channels and, in the convex form, an overlap."""
    for slot, (start, stop) in enumerate(spans):
        if not 0 <= start <= stop <= channels:
            refuse(
                ShapeMismatch, f"spans[{slot}]", f"is ({start}, {stop}); it must lie in (0, {channels}), the channels"
            )
        for before, (first, last) in enumerate(spans[:slot] if convex else ()):
            if max(first, start) < min(last, stop):
                both = f"is ({start}, {stop}) and spans[{before}] is ({first}, {last})"
                refuse(InvalidRequest, f"spans[{slot}]", f"{both}; the convex form has one slot per channel")


def _seed(name: str, seed: Tensor, host: Tensor, dim: int, span: tuple[int, int]) -> Tensor:
    """The seed in the host's dtype."""
    wanted = list(host.shape)
    wanted[dim] = span[1] - span[0]
    if list(seed.shape) != wanted:
        channels = f"channels {span} of dimension {dim}"
        refuse(
            ShapeMismatch,
            name,
            f"is {list(seed.shape)}; over {channels} of host {list(host.shape)} it must be {wanted}",
        )
    if seed.device != host.device:
        refuse(
            InvalidRequest, name, f"is on {seed.device}, host on {host.device}; move the seed's module to the host's"
        )
    check_host(name, seed)
    if seed.dtype == host.dtype:
        return seed
    if not torch.is_autocast_enabled(host.device.type):
        refuse(InvalidRequest, name, f"has dtype {seed.dtype}, host {host.dtype}; use .to({host.dtype}), or autocast")
    return seed.to(host.dtype)


def _alphas(alphas: Tensor | Sequence[Tensor], host: Tensor, slots: int) -> Tensor:
    """alphas as [S] of the dtype the op computes in."""
    if not isinstance(alphas, Tensor):
        for slot, alpha in enumerate(alphas if isinstance(alphas, Sequence) else [alphas]):
            if not isinstance(alpha, Tensor) or alpha.numel() != 1:
                said = list(alpha.shape) if isinstance(alpha, Tensor) else type(alpha).__name__
                refuse(InvalidRequest, f"alphas[{slot}]", f"is {said}; it must be a tensor of one element")
        alphas = torch.stack([alpha.reshape(()) for alpha in alphas])
    if alphas.shape != (slots,):
        refuse(ShapeMismatch, "alphas", f"is {list(alphas.shape)}; it must be [{slots}], one per seed")
    if alphas.device != host.device:
        refuse(InvalidRequest, "alphas", f"is on {alphas.device}, host on {host.device}; keep it on the host's device")
    if alphas.dtype == torch.float32 and host.dtype != torch.float64:
        return alphas
    if host.dtype != torch.float64 or alphas.dtype not in (torch.float32, torch.float64):
        refuse(
            InvalidRequest, "alphas", f"has dtype {alphas.dtype}; it must be float32, or float64 with a float64 host"
        )
    return alphas.to(torch.float64)


def refuse(error: type[InvalidRequest], argument: str, reason: str, op: str = "blend") -> NoReturn:
    """Raise `error` about `argument`."""
    raise error(f"{op}: {argument} {reason}", {argument: reason})
