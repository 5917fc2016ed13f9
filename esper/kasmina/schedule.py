"""The alpha ramp. Pure."""


def ramp(step: int, start_step: int, ramp_steps: int) -> float:
    """Blend factor after `step` for a ramp that began at `start_step`, 0 to 1.

    Linear: 1 / ramp_steps after the first step, 1 after `ramp_steps`. A ramp of 0 steps is 1 at once.
    """
    if ramp_steps <= 0:
        return 1.0
    return min(1.0, max(0.0, (step - start_step) / ramp_steps))
