"""The default: the train/validation gap and gradient signals for the time, the nursery for the choice."""

import math
from collections.abc import Mapping, Sequence

from esper.tamiyo.policy import Choice, Offer, Situation, experience_of
from esper.tamiyo.view import RunView

# Validation this far above its best, for this long, while training goes on: more capacity would over-fit.
OVERFIT_RATIO = 1.10
OVERFIT_DECISIONS = 3
MIN_TRIED = 3  # earlier grafts of a kind before their mean counts


class Heuristic:
    """Tries kernels of different families at every site; the best isolated gain is inserted and judged."""

    name = "heuristic"
    description = (
        "tries different kernels at every site in the nursery, inserts the best gain, keeps it if it beats its twin"
    )
    uses_nursery = True

    def timing(self, situation: Situation) -> tuple[bool, str]:
        view = situation.view
        losses = (view.train_loss, view.validation_loss, view.best_validation_loss)
        if not all(loss is not None and math.isfinite(loss) for loss in losses):
            return False, _unmeasured(view)
        over, why = overfits(view)
        if over:
            return False, why
        unseen = [site.name for site in situation.view.sites if "gradient_norm" not in site.health]
        if unseen:
            return False, f"no gradient measured yet at {', '.join(unseen[:3])}; unmeasured is not healthy"
        return True, f"the cooldown is over and {why}"

    def choose(self, situation: Situation, room: Mapping[str, int]) -> Sequence[Choice]:
        chosen: list[Choice] = []
        for name, offers in situation.by_site().items():
            gradient = offers[0].site.health.get("gradient_norm", 0.0)
            if gradient > 0:  # a site that no gradient reaches cannot learn a graft
                chosen += pick(situation, offers, room[name])
        return chosen


def _unmeasured(view: RunView) -> str:
    if view.validation_loss is None or view.best_validation_loss is None:
        return "validation is not measured yet (workers must be able to import the task); unmeasured is not healthy"
    return f"losses that are not finite: training {view.train_loss}, validation {view.validation_loss}"


def overfits(view: RunView) -> tuple[bool, str]:
    """Whether validation has turned while training goes on. With the reason."""
    assert view.validation_loss is not None and view.best_validation_loss is not None
    since = view.validation_step - view.best_validation_step
    ratio = view.validation_loss / max(view.best_validation_loss, 1e-12)
    gap = view.validation_loss / max(view.train_loss, 1e-12)
    seen = f"validation is {ratio:.2f} times its best of step {view.best_validation_step}, {gap:.2f} times training"
    limit = OVERFIT_DECISIONS * view.scheme.decision_every_steps
    return ratio > OVERFIT_RATIO and since >= limit and gap > OVERFIT_RATIO, seen


def pick(situation: Situation, offers: Sequence[Offer], room: int) -> list[Choice]:
    """Up to `room` >= 1 kernels for one site: the most promising of different families, and the least tried one."""
    ranked = sorted(offers, key=lambda o: (promise(situation, o), o.option.artifact_id), reverse=True)
    spread = _one_per_family(ranked)
    taken = spread[: max(1, room - 1)]
    rest = [o for o in ranked if o not in taken]
    if room > len(taken) and rest:
        # one place is for what has been tried least here, so that no kernel is judged by its size alone
        tries = situation.memory.tries
        taken.append(
            min(rest, key=lambda o: (tries.get(f"{o.site.name} {o.option.blueprint_id}", 0), o.option.parameter_count))
        )
    return [Choice(o, _why(situation, o), _expected(situation, o)) for o in taken]


def promise(situation: Situation, offer: Offer) -> float:
    """Mean isolated gain of its kind on this task where it has been tried; otherwise a small bonus for size.

    Size is the best cheap predictor there is before anything has been tried (docs/growth.md).
    """
    expected = _expected(situation, offer)
    return expected if expected is not None else 0.01 * math.log1p(offer.option.parameter_count)


def _expected(situation: Situation, offer: Offer) -> float | None:
    seen = experience_of(situation, offer)
    return seen.mean_isolated_gain if seen is not None and seen.tried >= MIN_TRIED else None


def _one_per_family(ranked: Sequence[Offer]) -> list[Offer]:
    """The best of each family first, then the rest, both in order."""
    best: dict[str, Offer] = {}
    for offer in ranked:
        best.setdefault(offer.option.family, offer)
    first = list(best.values())
    return first + [offer for offer in ranked if offer not in first]


def _why(situation: Situation, offer: Offer) -> str:
    seen = experience_of(situation, offer)
    if seen is not None and seen.tried >= MIN_TRIED:
        return f"isolated gain {seen.mean_isolated_gain:+.2%} over {seen.tried} earlier trials of its kind"
    return (
        f"{offer.option.parameter_count} parameters, family {offer.option.family or 'none'}, not tried enough to know"
    )
