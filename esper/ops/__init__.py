"""Tensor ops with more than one implementation. Import ops from here; `python -m esper.ops` says what runs where."""

from esper.ops import blend_operator  # noqa: F401  registers torch.ops.esper.blend
from esper.ops.blend import blend, blend_reference

__all__ = ["blend", "blend_reference"]
