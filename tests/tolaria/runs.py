"""A run of the noisy digits task that germinates, inserts and judges, and what a crash would leave of it."""

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from esper.kasmina.lifecycle import Transition
from esper.kasmina.wrap import unwrap
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.task import load_task
from tests.flow.local import LocalRun, Shelf, start
from tests.tolaria.script import Script

STEPS = 250
GROWTH = {"max_twin_lag_steps": 20}  # a twin ends 20 steps after its last verdict


def noisy():
    return load_task("tests.tolaria.tasks:noisy")


def begin(directory: Path, *, keep: bool = True, **options: object) -> LocalRun:
    """A fresh run whose controller is a script."""
    local = start(noisy(), directory, **({"steps": STEPS, "growth": GROWTH} | options))
    torch.manual_seed(0)
    local.line.decide = Script(local.shelf, keep=keep)
    return local


def go_on(directory: Path, shelf: Shelf, *, keep: bool = True, **options: object) -> LocalRun:
    """The run that died in `directory`, put to its latest checkpoint; `shelf` is the library, which outlives it."""
    manifest, tensors = CheckpointStore(directory / "checkpoints").latest()
    local = start(noisy(), directory, **({"steps": STEPS, "growth": GROWTH, "shelf": shelf} | options))
    local.line.decide = Script(shelf, keep=keep)
    local.session.resume(manifest, tensors)
    return local


@dataclass
class Course:
    """What a run did: its loss after each step, its seeds' moves, its last parameters."""

    losses: dict[int, float] = field(default_factory=dict)
    transitions: list[Transition] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)


def follow(local: LocalRun, until: int = STEPS, *, images: dict[int, Path] | None = None, trouble=None) -> Course:
    """Train `local` to the end; `images`: where to leave what a crash after that step would leave.

    `trouble(local)` is called after each step.
    """
    course = Course()

    def after_step(run: LocalRun) -> None:
        if math.isfinite(run.losses[-1]):  # a lost step has no place in the course
            course.losses[run.session.steps_done] = run.losses[-1]
        if images and (to := images.get(run.session.steps_done)) and not to.exists():
            shutil.copytree(run.run.directory, to)
        if trouble:
            trouble(run)

    local.train(until, after_step=after_step)
    course.transitions = local.transitions
    course.parameters = {name: p.detach().clone() for name, p in local.run.parts.model.named_parameters()}
    return course


def let_go(local: LocalRun) -> None:
    """Leave a run as a crash would, its files where they are. What it set in torch for the process goes with it."""
    local.session.reports.end_sampling()
    local.session.arrivals.journal.close()
    local.line.close()
    local.runner.close()
    unwrap(local.run.parts.model)


def crash_to(image: Path, directory: Path) -> None:
    """Put the files of a run back to what they were when it died."""
    shutil.rmtree(directory)
    shutil.copytree(image, directory)


def same_parameters(a: Course, b: Course) -> bool:
    return a.parameters.keys() == b.parameters.keys() and all(
        torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters
    )
