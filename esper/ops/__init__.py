"""Tensor ops with more than one implementation. Import ops from here; `python -m esper.ops` says what runs where."""

from esper.ops import (
    blend_operator,  # noqa: F401  registers torch.ops.esper.blend
    seed_stats_operator,  # noqa: F401  registers torch.ops.esper.seed_stats
)
from esper.ops.blend import blend, blend_reference
from esper.ops.seed_stats import seed_stats, seed_stats_reference

__all__ = ["blend", "blend_reference", "seed_stats", "seed_stats_reference"]
