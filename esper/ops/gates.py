"""Bit masks over the numbers of lifecycle states: which seeds an op acts on, decided where their states are.

Bit n of a mask stands for state n. A kernel tests its seed's bit on the device, so no state is ever read by Python.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from esper.errors import InvalidRequest

STATES = 63  # numbers 0 to 62: a mask is a non-negative int64


def state_mask(states: Iterable[int]) -> int:
    """The mask of `states`, each 0 to 62. Raises InvalidRequest."""
    mask = 0
    for state in states:
        if not 0 <= state < STATES:
            raise InvalidRequest(f"state {state} has no bit in a mask; a state's number is 0 to {STATES - 1}")
        mask |= 1 << state
    return mask


def check_mask(op: str, name: str, mask: int) -> None:
    """Refuse what has a bit for no state. Raises InvalidRequest."""
    if not 0 <= mask < 1 << STATES:
        reason = f"is {mask}; it must be 0 to 2**{STATES} - 1, see esper.ops.state_mask"
        raise InvalidRequest(f"{op}: {name} {reason}", {name: reason})


def among(states: Tensor, mask: int) -> Tensor:
    """Whether each seed's bit is set: bool, of the shape of `states` (uint8). A state without a bit is not."""
    bits = torch.bitwise_right_shift(mask, states.to(torch.int64).clamp_max(STATES))
    return bits.bitwise_and(1).to(torch.bool)
