"""Thompson sampling over (layer kind, blueprint family): try what may be best, by what is known of its kind.

Thompson 1933, doi:10.1093/biomet/25.3-4.285; normal rewards with a normal prior as in
Russo et al. 2018, arXiv:1707.02038, sec. 4.
"""

import math
from collections.abc import Mapping, Sequence

from esper.tamiyo.policies.heuristic import Heuristic
from esper.tamiyo.policy import Choice, Offer, Situation, experience_of

PRIOR_MEAN = 0.02  # isolated gain of a graft nothing is known of
PRIOR_DEVIATION = 0.05
NOISE_DEVIATION = 0.05  # of one isolated gain around its kind's mean
MAX_CANDIDATES = 6  # tried per event, over all sites


class Bandit(Heuristic):
    """The heuristic's timing, trial and verdict; fewer candidates, drawn by their posterior."""

    name = "bandit"
    description = f"tries the {MAX_CANDIDATES} candidates that sample best from what is known of their kind"

    def choose(self, situation: Situation, room: Mapping[str, int]) -> Sequence[Choice]:
        sampled = []
        for offer in situation.offers:
            mean, deviation = posterior(situation, offer)
            sampled.append((situation.rng.gauss(mean, deviation), mean, offer))
        sampled.sort(key=lambda row: (-row[0], row[2].site.name, row[2].option.artifact_id))
        left = dict(room)
        chosen: list[Choice] = []
        for value, mean, offer in sampled:
            if len(chosen) < MAX_CANDIDATES and left.get(offer.site.name, 0) > 0:
                left[offer.site.name] -= 1
                chosen.append(Choice(offer, f"sampled gain {value:+.2%}", mean, value - mean))
        return chosen


def posterior(situation: Situation, offer: Offer) -> tuple[float, float]:
    """Mean and standard deviation of the gain expected of an offer's kind."""
    seen = experience_of(situation, offer)
    count = seen.tried if seen is not None else 0
    precision = 1 / PRIOR_DEVIATION**2 + count / NOISE_DEVIATION**2
    total = PRIOR_MEAN / PRIOR_DEVIATION**2 + (seen.mean_isolated_gain * count if seen else 0.0) / NOISE_DEVIATION**2
    return total / precision, math.sqrt(1 / precision)
