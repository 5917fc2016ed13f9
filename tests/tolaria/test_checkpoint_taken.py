"""Taking a checkpoint: a copy in the step, and nothing of it on disk before the line's other side writes it."""

import threading

import torch

from esper.api.common.v1 import training_pb2
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.gateway import Gateway
from tests.tolaria.checkpoints import filled, manifest, spool, tensors_in
from tests.tolaria.outside import Beyond, Trainer, hello
from tests.tolaria.quiet import QuietLine, session_of, train


class Later(QuietLine):
    """A line whose other side has not come round to its work yet."""

    def post(self, make):
        self.loads.append(make)

    def catch_up(self):
        for make in self.loads:
            super().post(make)


def test_the_training_thread_copies_and_the_line_writes(tmp_path):
    session = session_of(tmp_path / "run")
    session.run.line = line = Later()
    train(session, 3)
    session.checkpoint()
    copied = {name: p.detach().clone() for name, p in session.run.parts.model.named_parameters()}
    assert list(session.run.spool.folder.iterdir()) == []
    train(session, 4)
    line.catch_up()
    (request,) = line.said("checkpoint")
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert store.write_spooled(request.manifest) is None
    held = tensors_in(store.folders()[0])
    assert store.latest()[0].step == 3
    assert all(torch.equal(held[f"model.{name}"], tensor) for name, tensor in copied.items())
    now = dict(session.run.parts.model.named_parameters())
    assert not all(torch.equal(held[f"model.{name}"], now[name]) for name in copied)
    session.close()


async def test_a_checkpoint_that_is_being_written_holds_up_no_other_run(tmp_path, monkeypatch):
    written, write_spooled = threading.Event(), CheckpointStore.write_spooled

    def slow(store, asked):
        assert written.wait(20)
        return write_spooled(store, asked)

    monkeypatch.setattr(CheckpointStore, "write_spooled", slow)
    gateway = Gateway(Beyond(), [], [])
    one, two = Trainer(gateway.attach), Trainer(gateway.attach)
    one.say(1, hello=hello(directory=str(tmp_path)))
    two.say(1, hello=hello(run_id="run-2"))
    reference = training_pb2.SnapshotReference(path=str(spool(tmp_path, filled(1.0))))
    one.say(2, checkpoint={"manifest": manifest(40, tensors=reference)})
    two.say(2, note={"level": "info", "text": "well"})
    await two.until(lambda: 2 in two.acknowledged())
    assert 2 not in one.acknowledged()
    written.set()
    await one.until(lambda: 2 in one.acknowledged())
    assert CheckpointStore(tmp_path / "checkpoints").latest()[0].step == 40
    for trainer in (one, two):
        await trainer.lose()
