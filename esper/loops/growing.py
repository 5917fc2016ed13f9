"""The run of a trainer that is not Esper's: tied at its start, told of each optimiser step, ended with it.

Each callback here is a `Growing` and its library's callback: it turns the library's hooks into these calls.

    begin                             once, when model, optimiser and loader are there
    before_forward, after_forward     for each micro-batch
    stepped                           after each optimiser step
    finish, or close                  once
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree
from torch.utils.data import DataLoader

from esper.errors import InvalidConfig, InvalidRequest, PreconditionFailed
from esper.host.kept import kept_buffers, kept_generators
from esper.kasmina.handle import ModelHandle
from esper.kasmina.lifecycle import Transition
from esper.kasmina.wrap import unwrap, wrap
from esper.loops.alike import refuse_unlike
from esper.loops.batches import TaskBatches, known_task
from esper.runtime.attach import attach
from esper.runtime.home import Contact
from esper.tolaria import generators
from esper.tolaria.generators import GeneratorStates
from esper.tolaria.session import Session
from esper.tolaria.step import Parts, mean_loss
from esper.tolaria.task import Batch, Task

# Between the trainer's first loss and the task's, relative and absolute; other arithmetic is closer.
LOSS_TOLERANCE, LEAST_DIFFERENCE = 0.01, 1e-6


class Growing:
    """A callback's part that no library has a say in.

    `task`: "module:callable" that makes the same model, loss, optimiser and data elsewhere, or an esper.Task.
    `target_layers` and `seeds_per_layer`: as for esper.wrap, the task's own by default; or `handle`, of a model that
    is wrapped already. The others are those of esper.attach.

    `session` is the run's, from the start of training on; `moves` are its seeds' moves so far. One callback serves one
    fit.
    """

    def __init__(
        self,
        task: str | Task,
        *,
        target_layers: Any = None,
        seeds_per_layer: int = 0,
        handle: ModelHandle | None = None,
        runtime: str | Contact | None = None,
        run_id: str = "",
        directory: str | Path = "",
        seed: int = 0,
        growth: Mapping[str, Any] | None = None,
        budget: Mapping[str, Any] | None = None,
        deterministic: bool = False,
        resume: bool = False,
    ) -> None:
        if handle is not None and (target_layers is not None or seeds_per_layer):
            raise InvalidConfig("a handle has its layers and seeds already; give it, or target_layers, not both")
        self.task = known_task(task)
        self.target_layers = target_layers if target_layers is not None else self.task.target_layers
        self.seeds_per_layer = seeds_per_layer or self.task.seeds_per_layer
        self.handle = handle
        self.session: Session | None = None
        self.moves: list[Transition] = []
        self._options = {
            "runtime": runtime,
            "run_id": run_id,
            "directory": directory,
            "seed": seed,
            "growth": growth,
            "budget": budget,
            "deterministic": deterministic,
            "resume": resume,
        }
        self._batches: TaskBatches | None = None
        self._step_batches: list[Batch] = []
        self._step_losses: list[Tensor] = []
        self._task_losses: list[Tensor] = []  # of the first step, by the task's own forward and loss
        self._is_first_step = True
        self._closed = False
        self._drawn: GeneratorStates | None = None  # what the next step is to draw from

    def begin(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        scaler: torch.amp.GradScaler | None,
        batches: TaskBatches,
        total_steps: int,
    ) -> Session:
        """Wrap the model and attach its run. Raises what they raise, and then the model is as it was.

        Raises InvalidConfig where the trainer's parts are not what the task makes, PreconditionFailed where the
        callback has had its fit, or where a resumed run has all its steps.
        """
        self.refuse_second_fit()
        task = self.task
        refuse_device(task, model)
        refuse_unlike(task, Parts(model, optimizer, scheduler, scaler))
        handle = self.handle or wrap(
            model, self.target_layers, self.seeds_per_layer, run=lambda m: task.forward(m, task.micro_batches(0)[0])
        )
        try:
            session = attach(
                handle,
                optimizer,
                task=task,
                scheduler=scheduler,
                scaler=scaler,
                total_steps=total_steps,
                **self._options,  # type: ignore[arg-type]
            )
            _refuse_ended(session, total_steps)
        except BaseException:
            if self.handle is None:
                unwrap(model)
            raise
        self.handle, self.session, self._batches = handle, session, batches
        batches.follow(lambda: session.steps_done)
        if session.steps_done:
            self._drawn = generators.capture(model)
        return session

    def refuse_second_fit(self) -> None:
        """Raise PreconditionFailed where there has been one."""
        if self.session is not None:
            raise PreconditionFailed("this EsperCallback has had its fit; make another one for the next")

    @property
    def running(self) -> Session:
        """The session of the run. Raises PreconditionFailed before its start."""
        if self.session is None:
            raise PreconditionFailed("training has not begun, so there is no session yet")
        return self.session

    @property
    def micro_batch(self) -> int:
        """How many micro-batches of this step have been trained on."""
        return len(self._step_batches)

    def before_forward(self, batch: Batch) -> None:
        """Right before the trainer's forward of a micro-batch."""
        if self._drawn is not None:  # whoever made a loader's iterator anew has drawn since
            self._drawn.restore()
            self._drawn = None
        if self._is_first_step:
            model = self.running.run.parts.model
            with torch.no_grad(), kept_generators(model), kept_buffers(model):
                self._task_losses.append(mean_loss(model, self.task, batch))

    def after_forward(self, batch: Batch, loss: Tensor) -> None:
        """`loss`: the micro-batch's share of the step's loss, 0-dim, so that the shares add up to it."""
        self._step_batches.append(batch)
        self._step_losses.append(loss.detach())

    def stepped(self) -> int:
        """After the optimiser's step and the scheduler's. Returns how many steps the run has gone back, or 0.

        Raises InvalidRequest where the step was not on the task's batches, or its loss not the task's.
        """
        session, task = self.running, self.task
        batches, losses = self._step_batches, self._step_losses
        self._step_batches, self._step_losses = [], []
        if len(batches) != task.accumulate:
            raise InvalidRequest(
                f"step {session.steps_done} was trained on {len(batches)} micro-batches, and task {task.name!r} gives "
                f"{task.accumulate}; call the model once for each, and let an epoch hold whole steps"
            )
        loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        self._check_first_loss(loss)
        before = session.steps_done
        session.step(batches[0] if task.accumulate == 1 else batches, loss)
        if session.due:
            self.moves += session.decide()
        undone = before + 1 - session.steps_done
        if undone:
            assert self._batches is not None
            self._batches.go_to(session.steps_done)
            self._drawn = generators.capture(session.run.parts.model)
        return undone

    def finish(self) -> None:
        """End the run, as session.finish does."""
        self.running.finish()

    def close(self) -> None:
        """Let go of a run that did not come to its end; `resume=True` goes on with it."""
        if self.session is not None and not self.session.ended and not self._closed:
            self._closed = True
            self.session.close()

    def _check_first_loss(self, loss: Tensor) -> None:
        if not self._is_first_step:
            return
        self._is_first_step = False
        expected = float(torch.stack(self._task_losses).mean())
        self._task_losses.clear()
        difference = abs(float(loss) - expected)
        if difference > max(LOSS_TOLERANCE * abs(expected), LEAST_DIFFERENCE):
            raise InvalidRequest(
                f"the trainer's first loss is {float(loss):g}, and task {self.task.name!r} makes {expected:g} of the "
                "same batch and weights, so a twin would train on another loss; give the task the trainer's "
                "forward, loss and autocast"
            )


def task_batches(loader: object, how: str) -> TaskBatches:
    """The TaskBatches behind a trainer's loader. Raises InvalidConfig, naming `how` to make one."""
    batches = getattr(loader, "dataset", loader)
    if not isinstance(batches, TaskBatches):
        raise InvalidConfig(
            f"the trainer's batches come from a {type(batches).__name__}, and a twin must train on the same ones step "
            f"by step; {how}"
        )
    if isinstance(loader, DataLoader) and loader.num_workers:
        raise InvalidConfig(
            f"the loader has num_workers={loader.num_workers}, and workers would not see the run go back; give 0"
        )
    return batches


def _refuse_ended(session: Session, total_steps: int) -> None:
    if session.steps_done >= total_steps:
        session.close()
        raise PreconditionFailed(
            f"run {session.run.run_id!r} has {session.steps_done} steps behind it already, and max_steps is "
            f"{total_steps}; give more"
        )


def refuse_device(task: Task, model: nn.Module) -> None:
    """Raise InvalidConfig where the task's batches are not where the model is."""
    wanted = next(model.parameters()).device
    leaves = _pytree.tree_leaves(task.micro_batches(0)[0])
    given = next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), wanted)
    if given.type != wanted.type:
        raise InvalidConfig(
            f"task {task.name!r} gives batches on {given} and the trainer has the model on {wanted}; make them there, "
            f"or train on {given}"
        )
