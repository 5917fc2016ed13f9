"""Watch the loss and say when a run is lost. Pure but for the window it keeps.

Four alarms: a loss that is not finite; an explosion (many times the recent mean for several steps running); a
divergence (the mean loss far above its best for long); a collapse (for long the mean loss has been back where
training began, as it is where the output has become a constant). All but the first compare differences or
multiples of sizes, so that neither the unit of a loss nor its sign matters.
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
    collapse_share: float = 0.5  # of what the mean loss had won since the warm-up: so much is lost again
    collapse_noise: float = 3.0  # what was won must be so many times the change from one step's loss to the next
    collapse_steps: int = 100
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
    last: float = math.nan  # loss
    noise: float = math.nan  # mean change from one step's loss to the next: a fall or a rise hardly changes it
    collapsed_steps: int = 0


@dataclass(slots=True)
class Governor:
    options: GovernorOptions = field(default_factory=GovernorOptions)
    window: LossWindow = field(default_factory=LossWindow)

    def see(self, loss: float) -> str:
        """Take one step's loss; returns why the run is lost, or ""."""
        return watch(self.window, loss, self.options)


def watch(window: LossWindow, loss: float, options: GovernorOptions) -> str:
    """Why `loss` on top of `window` means that the run is lost; "" if it does not, and then the loss is remembered.

    An exploding loss is counted and kept out of the mean. One function that calls no other of Python's: it runs at
    every step, where what costs is not arithmetic but code that training has pushed out of the processor's cache.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    mean, first, best = window.mean, window.first_mean, window.best_mean
    warm = window.steps >= options.warm_up_steps
    exploding = False
    if warm and loss - first > abs(first):
        size = max(abs(mean), abs(best), window.noise)  # of a loss: one about 0, or one that passes it, has no other
        exploding = loss - mean > (options.explosion_factor - 1) * size
    if exploding and window.exploding_steps + 1 >= options.explosion_steps:
        return (
            f"the loss was over {options.explosion_factor:g} times its mean of {mean:.4g} for "
            f"{options.explosion_steps} steps, at last {loss:.4g}"
        )
    if warm and window.diverging_steps >= options.divergence_steps:
        return (
            f"the mean loss {mean:.4g} was over {options.divergence_factor:g} times its best "
            f"{best:.4g} for {options.divergence_steps} steps"
        )
    if warm and window.collapsed_steps >= options.collapse_steps:
        return (
            f"the output has collapsed: the mean loss {mean:.4g} has for {options.collapse_steps} steps lost over "
            f"{options.collapse_share:.0%} of what it had won from {first:.4g} to {best:.4g}"
        )
    window.steps += 1
    if exploding:
        window.exploding_steps += 1
        return ""
    window.exploding_steps = 0
    change = abs(loss - window.last)
    window.noise = change if window.noise != window.noise else window.noise + 0.02 * (change - window.noise)
    window.last = loss
    window.mean = mean = loss if mean != mean else mean + 0.02 * (loss - mean)
    if window.steps >= options.warm_up_steps:
        if window.steps == options.warm_up_steps:
            window.first_mean = first = mean
        if mean < best:
            window.best_mean = best = mean
        risen, won, diverging = mean - best, first - best, False
        if mean - first > -0.5 * abs(first):
            diverging = risen > (options.divergence_factor - 1) * max(abs(best), window.noise)
        window.diverging_steps = window.diverging_steps + 1 if diverging else 0
        collapsed = risen > options.collapse_share * won and won > options.collapse_noise * window.noise
        window.collapsed_steps = window.collapsed_steps + 1 if collapsed else 0
    return ""


def is_steady(window: LossWindow) -> bool:
    """Whether the mean loss is by its best, as far as noise lets one see. Before the warm-up is over it is.

    An exponential mean strays from its level by a tenth of the noise; its best lies about four tenths below.
    """
    if window.exploding_steps or window.diverging_steps or window.collapsed_steps:
        return False
    won = window.first_mean - window.best_mean
    return not window.mean - window.best_mean > 0.1 * won + 0.5 * window.noise
