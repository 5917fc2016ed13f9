"""Whether a low-rank pair pays in a region. Pure.

In a kernel the pair is a loop over its ranks: two sums over channels, and what they add to the result. Triton's product
of tiles, tl.dot, holds both tiles and both matrices at once: at 256 channels and 16 positions it spilled registers on
every target, in bfloat16, float32 or both. It pads ranks to 16, and float32 has no tensor cores without TF32.

The gradient of a matrix is a product over all positions. Summed in programs it would be 16 x rank x channels bytes of
partial sums each, written and read. Instead backward writes two factors of channels numbers a position, and torch
multiplies them as it does for a linear step. Written and read, these are fewer bytes unless a program has twice as many
positions as ranks (bfloat16); one of 2,048 elements, which is what registers hold, has 2,048 / channels.
"""

from esper.artifact.regions import PAIR, PASSES, described
from esper.blueprint.plan import Plan
from esper.tezzeret.traffic import work_of

# Without tensor cores. At 16 the arithmetic of both passes, 14 x rank x channels operations a position, takes no device
# longer than the bytes of a norm, a pair and an activation one by one, 16 x channels numbers, in bfloat16.
MOST_RANK = 16
# A program of 2,048 elements has 8 warps, so that a thread may have 255 registers; one of 4,096 has 16, and spills.
MOST_ROW_CHANNELS = 2048
MOST_MAP_CHANNELS = 128
# One in so many bytes must be saved: what loses its tensor cores must gain by bytes.
LEAST_SAVED = 4
_ALONE = 6  # numbers a channel and a rank: forward reads and writes one, backward reads three and writes one


def why_no_pair(step: int, concrete: Plan, *, maps: bool) -> str:
    """Why a pair, a step numbered from 1, can be in no region; empty where it can. `maps`: positions are neighbours."""
    binding = concrete.bindings[step - 1]
    ((channels, _),), rank = binding.inputs, binding.integer("rank")
    most = MOST_MAP_CHANNELS if maps else MOST_ROW_CHANNELS
    if channels != binding.channels:
        return f"it makes {binding.channels} channels of {channels}; a kernel has one number of channels"
    if channels > most:
        return f"{channels} channels a position; a program with a low_rank holds at most {most}"
    return f"rank {rank}; in a kernel, without tensor cores, at most {MOST_RANK} pays" if rank > MOST_RANK else ""


def unpaid(steps: tuple[int, ...], concrete: Plan) -> tuple[int, str]:
    """(the pair among `steps`, why one kernel of them does not pay); (0, "") where it does, or there is no pair.

    Weighed are bytes a position, both passes: of one kernel, and of the pair by torch and a kernel of the other steps.
    """
    pair = next((at for at in steps if concrete.form.steps[at - 1].node.operator == PAIR), 0)
    if not pair:
        return 0, ""
    rest = tuple(at for at in steps if at != pair)
    apart = _alone(pair, concrete) + (_bytes(rest, concrete) if rest else 0)
    together = _bytes(steps, concrete)
    if LEAST_SAVED * (apart - together) >= apart:
        return 0, ""
    return pair, (
        f"one kernel of it and its neighbours moves {together} bytes a position, several move {apart}; "
        f"it pays where one in {LEAST_SAVED} is saved"
    )


def _alone(step: int, concrete: Plan) -> int:
    """Bytes a position that a pair moves by torch."""
    binding = concrete.bindings[step - 1]
    return _ALONE * (binding.channels + binding.integer("rank")) * concrete.interface.dtype.itemsize


def _bytes(steps: tuple[int, ...], concrete: Plan) -> int:
    region = described(1, steps, concrete, 1, 1)
    return sum(work_of(region, direction, concrete).bytes_per_position for direction in PASSES)
