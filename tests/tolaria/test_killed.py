"""A trainer killed -9 in every state of a seed, inside decision points and in the middle of what it writes.

Resumed, it goes on for 100 steps and more as the run that nobody disturbed: losses, journal and what the controller
is told are the same, bit for bit.
"""

import shutil
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from esper.kasmina.lifecycle import State
from tests.tolaria.killed import Place, live
from tests.tolaria.saga import STEPS, Course, Setting, has_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ADAM, SGD = Setting(), Setting(optimizer="sgd", autocast=True)
NEXT = 100  # losses that are compared after a kill, at least


class Calm:
    """The runs that nobody disturbed, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[Setting, Path] = {}

    def of(self, setting: Setting) -> Path:
        if setting not in self._made:
            directory = self.folder / f"calm-{len(self._made)}"
            assert not live(directory, setting)
            self._made[setting] = directory
        return self._made[setting]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    return Calm(tmp_path_factory.mktemp("calm"))


def drill(folder: Path, calm: Calm, setting: Setting, *places: Place) -> list[bool]:
    """Kill at each place in turn, then go on for 100 steps and more. Returns which of the places were reached."""
    directory = folder / "run"
    killed = []
    for place in places:
        killed.append(live(directory, setting, place))
        if not has_checkpoint(directory):
            shutil.rmtree(directory)
    reached = Course.of(directory).last_step if directory.exists() else 0
    assert not live(directory, setting, until=min(STEPS, reached + NEXT))
    found = Course.of(directory)
    found.follows(Course.of(calm.of(setting)))
    assert sum(int(place.split()[0]) > min(reached, STEPS - NEXT) for place in found.losses) >= NEXT
    return killed


# Steps, counted over all at which some seed is in the state: all in the second event or later, so that a frozen fossil
# is in the host. No seed is GERMINATED between two steps, so the process is killed inside the decision point.
IN_STATE = [
    Place(by="step", state="DORMANT", count=95),
    Place(by="move", state="GERMINATED", count=4),
    Place(by="step", state="LOADING", count=14),
    Place(by="step", state="TRAINING", count=27),
    Place(by="step", state="GRAFTING", count=7),
    Place(by="step", state="STABILIZATION", count=20),
    Place(by="step", state="EVALUATING", count=14),
    Place(by="step", state="FINE_TUNING", count=14),
    Place(by="step", state="FOSSILIZED", count=150),
    Place(by="step", state="CULLED", count=8),
    Place(by="step", state="CANCELLED", count=28),
    Place(by="step", state="ROLLED_BACK", count=9),
]


def test_the_places_are_every_state_of_a_seed():
    assert {place.state for place in IN_STATE} == {state.name for state in State}


@pytest.mark.parametrize("place", IN_STATE, ids=lambda place: place.state)
def test_killed_in_a_state(calm, tmp_path, place):
    setting = SGD if IN_STATE.index(place) % 2 else ADAM
    assert drill(tmp_path, calm, setting, place) == [True]


STATES = [state.name for state in State]
PLACES = st.one_of(
    st.builds(Place, by=st.just("step"), state=st.sampled_from(STATES), count=st.integers(1, 40)),
    st.builds(Place, by=st.just("move"), state=st.sampled_from(STATES), count=st.integers(1, 3)),
    st.builds(Place, by=st.just("file"), count=st.integers(1, 1500)),
    st.builds(Place, by=st.just("journal"), count=st.integers(1, 80), size_bytes=st.integers(0, 300)),
)


@settings(max_examples=12, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(setting=st.sampled_from([ADAM, SGD]), places=st.lists(PLACES, min_size=1, max_size=2))
def test_killed_anywhere_also_while_it_is_resumed(calm, tmp_path_factory, setting, places):
    drill(tmp_path_factory.mktemp("drill"), calm, setting, *places)
