"""Other libraries' trainers on a real runtime: what they grow there is judged, and the examples run as they stand."""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import esper
from esper.errors import NotFound
from esper.kasmina.lifecycle import State
from esper.loops.growing import Growing
from esper.tolaria.task import Task
from tests.flow.conftest import Calm
from tests.flow.drills import GROWING, copy_stock
from tests.flow.local import QUICK
from tests.loops import lightning_fit, transformers_fit
from tests.loops.course import Course, Died
from tests.loops.tasks import known
from tests.runtime.processes import ROOT, Runtime

pytestmark = [pytest.mark.slow, *lightning_fit.WARNINGS]
STEPS = GROWING["steps"]
SETTINGS = QUICK | {name: value for name, value in GROWING.items() if name != "steps"}


@dataclass(frozen=True)
class Library:
    """A library's trainer, and the task that it is given."""

    task: Task
    make_callback: Callable[..., Growing]
    run: Callable[..., Course]

    def callback(self, runtime: Runtime, folder: Path, **options: Any) -> Growing:
        given = {"runtime": str(runtime.home.root), "directory": folder / "run", "growth": SETTINGS}
        return self.make_callback(self.task, **(given | options))

    def fit(self, folder: Path, callback: Growing | None = None, **trouble: int) -> Course:
        return self.run(self.task, folder, callback, steps=STEPS, **trouble)


@pytest.fixture(scope="module", params=["lightning", "transformers"])
def library(request: pytest.FixtureRequest) -> Library:
    if request.param == "lightning":
        of_net = functools.partial(lightning_fit.EsperCallback, model="net")
        return Library(known("digits"), of_net, lightning_fit.fit)
    return Library(known("digits", named=True), transformers_fit.EsperCallback, transformers_fit.fit)


@pytest.fixture(scope="module")
def grown(library: Library, calm: Calm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Growing, Course]:
    """A fit that grows and that nobody disturbs."""
    folder = tmp_path_factory.mktemp("loops")
    copy_stock(calm.home, folder / "home")
    runtime = Runtime(folder)
    try:
        growing = library.callback(runtime, folder, run_id="grown", deterministic=True)
        return growing, library.fit(folder, growing)
    finally:
        assert runtime.stop() == 0, runtime.text


def test_a_graft_is_inserted_and_judged_and_the_model_is_plain_again(grown):
    growing, course = grown
    moves = [(move.source, move.target) for move in growing.moves]
    assert any(target is State.GRAFTING for _, target in moves)
    assert any(source is State.EVALUATING and target in (State.FINE_TUNING, State.CULLED) for source, target in moves)
    assert growing.session.ended and growing.session.steps_done == STEPS
    assert course.order[-1] == STEPS and sorted(course.digests) == list(range(1, STEPS + 1))
    assert max(course.sizes) > course.sizes[0]
    model = growing.handle.model
    assert esper.unwrap(model) is model
    with pytest.raises(NotFound):
        esper.handle_of(model)


def test_a_fit_that_died_is_resumed_to_the_same_end(library, grown, runtime, tmp_path):
    options = {"run_id": "grown", "deterministic": True}
    died = library.callback(runtime, tmp_path, **options)
    with pytest.raises(Died):
        library.fit(tmp_path, died, die_at=115)
    died.close()
    again = library.fit(tmp_path, library.callback(runtime, tmp_path, resume=True, **options))
    begun = again.order[0]
    assert 1 < begun <= 115
    assert again.digests == {step: digest for step, digest in grown[1].digests.items() if step >= begun}


def test_with_policy_never_every_step_is_that_of_the_trainer_alone(library, runtime, tmp_path):
    alone = library.fit(tmp_path)
    never = library.callback(runtime, tmp_path, growth=SETTINGS | {"policy": "never"})
    followed = library.fit(tmp_path, never)
    assert never.moves == []
    assert followed.order == alone.order == list(range(1, STEPS + 1))
    assert followed.losses == alone.losses and followed.digests == alone.digests


@pytest.mark.parametrize("name", ["lightning", "transformers_trainer"])
def test_an_example_runs_as_it_stands(nats_server, tmp_path, name):
    for source in (ROOT / "examples" / name).glob("*.py"):
        (tmp_path / source.name).write_text(source.read_text())
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"^\d+ parameters$", done.stdout, re.MULTILINE)
    assert " TRAINING -> " in done.stdout  # its candidates were tried
    runs = [path for path in (tmp_path / "runs").iterdir() if (path / "report.html").exists()]
    assert len(runs) == 1
    assert not (tmp_path / ".esper" / "runtime.json").exists()  # the runtime that it started has gone with it
