"""The saga told once, undisturbed, with what a drop at each place would have left."""

from pathlib import Path

from tests.flow.local import LocalRun
from tests.tolaria.runs import let_go
from tests.tolaria.saga import STEPS, Course, Setting, begin, follow, image, put_back

SETTING = Setting()
Points = list[tuple[int, int, bool]]  # step, uses, certified


def points_of(local: LocalRun) -> Points:
    """The states that a run can go back to."""
    points = local.session.points
    return [(p.step, p.uses, p.certified) for p in (*points.latest, *points.before.values())]


class Told:
    """The undisturbed course, and what a drop would have left after each step and each entry of the journal."""

    def __init__(self, folder: Path) -> None:
        self.directory = folder / "run"
        self.pictures: list[Path] = []
        self.points: list[Points] = []  # to go back to, at each picture
        local = begin(self.directory, SETTING)
        journal = local.session.arrivals.journal
        append = journal.append

        def picture(*_: object) -> None:
            self.pictures.append(folder / f"picture-{len(self.pictures)}")
            image(self.directory, self.pictures[-1])
            self.points.append(points_of(local))

        def append_and_picture(entry) -> None:
            append(entry)
            picture()

        journal.append = append_and_picture
        follow(local, SETTING, STEPS, picture)
        let_go(local)
        self.transitions = local.transitions
        self.course = Course.of(self.directory)

    def put_back(self, step: int) -> int:
        """Leave what a drop would have left when so many steps were done, the first time; the picture's number."""
        found = next(n for n, picture in enumerate(self.pictures) if Course.of(picture).last_step == step)
        put_back(self.pictures[found], self.directory)
        return found

    def put_back_at_entry(self, position: int) -> None:
        """Leave what a drop would have left right after an entry of the journal was written, before it acted."""
        put_back(next(p for p in self.pictures if len(Course.of(p).journal) == position), self.directory)

    def resume(self, steps: int) -> LocalRun:
        """Go on from what lies in the folder, for some steps more than were done, and drop it again."""
        until = Course.of(self.directory).last_step + steps
        local = begin(self.directory, SETTING, resumed=True)
        try:
            follow(local, SETTING, min(until, STEPS))
        finally:
            let_go(local)
        Course.of(self.directory).follows(self.course)
        return local
