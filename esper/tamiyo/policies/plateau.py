"""Grow when the training loss stops falling: the obvious default of the field."""

from collections.abc import Mapping, Sequence

from esper.tamiyo.policy import Choice, Situation

WINDOW = 5  # decision points
MIN_IMPROVEMENT = 0.02  # relative fall of the training loss over the window


class Plateau:
    """At a plateau, the largest kernel at the site with the largest gradient; kept without a verdict."""

    name = "plateau"
    description = "at a plateau of the training loss, the largest kernel where the gradient is largest"
    uses_nursery = False

    def timing(self, situation: Situation) -> tuple[bool, str]:
        losses = [loss for _, loss in situation.memory.losses[-WINDOW:]]
        if len(losses) < WINDOW:
            return False, f"{len(losses)} of {WINDOW} decision points seen"
        fall = (losses[0] - losses[-1]) / max(abs(losses[0]), 1e-12)
        text = (
            f"the training loss fell {fall:.1%} over {WINDOW} decision points, the threshold is {MIN_IMPROVEMENT:.0%}"
        )
        return fall < MIN_IMPROVEMENT, text

    def choose(self, situation: Situation, room: Mapping[str, int]) -> Sequence[Choice]:
        measured = [o for o in situation.offers if "gradient_norm" in o.site.health]
        if not measured:
            return ()  # no gradient was measured: unmeasured is not zero
        offer = max(
            measured, key=lambda o: (o.site.health["gradient_norm"], o.option.parameter_count, o.option.artifact_id)
        )
        return (
            Choice(
                offer, f"gradient norm {offer.site.health['gradient_norm']:.3g} at {offer.site.name} is the largest"
            ),
        )
