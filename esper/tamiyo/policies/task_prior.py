"""The task prior: what gained most on this task in earlier runs, inserted on schedule."""

from collections.abc import Mapping, Sequence

from esper.tamiyo.policy import Choice, Situation, experience_of

MIN_JUDGED = 2  # grafts of a kind before their mean counts


class TaskPrior:
    """Needs field reports of earlier runs of the same task; without them it does not grow."""

    name = "task-prior"
    description = "the site and kernel with the best mean gain in earlier runs of this task, kept without a verdict"
    uses_nursery = False

    def timing(self, situation: Situation) -> tuple[bool, str]:
        if not any(e.task_name == situation.view.task_name and e.tried >= MIN_JUDGED for e in situation.experience):
            return (
                False,
                f"no field reports on task {situation.view.task_name!r} yet; run it with the heuristic policy first",
            )
        return True, "the period is over"

    def choose(self, situation: Situation, room: Mapping[str, int]) -> Sequence[Choice]:
        ranked = []
        for offer in situation.offers:
            seen = experience_of(situation, offer)
            if seen is not None and seen.tried >= MIN_JUDGED:
                gain = seen.mean_gain if seen.judged >= MIN_JUDGED else seen.mean_isolated_gain
                ranked.append((gain, offer, seen))
        if not ranked or max(gain for gain, _, _ in ranked) <= 0:
            return ()
        gain, offer, seen = max(ranked, key=lambda row: (row[0], row[1].site.name, row[1].option.artifact_id))
        return (Choice(offer, f"mean gain {gain:+.2%} over {max(seen.judged, seen.tried)} earlier grafts", gain),)
