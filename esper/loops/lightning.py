"""Grow a model while Lightning trains it.

    module = MyModule(task.build_model())                            # a LightningModule that holds it as `net`
    callback = EsperCallback("my_task:make_task", model="net")
    trainer = Trainer(max_steps=1500, callbacks=[callback], devices=1)
    trainer.fit(module, TaskBatches("my_task:make_task", steps_per_epoch=100))
    plain = esper.unwrap(module.net)

The trainer counts the optimiser steps that it takes, the session those that the model has behind it. Where a run goes
back, the trainer's `max_steps` rises by the steps that are undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from esper.errors import InvalidConfig, InvalidRequest
from esper.loops.alike import refuse_other
from esper.loops.batches import TaskBatches
from esper.loops.growing import Growing, task_batches
from esper.tolaria.task import Task

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise ImportError('esper.loops.lightning needs Lightning: pip install "esper[lightning]"') from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["EsperCallback", "TaskBatches"]

_LOADER = "give trainer.fit(module, TaskBatches(task, steps_per_epoch=...)), from esper.loops.lightning"
_PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Lightning's callbacks that change what the run holds, by class name, and what to do instead.
_UNFIT = {
    "StochasticWeightAveraging": "it pairs averaged weights with the model's by place, and growth moves these",
    "WeightAveraging": "it pairs averaged weights with the model's by place, and growth moves these",
    "ModelPruning": "it replaces parameters, and a twin would have the plain ones",
    "BaseFinetuning": "it adds parameter groups during the run, and a twin would have the first ones",
    "GradientAccumulationScheduler": "it changes how many micro-batches a step has, and a task has one number",
}


class EsperCallback(Growing, Callback):  # type: ignore[misc] # Lightning is not there for mypy
    """Lightning's `Callback` that grows what its Trainer trains.

    `model`: name of the submodule that `task.make_model` makes ("net"); "" where it makes the LightningModule itself.
    The rest as for `Growing`. Raises InvalidConfig, when the fit is set up, for what does not fit; see docs/loops.md.
    """

    def __init__(self, task: str | Task, *, model: str = "", **options: Any) -> None:
        super().__init__(task, **options)
        self.model = model
        self._total_steps = 0
        self._optimizer_steps = 0  # of the trainer, when the last one was told of
        self._guard: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook: refuse what cannot be supported, before anything is made."""
        if stage == "fit":
            self.refuse_second_fit()
            _refuse_trainer(trainer, pl_module)
            _refuse_settings(trainer, self.task)
            self._model_of(pl_module)
            # whether fit was given a checkpoint is told to nobody before it is read
            self._guard = pl_module.register_load_state_dict_pre_hook(_refuse_restoring)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook, after it would have restored a checkpoint."""
        self._guard.remove()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook: wrap and attach."""
        batches = task_batches(trainer.train_dataloader, _LOADER)
        if not batches.steps_per_epoch:
            raise InvalidConfig(
                f"Lightning fetches batches without a length ahead, which a run may take back; {_LOADER}"
            )
        self._total_steps = trainer.max_steps
        optimizer, scheduler = trainer.optimizers[0], _scheduler(trainer)
        self.begin(self._model_of(pl_module), optimizer, scheduler, trainer.scaler, batches, self._total_steps)
        self._set_last_step(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Lightning's hook."""
        self.before_forward(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook, after the optimiser's and the scheduler's step where there was one."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            raise InvalidRequest("training_step returned no loss, and a twin would train on this batch; return one")
        self.after_forward(batch, loss)  # Lightning has divided it by the number of micro-batches
        if trainer.global_step > self._optimizer_steps:
            if self.stepped():
                self._set_last_step(trainer)
            self._optimizer_steps = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook."""
        self.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning's hook: the run is let go of as it is, and can be resumed."""
        if self._guard is not None:
            self._guard.remove()
        self.close()

    def _set_last_step(self, trainer: Trainer) -> None:
        """Lightning ends where the model has all its steps behind it."""
        undone = trainer.global_step - self.running.steps_done
        trainer.fit_loop.epoch_loop.max_steps = self._total_steps + undone

    def _model_of(self, pl_module: LightningModule) -> nn.Module:
        if self.handle is not None:
            wrapped: nn.Module = self.handle.model
            if not any(module is wrapped for module in pl_module.modules()):
                raise InvalidConfig(
                    f"the handle's {type(wrapped).__name__} is no part of the {type(pl_module).__name__}; wrap one"
                )
            return wrapped
        try:
            found: nn.Module = pl_module.get_submodule(self.model)
        except AttributeError as error:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise InvalidConfig(
                f"{type(pl_module).__name__} has no submodule {self.model!r}, it has {names}; name in `model` the one "
                f"that task {self.task.name!r} makes"
            ) from error
        return found


def _refuse_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Raise InvalidConfig for a kind of training that a run cannot follow."""
    strategy = trainer.strategy
    if not _is_a(strategy, "SingleDeviceStrategy") or trainer.world_size > 1:
        raise InvalidConfig(
            f"{type(strategy).__name__} on {trainer.world_size} devices: a model grows under Lightning on one device; "
            "give Trainer(devices=1), or train several ranks in a loop of your own, as docs/ddp.md shows"
        )
    if not module.automatic_optimization:
        raise InvalidConfig(
            "automatic_optimization is False, and Esper follows the one optimiser that Lightning steps; let Lightning "
            "optimise, or write the loop yourself with session.step and session.decide"
        )
    if trainer.max_steps < 1:
        raise InvalidConfig(
            f"the trainer has max_steps={trainer.max_steps}; give Trainer(max_steps=...), a run has an end"
        )
    if trainer.reload_dataloaders_every_n_epochs:
        raise InvalidConfig("batches that are made anew follow no run; give reload_dataloaders_every_n_epochs=0")
    for callback in trainer.callbacks:
        for name, why in _UNFIT.items():
            if _is_a(callback, name):
                raise InvalidConfig(f"{type(callback).__name__} does not go with growth: {why}; take it out")


def _refuse_restoring(*_: object) -> None:
    """In place of loading a state dict. Raises InvalidConfig."""
    raise InvalidConfig(
        "fit(ckpt_path=...) would restore a part of what a run is, without its seeds; give EsperCallback(run_id=..., "
        "resume=True), which goes on from the run's own checkpoint of model, optimiser, scheduler and generators"
    )


def _refuse_settings(trainer: Trainer, task: Task) -> None:
    """Raise InvalidConfig where the trainer takes a step otherwise than the task's twin would."""
    if trainer.precision not in _PRECISIONS:
        raise InvalidConfig(
            f"precision {trainer.precision!r} has no counterpart in a task; take one of {', '.join(_PRECISIONS)}"
        )
    refuse_other(
        task,
        f"precision {trainer.precision!r}, autocast_dtype",
        _PRECISIONS[trainer.precision],
        "autocast_dtype",
        task.autocast_dtype,
    )
    refuse_other(task, "accumulate_grad_batches", trainer.accumulate_grad_batches, "accumulate", task.accumulate)
    refuse_other(task, "gradient_clip_val", trainer.gradient_clip_val or None, "clip_norm", task.clip_norm)
    if trainer.gradient_clip_val and str(trainer.gradient_clip_algorithm or "norm") != "norm":
        raise InvalidConfig("a task clips by norm; give Trainer(gradient_clip_algorithm='norm')")


def _scheduler(trainer: Trainer) -> LRScheduler | None:
    """The one scheduler, which steps with the optimiser. Raises InvalidConfig for another use of it."""
    configs = trainer.lr_scheduler_configs
    if not configs:
        return None
    config = configs[0]
    if (
        len(configs) > 1
        or config.interval != "step"
        or config.frequency != 1
        or _is_a(config.scheduler, "ReduceLROnPlateau")
    ):
        raise InvalidConfig(
            f"{len(configs)} schedulers, the first a {type(config.scheduler).__name__} every {config.frequency} "
            f"{config.interval}: a twin steps one after each optimiser step; return one with interval='step' and "
            "frequency=1, and no ReduceLROnPlateau"
        )
    scheduler: LRScheduler = config.scheduler
    return scheduler


def _is_a(thing: object, name: str) -> bool:
    """By name, since `lightning` and `pytorch_lightning` have a class each."""
    return any(base.__name__ == name for base in type(thing).__mro__)
