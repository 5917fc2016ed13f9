"""Why operators have no rule, and when a broadcast cannot use its own. Pure."""

from esper.artifact.regions import value_type
from esper.blueprint.plan import Plan

_MATRIX = "a product with a matrix is torch's"
_POSITIONS = "it reads other positions than its own, of which a program holds some"
_WIDTH = "its result has not its input's number of channels, and a kernel has one number of them"
_ORDER = "it moves values between channels, and a tile keeps each where it was loaded"
# every operator that has no rule in esper/tezzeret/rules.py
UNFUSED = {
    "attention": _POSITIONS,
    "channel_shuffle": _ORDER,
    "concat": _WIDTH,
    "conv": _MATRIX,
    "flip": _POSITIONS,
    "glu": _WIDTH,
    "group_norm": _POSITIONS,
    "linear": _MATRIX,
    "local_max": _POSITIONS,
    "local_mean": _POSITIONS,
    "mixture": _MATRIX,
    "pool_max": _POSITIONS,
    "pool_mean": _POSITIONS,
    "position_norm": _POSITIONS,
    "rotary": _ORDER,
    "shift": _POSITIONS,
    "sinusoid": "it depends on a position's place in its sample, which a program of rows does not know",
    "split": _WIDTH,
}


def why_no_broadcast(step: int, concrete: Plan) -> str:
    """Why a broadcast, a step numbered from 1, can be in no region; empty where it can.

    The value whose positions it takes is an input of its kernel, though nothing of it is read.
    """
    _, like = concrete.form.steps[step - 1].inputs
    channels, wide = value_type(step, concrete)[0], value_type(like, concrete)[0]
    if wide in (1, channels):
        return ""
    return f"it makes {channels} channels of all positions of a value of {wide}; a kernel has one number of channels"
