"""Lightning's own Trainer under the callback: each optimiser step is followed, what does not fit is refused."""

import importlib
import sys

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch.utils.data import DataLoader

import esper
from esper.errors import InvalidConfig, InvalidRequest, PreconditionFailed, WrapRefused
from esper.kasmina.lifecycle import State
from esper.loops.lightning import EsperCallback, TaskBatches
from tests.loops.course import Died, digest
from tests.loops.lightning_fit import WARNINGS, Module, Training, fit, make_trainer
from tests.loops.tasks import known

pytestmark = WARNINGS
SLOW = pytest.mark.slow  # over two seconds


def callback(task, **options):
    return EsperCallback(task, model="net", **options)


@pytest.mark.parametrize(
    "setting",
    [{}, {"accumulate": 2, "clip": 0.5}, pytest.param({"autocast": True}, marks=SLOW), {"schedule": False}],
)
def test_without_growth_every_step_is_that_of_the_trainer_alone(in_process, tmp_path, setting):
    task = known("regression", **setting)
    alone, followed = fit(task, tmp_path), fit(task, tmp_path, callback(task))
    assert followed.order == alone.order == list(range(1, 61))  # one for each optimiser step, not each micro-batch
    assert followed.losses == alone.losses and followed.digests == alone.digests


@SLOW
def test_a_graft_that_is_kept_leaves_a_grown_plain_model(in_process, tmp_path):
    task = known("regression", accumulate=2, clip=0.5)
    in_process.germinate_at = 20
    growing = callback(task)
    course = fit(task, tmp_path, growing, steps=120)
    assert {State.GRAFTING, State.FOSSILIZED} <= {move.target for move in growing.moves}
    assert max(course.sizes) > course.sizes[0]  # in the end folded, it may be no larger
    assert growing.session.ended and growing.session.steps_done == 120
    net = course.trainer.lightning_module.net
    assert esper.unwrap(net) is net and torch.isfinite(net(task.batch(0)[0][0])).all()


@SLOW
def test_after_a_cull_training_goes_on_without_the_graft(in_process, tmp_path):
    task = known("regression")
    in_process.germinate_at, in_process.keep = 20, False
    growing = callback(task)
    course = fit(task, tmp_path, growing, steps=120)
    assert {State.GRAFTING, State.CULLED} <= {move.target for move in growing.moves}
    assert max(course.sizes) > course.sizes[-1] == course.sizes[0]
    assert course.order == list(range(1, 121))


def test_a_lost_run_goes_back_and_then_trains_as_if_nothing_had_been(in_process, tmp_path):
    task = known("regression", accumulate=2)
    alone, lost = fit(task, tmp_path), fit(task, tmp_path, callback(task), poison_at=41)
    assert sorted(lost.order) != lost.order and lost.order[-1] == 60
    assert lost.digests == alone.digests
    assert lost.trainer.global_step == len(lost.order) > 60


@SLOW
def test_a_run_that_died_is_resumed_to_the_same_end(in_process, tmp_path):
    task = known("regression", clip=0.5)
    in_process.germinate_at = 20
    whole = fit(task, tmp_path, callback(task), steps=120)
    in_process.directory = tmp_path / "died"
    first = callback(task)
    with pytest.raises(Died):
        fit(task, tmp_path, first, steps=120, die_at=75)
    assert not first.session.ended
    late = callback(task, resume=True)
    with pytest.raises(PreconditionFailed, match="steps behind it already, and max_steps is 10; give more"):
        fit(task, tmp_path, late, steps=10)
    second = callback(task, resume=True)
    again = fit(task, tmp_path, second, steps=120)
    begun = again.order[0]
    assert 1 < begun <= 75 and again.order[-1] == 120
    assert again.digests == {step: digest for step, digest in whole.digests.items() if step >= begun}


def refused(task, tmp_path, message, *, module=None, loader=None, callbacks=(), error=InvalidConfig, **options):
    module = module or Module(task)
    growing = options.pop("growing", None) or callback(task)
    loader = TaskBatches(task, steps_per_epoch=25) if loader is None else loader
    before = list(module.net.state_dict())
    trainer = make_trainer(task, tmp_path, [growing, *callbacks], **options)
    with pytest.raises(error, match=message):
        trainer.fit(module, loader)
    assert growing.session is None and list(module.net.state_dict()) == before
    with pytest.raises(esper.EsperError):
        esper.handle_of(module.net)  # not wrapped


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("max_steps=-1; give", {"max_steps": -1, "max_epochs": 1}),
        ("batches that are made anew", {"reload_dataloaders_every_n_epochs": 1}),
        ("accumulate_grad_batches=3 and task 'regression' has accumulate=1", {"accumulate_grad_batches": 3}),
        ("gradient_clip_val=2.0 and task 'regression' has clip_norm=None", {"gradient_clip_val": 2.0}),
        ("autocast_dtype=torch.bfloat16 and task", {"precision": "bf16-mixed"}),
        ("precision '64-true' has no counterpart", {"precision": "64-true"}),
        ("StochasticWeightAveraging does not go with growth", {"callbacks": [StochasticWeightAveraging(1e-2)]}),
        ("GradientAccumulationScheduler does not", {"callbacks": [GradientAccumulationScheduler({0: 1})]}),
    ],
)
def test_a_trainer_that_a_run_cannot_follow_is_refused(in_process, tmp_path, message, options):
    refused(known("regression"), tmp_path, message, **options)


def test_the_trainers_own_checkpoints_are_written_and_resuming_from_them_is_refused(in_process, tmp_path):
    task = known("regression")
    saved = tmp_path / "saved.ckpt"
    fit(task, tmp_path, callback(task), steps=4).trainer.save_checkpoint(saved)
    module = Module(task)
    before = digest(module)
    in_process.directory = tmp_path / "again"
    growing = callback(task)
    trainer = make_trainer(task, tmp_path, [growing])
    with pytest.raises(InvalidConfig, match=r"fit\(ckpt_path=...\).*resume=True"):
        trainer.fit(module, TaskBatches(task, steps_per_epoch=25), ckpt_path=saved)
    assert growing.session is None and digest(module) == before
    module.load_state_dict(module.state_dict())  # which is nobody's business any more


def test_clipping_by_value_is_refused(in_process, tmp_path):
    refused(known("regression", clip=0.5), tmp_path, "clips by norm", gradient_clip_algorithm="value")


def test_several_devices_are_refused(tmp_path):
    task = known("regression")
    trainer = make_trainer(task, tmp_path, devices=2, strategy="ddp_spawn")
    with pytest.raises(InvalidConfig, match=r"DDPStrategy on 2 devices.*give Trainer\(devices=1\)"):
        callback(task).setup(trainer, Module(task), "fit")


def test_manual_optimisation_with_its_several_optimisers_is_refused(in_process, tmp_path):
    module = Module(known("regression"))
    module.automatic_optimization = False
    refused(known("regression"), tmp_path, "automatic_optimization is False", module=module)


class PerEpoch(Module):
    def configure_optimizers(self):
        optimizer = self.task.make_optimizer(self.net)
        return [optimizer], [self.task.make_scheduler(optimizer)]


class Other(Module):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 1e-2)


class Wider(Module):
    def configure_optimizers(self):
        self.more = torch.nn.Linear(2, 2)
        return torch.optim.Adam([*self.net.parameters(), *self.more.parameters()], 1e-2)


@pytest.mark.parametrize(
    ("message", "module", "setting"),
    [
        ("CosineAnnealingLR every 1 epoch", PerEpoch, {}),
        ("optimiser: SGD here, and Adam", Other, {"schedule": False}),
        ("a parameter not of the model", Wider, {"schedule": False}),
    ],
)
def test_an_optimiser_that_the_task_would_not_make_is_refused(in_process, tmp_path, message, module, setting):
    task = known("regression", **setting)
    refused(task, tmp_path, message, module=module(task))


def test_batches_of_somebody_elses_are_refused(in_process, tmp_path):
    task = known("regression")
    refused(task, tmp_path, "come from a list.*TaskBatches", loader=DataLoader([task.batch(0)], batch_size=None))
    refused(task, tmp_path, "batches without a length", loader=TaskBatches(task))


def test_a_submodule_or_layer_that_is_not_there_is_refused(in_process, tmp_path):
    task = known("regression")
    refused(task, tmp_path, "no submodule 'nett', it has net", growing=EsperCallback(task, model="nett"))
    refused(task, tmp_path, "nothing", growing=callback(task, target_layers="nothing"), error=WrapRefused)
    handle = esper.wrap(task.build_model(), "2", example=torch.zeros(2, 5))
    refused(task, tmp_path, "handle's Sequential is no part", growing=EsperCallback(task, handle=handle))


def test_a_handle_and_layers_are_not_given_both():
    task = known("regression")
    handle = esper.wrap(task.build_model(), "2", example=torch.zeros(2, 5))
    with pytest.raises(InvalidConfig, match="give it, or target_layers, not both"):
        EsperCallback(task, handle=handle, target_layers="2")


def test_a_model_that_is_wrapped_already_keeps_its_handle(in_process, tmp_path):
    task = known("regression")
    module = Module(task)
    handle = esper.wrap(module.net, "2", seeds_per_layer=3, example=torch.zeros(2, 5))
    growing = EsperCallback(task, handle=handle)
    make_trainer(task, tmp_path, [growing], max_steps=3).fit(module, TaskBatches(task, steps_per_epoch=3))
    assert growing.handle is handle and growing.session.steps_done == 3


class Halved(Module):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] / 2, batch[1]]


class Summed(Module):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 3


@pytest.mark.parametrize(
    ("message", "module"), [("batch of step 0 is not what task", Halved), ("first loss is .* a twin would", Summed)]
)
def test_training_on_another_batch_or_loss_is_refused_at_the_first_step(in_process, tmp_path, message, module):
    task = known("regression")
    growing = callback(task)
    trainer = make_trainer(task, tmp_path, [growing])
    with pytest.raises(InvalidRequest, match=message):
        trainer.fit(module(task), TaskBatches(task, steps_per_epoch=25))
    assert growing.session.steps_done == 0 and not growing.session.ended


def test_an_epoch_that_cuts_a_step_is_refused(in_process, tmp_path):
    task = known("regression", accumulate=2)
    trainer = make_trainer(task, tmp_path, [callback(task)], limit_train_batches=5)
    with pytest.raises(InvalidRequest, match=r"step 2 was trained on 1 micro-batches.*gives 2"):
        trainer.fit(Module(task), TaskBatches(task, steps_per_epoch=25))


def test_a_callback_serves_one_fit(in_process, tmp_path):
    task = known("regression")
    growing = callback(task)
    fit(task, tmp_path, growing, steps=3)
    with pytest.raises(PreconditionFailed, match="has had its fit"):
        fit(task, tmp_path, growing, steps=3)


def test_without_lightning_the_extra_is_named(monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "esper.loops.lightning")
    with pytest.raises(ImportError, match=r'pip install "esper\[lightning\]"'):
        importlib.import_module("esper.loops.lightning")


def test_a_task_may_make_the_whole_lightning_module(in_process, tmp_path):
    task = known("module")
    growing = EsperCallback(task)
    module = task.build_model()
    in_process.germinate_at = 10
    trainer = make_trainer(task, tmp_path, [growing], max_steps=40)
    trainer.fit(module, TaskBatches(task, steps_per_epoch=25))
    assert growing.handle.model is module and growing.session.steps_done == 40
    assert State.GRAFTING in {move.target for move in growing.moves}
    assert esper.unwrap(module) is module


def test_the_other_package_of_lightning_serves_as_well(in_process, tmp_path):
    import pytorch_lightning

    assert pytorch_lightning.Callback is not lightning.Callback
    task = known("regression")

    class Old(Training, pytorch_lightning.LightningModule):
        pass

    growing = callback(task)
    trainer = make_trainer(task, tmp_path, [growing], max_steps=5, kind=pytorch_lightning.Trainer)
    trainer.fit(Old(task), TaskBatches(task, steps_per_epoch=3))
    assert growing.session.steps_done == 5 and growing.session.ended
