"""The registered operator esper::seed_stats: its schema, fake, vmap rule, and that it has no gradient.

It has no autocast rule: under autocast it reads what it is given.
"""

from typing import Any

import torch
from torch import Tensor

from esper.ops.seed_stats import run
from esper.ops.seed_stats_arguments import check_apart, checked

library = torch.library.Library("esper", "FRAGMENT")
library.define("seed_stats(Tensor values, int[] spans, int channel_dim, float decay, Tensor(a!) stats) -> ()")


def _seed_stats(values: Tensor, spans: list[int], channel_dim: int, decay: float, stats: Tensor) -> None:
    _checked(values, spans, channel_dim, decay, stats)
    check_apart(values, stats)
    with torch.no_grad():
        run(values, spans, channel_dim, decay, stats)


def _checked(values: Tensor, spans: list[int], channel_dim: int, decay: float, stats: Tensor) -> None:
    checked(values, stats, list(zip(spans[::2], spans[1::2], strict=True)), channel_dim, decay)


def _seed_stats_undifferentiated(*call: Any) -> None:
    """Under grad mode: statistics have no history, and values keep theirs."""
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.esper.seed_stats(*call)


def _seed_stats_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[None, None]:
    """The batch is more rows of each chunk; stats that have the batch get rows for each example."""
    values, spans, channel_dim, decay, stats = args
    values_dim, *_, stats_dim = in_dims
    if values_dim is not None:
        values, channel_dim = values.movedim(values_dim, 0), channel_dim + 1
    if stats_dim is None:
        torch.ops.esper.seed_stats(values, spans, channel_dim, decay, stats)
        return None, None
    for example in range(info.batch_size):
        row = stats.select(stats_dim, example)
        kept = row.contiguous()
        chunk = values if values_dim is None else values[example]
        dim = channel_dim if values_dim is None else channel_dim - 1
        torch.ops.esper.seed_stats(chunk, spans, dim, decay, kept)
        if kept is not row:
            row.copy_(kept)
    return None, None


library.impl("seed_stats", _seed_stats, "CompositeExplicitAutograd")
library.impl("seed_stats", _seed_stats_undifferentiated, "Autograd")
torch.library.register_fake("esper::seed_stats", _checked, lib=library)
torch.library.register_vmap("esper::seed_stats", _seed_stats_vmap, lib=library)
