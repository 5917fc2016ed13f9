"""Tensor ops with more than one implementation. Import ops from here; `python -m esper.ops` says what runs where."""

from esper.ops import advance_state_operator, blend_operator, seed_stats_operator  # noqa: F401  register torch.ops.esper.<op>
from esper.ops.advance_state import advance_state, advance_state_reference
from esper.ops.blend import blend, blend_, blend_reference
from esper.ops.gates import state_mask
from esper.ops.seed_stats import seed_stats, seed_stats_reference

__all__ = [
    "advance_state",
    "advance_state_reference",
    "blend",
    "blend_",
    "blend_reference",
    "seed_stats",
    "seed_stats_reference",
    "state_mask",
]
