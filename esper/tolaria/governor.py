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
        reason = alarm(self.window, loss, self.options)
        if not reason:
            update(self.window, loss, self.options)
        return reason


def alarm(window: LossWindow, loss: float, options: GovernorOptions) -> str:
    """Why `loss` on top of `window` means that the run is lost; "" if it does not."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if window.steps < options.warm_up_steps:
        return ""
    if _explodes(window, loss, options) and window.exploding_steps + 1 >= options.explosion_steps:
        return (
            f"the loss was over {options.explosion_factor:g} times its mean of {window.mean:.4g} for "
            f"{options.explosion_steps} steps, at last {loss:.4g}"
        )
    if window.diverging_steps >= options.divergence_steps:
        return (
            f"the mean loss {window.mean:.4g} was over {options.divergence_factor:g} times its best "
            f"{window.best_mean:.4g} for {options.divergence_steps} steps"
        )
    return ""


def update(window: LossWindow, loss: float, options: GovernorOptions) -> None:
    """Remember one finite loss. An exploding one is counted and kept out of the mean."""
    window.steps += 1
    exploding = window.steps > options.warm_up_steps and _explodes(window, loss, options)
    window.exploding_steps = window.exploding_steps + 1 if exploding else 0
    if exploding:
        return
    window.mean = loss if math.isnan(window.mean) else window.mean + 0.02 * (loss - window.mean)
    if window.steps == options.warm_up_steps:
        window.first_mean = window.mean
    if window.steps >= options.warm_up_steps:
        window.best_mean = min(window.best_mean, window.mean)
    diverging = window.mean > max(options.divergence_factor * window.best_mean, 0.5 * window.first_mean)
    window.diverging_steps = window.diverging_steps + 1 if diverging else 0


def _explodes(window: LossWindow, loss: float, options: GovernorOptions) -> bool:
    return loss > max(options.explosion_factor * window.mean, 2 * window.first_mean)
