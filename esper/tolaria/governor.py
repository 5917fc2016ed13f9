"""Watch the loss and say when a run is lost. Pure but for the window it keeps.

Three alarms: a loss that is not finite; an explosion (many times the recent mean for
several steps running); a divergence (the mean loss far above its best for long).
"""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorOptions:
    warm_up_steps: int = 50  # no alarm but for NaN before
    explosion_factor: float = 20.0  # of the mean loss, and over twice the first mean
    explosion_steps: int = 3
    divergence_factor: float = 4.0  # of the best mean loss, and over half the first mean
    divergence_steps: int = 100
    certify_steps: int = 20  # a rollback point counts as good after so many steps without alarm
    max_rollbacks_per_point: int = 3


@dataclass(slots=True)
class LossWindow:
    """What is remembered of the losses seen."""

    steps: int = 0
    mean: float = math.nan  # exponential, about 50 steps
    first_mean: float = math.inf  # at the end of the warm-up: noise around a tiny loss is no alarm
    best_mean: float = math.inf
    exploding_steps: int = 0
    diverging_steps: int = 0


@dataclass(slots=True)
class Governor:
    options: GovernorOptions = field(default_factory=GovernorOptions)
    window: LossWindow = field(default_factory=LossWindow)

    def see(self, loss: float) -> str:
        """Take one step's loss; returns why the run is lost, or ""."""
        return watch(self.window, loss, self.options)


def watch(window: LossWindow, loss: float, options: GovernorOptions) -> str:
    """Why `loss` on top of `window` means that the run is lost; "" if it does not, and then the loss is remembered.

    An exploding loss is counted and kept out of the mean. One function, without calls of its own: it runs at
    every step, where what costs is not arithmetic but code that training has pushed out of the processor's cache.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    mean, warm = window.mean, window.steps >= options.warm_up_steps
    exploding = warm and loss > options.explosion_factor * mean and loss > 2 * window.first_mean
    if exploding and window.exploding_steps + 1 >= options.explosion_steps:
        return (
            f"the loss was over {options.explosion_factor:g} times its mean of {mean:.4g} for "
            f"{options.explosion_steps} steps, at last {loss:.4g}"
        )
    if warm and window.diverging_steps >= options.divergence_steps:
        return (
            f"the mean loss {mean:.4g} was over {options.divergence_factor:g} times its best "
            f"{window.best_mean:.4g} for {options.divergence_steps} steps"
        )
    window.steps += 1
    if exploding:
        window.exploding_steps += 1
        return ""
    window.exploding_steps = 0
    window.mean = mean = loss if mean != mean else mean + 0.02 * (loss - mean)
    if window.steps >= options.warm_up_steps:
        if window.steps == options.warm_up_steps:
            window.first_mean = mean
        if mean < window.best_mean:
            window.best_mean = mean
    diverging = mean > options.divergence_factor * window.best_mean and mean > 0.5 * window.first_mean
    window.diverging_steps = window.diverging_steps + 1 if diverging else 0
    return ""
