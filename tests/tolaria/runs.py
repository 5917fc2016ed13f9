"""A run of the noisy digits task that germinates, inserts and judges, and what a crash would leave of it."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from esper.kasmina.lifecycle import Transition
from esper.tolaria.task import load_task
from tests.flow.local import LocalRun, resume, start

STEPS = 250
# Keep anything that helps at all: what grows is by the way, that it grows is not.
EAGER = {"min_gain": 0.0, "min_standard_errors": 0.0, "nursery_steps": 40}


def noisy():
    return load_task("tests.tolaria.tasks:noisy")


def begin(directory: Path, **options: object) -> LocalRun:
    options = {"steps": STEPS, "growth": EAGER} | options
    return start(noisy(), directory, **options)


def go_on(directory: Path, **options: object) -> LocalRun:
    options = {"steps": STEPS, "growth": EAGER} | options
    return resume(noisy(), directory, **options)


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
        course.losses[run.session.steps_done] = run.losses[-1]
        if images and (to := images.get(run.session.steps_done)) and not to.exists():
            shutil.copytree(run.run.directory, to)
        if trouble:
            trouble(run)

    local.train(until, after_step=after_step)
    course.transitions = local.transitions
    course.parameters = {name: p.detach().clone() for name, p in local.run.parts.model.named_parameters()}
    return course


def crash_to(image: Path, directory: Path) -> None:
    """Put the files of a run back to what they were when it died."""
    shutil.rmtree(directory)
    shutil.copytree(image, directory)


def same_parameters(a: Course, b: Course) -> bool:
    return a.parameters.keys() == b.parameters.keys() and all(
        torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters
    )
