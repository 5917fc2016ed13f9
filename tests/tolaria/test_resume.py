"""A run that is dropped anywhere, without a word, and resumed: it goes on as the run that nobody disturbed.

The course is the saga's, in which seeds come through every state. Here it is dropped by putting the folder back to
what it was; `test_killed.py` kills processes.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from esper.host.kept import kept_generators
from esper.kasmina.lifecycle import State
from esper.runtime.local import LocalLine
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.journal import NAME
from esper.tolaria.line import Incoming
from tests.flow.local import LocalRun
from tests.tolaria.runs import let_go
from tests.tolaria.saga import begin, follow, losses_of, put_back
from tests.tolaria.told import SETTING

SHORT = 40  # steps that are compared here after the last drop; test_killed.py takes 100


def checkpoints(directory: Path) -> list[Path]:
    return sorted((directory / "checkpoints").glob("step-*[0-9]"))


def damage(checkpoint: Path) -> None:
    """A file of its own, as pictures share theirs."""
    tensors = checkpoint / "tensors.safetensors"
    data = tensors.read_bytes()
    tensors.unlink()
    tensors.write_bytes(data[: len(data) // 2])


def test_the_course_is_through_every_state(told):
    assert {t.target for t in told.transitions} | {State.DORMANT} == set(State)
    events = [entry for entry in told.course.journal if "rollback" in entry]
    assert len(events) == 1


@pytest.mark.parametrize(("kind", "occasion"), [("loaded", 2), ("result", 12), ("command", 1), ("rollback", 0)])
def test_a_run_dropped_inside_a_decision_point_repeats_the_rest_of_it(told, kind, occasion):
    """The entry is the last that was written; what was to act after it acts at the same point."""
    positions = [n for n, entry in enumerate(told.course.journal, 1) if kind in entry]
    told.put_back_at_entry(positions[occasion])
    told.resume(SHORT)


# A failure names its draws; to look for simpler ones would take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(max_examples=10, phases=PHASES)
@given(data=st.data())
def test_a_dropped_run_goes_on_as_if_nobody_had_disturbed_it(told, data):
    first = next(n for n, picture in enumerate(told.pictures) if checkpoints(picture))
    put_back(told.pictures[data.draw(st.integers(first, len(told.pictures) - 1), "picture")], told.directory)
    journal = told.directory / NAME
    text = journal.read_bytes()
    last = len(text) - (text[:-1].rfind(b"\n") + 1)
    torn = data.draw(st.integers(0, last), "bytes torn off the journal")
    journal.write_bytes(text[: len(text) - torn])
    found = checkpoints(told.directory)
    if len(found) > 1 and data.draw(st.booleans(), "newest checkpoint damaged"):
        damage(found[-1])
    for steps in data.draw(st.lists(st.integers(1, 25), max_size=2), "steps until the next drop"):
        told.resume(steps)
    told.resume(SHORT)


# A run as it comes: what acts when depends on who is how fast, and its journal says what did


class LateLine:
    """A line whose other end answers late, now one thing and now several; without a generator, only who waits."""

    def __init__(self, inner: LocalLine, model: nn.Module, generator: random.Random | None) -> None:
        self._inner, self._model, self._generator = inner, model, generator
        self._held: list[Incoming] = []
        self._waiting = False

    def collect(self) -> list[Incoming]:
        while self._inner._jobs:
            with kept_generators(self._model):  # as a worker in another process leaves them alone
                self._inner.nursery.do(self._inner._jobs.popleft(), self._held.append)
        self._held += self._inner.collect()
        count = self._generator.randint(0, 4) if self._generator else 0
        count = len(self._held) if self._waiting else count
        now, self._held = self._held[:count], self._held[count:]
        return now

    def wait(self, done: Callable[[], bool], limit_s: float = 600.0) -> None:
        self._waiting = True
        assert done()
        self._waiting = False

    def __getattr__(self, name: str):
        return getattr(self._inner, name)


def live(directory: Path, generator: random.Random | None, *, resumed: bool = False) -> LocalRun:
    """The run, which waits for nobody."""
    local = begin(directory, SETTING)
    local.run.deterministic = False
    local.run.line = LateLine(local.line, local.run.parts.model, generator)
    if resumed:
        local.session.resume(*CheckpointStore(directory / "checkpoints").latest())
    return local


def driven(directory: Path, journal: Path) -> LocalRun:
    """A run from its start that hears nothing but what another one's journal says."""
    directory.mkdir()
    shutil.copy(journal, directory / NAME)
    local = live(directory, None)
    local.session.arrivals.journal.start_replay(0)
    local.run.muted = True
    return local


@pytest.mark.slow
@settings(max_examples=8, phases=PHASES)
@given(seed=st.integers(0, 1 << 32), dropped=st.lists(st.integers(100, 300), min_size=1, max_size=2))
def test_any_live_run_that_was_dropped_is_the_run_that_its_journal_drives(tmp_path_factory, seed, dropped):
    is_what_its_journal_says(tmp_path_factory.mktemp("live"), seed, dropped)


def test_a_live_run_that_was_dropped_is_the_run_that_its_journal_drives(tmp_path):
    is_what_its_journal_says(tmp_path, 1, [155, 243])


def is_what_its_journal_says(folder: Path, seed: int, dropped: list[int]) -> None:
    """Let a run live and be dropped after some steps, then drive another from its start by what the journal says."""
    generator = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esper.tolaria.session.delete", lambda paths: None)  # the driven run reads the same files
        for resumed, until in enumerate([*sorted(dropped), 310]):
            local = live(folder / "run", generator, resumed=bool(resumed))
            follow(local, SETTING, until)
            let_go(local)
        again = driven(folder / "driven", folder / "run" / NAME)
        follow(again, SETTING, 300)
        let_go(again)
    # Losses only, which are by place in the journal. A packet after its last entry may be told twice and otherwise:
    # what arrives there is not settled yet, and may come sooner to the one who is resumed.
    told, drove = losses_of(folder / "run"), losses_of(folder / "driven")
    assert len(drove) > 300
    assert {
        place: (loss, told.get(place)) for place, loss in drove.items() if told.get(place) not in (loss, "nan")
    } == {}
