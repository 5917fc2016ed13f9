"""Controls without judgement: never, at random, the largest. Grafts are inserted on schedule and kept."""

from collections.abc import Mapping, Sequence

from esper.tamiyo.policy import Choice, Situation


class Never:
    """The control that shows what the run would have been."""

    name = "never"
    description = "never grows"
    uses_nursery = False

    def timing(self, situation: Situation) -> tuple[bool, str]:
        return False, "this policy never grows"

    def choose(self, situation: Situation, room: Mapping[str, int]) -> Sequence[Choice]:
        return ()


class PeriodicRandom:
    """The baseline most growth papers tie with."""

    name = "periodic-random"
    description = "a random kernel at a random site at every event, kept without a verdict"
    uses_nursery = False

    def timing(self, situation: Situation) -> tuple[bool, str]:
        return True, "the period is over"

    def choose(self, situation: Situation, room: Mapping[str, int]) -> Sequence[Choice]:
        if not situation.offers:
            return ()
        offer = situation.rng.choice(situation.offers)
        return (Choice(offer, "drawn at random"),)


class LargestOnSchedule:
    """A strong cheap baseline: the largest blueprint, sites in turn."""

    name = "largest-on-schedule"
    description = "the kernel with most parameters, sites in turn, kept without a verdict"
    uses_nursery = False

    def timing(self, situation: Situation) -> tuple[bool, str]:
        return True, "the period is over"

    def choose(self, situation: Situation, room: Mapping[str, int]) -> Sequence[Choice]:
        sites = situation.by_site()
        if not sites:
            return ()
        site = list(sites)[situation.memory.turn % len(sites)]
        offer = max(sites[site], key=lambda o: (o.option.parameter_count, o.option.artifact_id))
        return (Choice(offer, f"the largest kernel for {site}, whose turn it is"),)
