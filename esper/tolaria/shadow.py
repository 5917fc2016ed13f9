"""The nursery of a run whose task no other process can make, such as one written in a notebook.

It works inside the session's calls. Candidates are trained beside the live host, on every k-th step, on the batch
that the host has just been trained on: the host's parameters take no gradient, and its buffers, modes and generators
come back, so that it goes on bit for bit as if nobody were tried beside it. Measurements are made at decision points,
on a second model that is put to the measured state. There is no twin: a verdict's control is the same state without
the graft.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.errors import InvalidConfig, NotFound
from esper.host.kept import kept_generators
from esper.host.sites import Site
from esper.kasmina.codec import read_assignment
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import State
from esper.kasmina.nursery.trial import Trial
from esper.kasmina.nursery.worker import NurseryWorker, candidates_of, failed, options_of, trial_result
from esper.kasmina.regrow import GraftSpec, device_of
from esper.tolaria.replay import OnTask, Replay
from esper.tolaria.snapshot import load
from esper.tolaria.task import Batch, Task

if TYPE_CHECKING:
    from esper.tolaria.run import Run

EVERY_STEPS = 2


@dataclass(slots=True)
class _Open:
    """A trial that has been asked for. `trial`: once its first batch is there."""

    job: nursery_pb2.Job
    trial: Trial | None = None
    wall_s: float = 0.0
    flops: float = 0.0  # of attempts that were given up

    def give_up(self) -> None:
        """What candidates have learned is of no use any more; what it cost stays."""
        if self.trial is not None:
            self.flops += self.trial.meter.total
            self.trial = None


class ShadowNursery:
    """Does one run's nursery jobs in its own process, in the training thread.

    A trial of n steps lasts n steps of the host; its candidates take one on every `every_steps`-th of them, the first
    included, and are read as in any trial. Between those steps, and while there is no trial, `step` does nothing.
    """

    def __init__(self, run: Run, task: Task, every_steps: int = EVERY_STEPS) -> None:
        self.every_steps = every_steps
        self._run = run
        self._task = task
        self._host = _Live(run, task)
        self._measuring = NurseryWorker(self._make_run, self._kernel, run.directory)
        self._trials: dict[str, _Open] = {}
        self._measures: dict[str, nursery_pb2.Job] = {}
        self._done: list[nursery_pb2.JobResult] = []

    @property
    def notice(self) -> str:
        """What is different in such a run, and the remedy."""
        return (
            f"no worker can import task {self._task.name!r}, so candidates are tried inside session.step, on one step "
            f"of {self.every_steps}, and verdicts have no twin (control=ablation); put the task in a module and pass "
            "task='module:callable' to have both done in the background"
        )

    def submit(self, job: nursery_pb2.Job) -> None:
        """Take a trial or a measurement. A trial that was open when its run was interrupted begins again."""
        if job.HasField("trial"):
            job.due_step = self._run.step + job.trial.steps
            self._trials[job.job_id] = _Open(job)
        else:
            self._measures[job.job_id] = job

    def cancel(self, job_id: str) -> None:
        """Leave a job undone; one that is done or unknown is left alone."""
        self._trials.pop(job_id, None)
        self._measures.pop(job_id, None)

    def step(self, batch: Batch) -> None:
        """After a step of the host on `batch`, a list of micro-batches where the task accumulates."""
        for opened in list(self._trials.values()):
            began = time.perf_counter()
            result = self._step(opened, batch)
            opened.wall_s += time.perf_counter() - began
            if result is not None:
                opened.give_up()
                result.wall_s, result.flops = opened.wall_s, opened.flops
                del self._trials[opened.job.job_id]
                self._done.append(result)

    def went_back(self) -> None:
        """The host was put back to an earlier state: what candidates learned beside a host that is gone goes too."""
        for opened in self._trials.values():
            opened.give_up()
            opened.job.due_step = self._run.step + opened.job.trial.steps

    def collect(self) -> list[nursery_pb2.JobResult]:
        """At a decision point: make the measurements whose snapshots are written, and return all results so far."""
        for job in [job for job in self._measures.values() if self._readable(job)]:
            del self._measures[job.job_id]
            with kept_generators(self._run.parts.model):
                self._measuring.do(job, self._done.append)
        done, self._done = self._done, []
        return done

    def _step(self, opened: _Open, batch: Batch) -> nursery_pb2.JobResult | None:
        """The trial's result, if this was its last step, or if it cannot go on."""
        model, job = self._run.parts.model, opened.job
        done = opened.trial.done if opened.trial is not None else 0
        trains, reads = done % self.every_steps == 0, options_of(job.trial).reads(done + 1)
        try:
            if not trains and not reads:
                assert opened.trial is not None
                opened.trial.passed()
                return None
            batches = list(batch) if self._task.accumulate > 1 else [batch]
            with kept_generators(model), torch.enable_grad(), _uncompiled():
                trial = opened.trial = opened.trial or self._begin(job, batches)
                if trains:
                    trial.train(batches)
                trial.passed()
            return trial_result(job, trial.outcome()) if trial.over or self._is_idle(job) else None
        except Exception as error:  # the user's loss and data and a kernel may raise anything; training goes on
            return failed(job, error)

    def _begin(self, job: nursery_pb2.Job, batches: Sequence[Batch]) -> Trial:
        return Trial(self._host, candidates_of(job.trial, self._kernel), options_of(job.trial), batches)

    def _is_idle(self, job: nursery_pb2.Job) -> bool:
        """Whether nobody waits for what the trial finds: none of its seeds is being tried any more."""
        table = self._run.executor.table
        return all(table[read_assignment(c).seed].state is not State.TRAINING for c in job.trial.candidates)

    def _readable(self, job: nursery_pb2.Job) -> bool:
        """Whether a measurement's snapshots are written, which others do; by the next decision point all should be."""
        paths = {arm.snapshot.path for arm in (*job.measure.arms, *job.measure.controls)}
        return self._run.step > job.due_step or all(Path(path).exists() for path in paths)

    def _kernel(self, artifact_id: str) -> Kernel:
        if artifact_id not in self._run.executor.kernels:
            raise NotFound(f"kernel {artifact_id} is not loaded in this process")
        return self._run.executor.kernels[artifact_id]

    def _make_run(
        self,
        task: training_pb2.TaskReference,
        snapshot: Path | None,
        grafts: Sequence[GraftSpec],
        kernels: dict[str, Kernel],
        *,
        site_names: Iterable[str] = (),
        without: Iterable[GraftSpec] = (),
        fresh_weights_seed: int | None = None,
    ) -> Replay:
        """The run's model again, at a snapshot; the nursery's MakeRun, which here only measurements call."""
        assert snapshot is not None and fresh_weights_seed is None
        device = device_of(self._run.parts.model)
        replay = Replay(self._task, load(snapshot), grafts, kernels, site_names=site_names, device=device)
        for spec in without:
            replay.take_out(spec)
        return replay


def refuse_ranks(task: Task | None) -> None:
    """Raise InvalidConfig for a task that only this process can make: of several ranks none tries candidates itself."""
    if task is not None and task.reference is None:
        raise InvalidConfig(
            f"no worker can import task {task.name!r}, and of several ranks none tries candidates in its own steps; "
            "put the task in a module and pass task='module:callable'"
        )


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    """What torch.compile made of the host is not made again for the sites that are swapped while a pass takes."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


class _Live(OnTask):
    """The model in training as a trial sees it; implements the nursery's TrialHost."""

    def __init__(self, run: Run, task: Task) -> None:
        super().__init__(task)
        self._run = run

    @property
    def model(self) -> nn.Module:
        return self._run.parts.model

    @property
    def optimizer(self) -> Optimizer:
        return self._run.parts.optimizer

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._run.executor.sites
