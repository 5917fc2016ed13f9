"""What `esper.attach` refuses before anything is started or made."""

import pytest
import torch

from esper.errors import InvalidRequest
from esper.kasmina.wrap import wrap
from esper.runtime.attach import attach
from esper.tolaria.step import build_parts
from esper.tolaria.task import load_task

TASK = "tests.tolaria.tasks:regression"


def test_an_optimiser_that_newborns_do_not_fit_is_refused(tmp_path):
    task = load_task(TASK)
    model = build_parts(task).model
    batch = task.micro_batches(0)[0]
    handle = wrap(model, "2", 2, run=lambda m: task.forward(m, batch))
    home, folder = tmp_path / "home", tmp_path / "run"
    with pytest.raises(InvalidRequest, match="LBFGS keeps one history"):
        attach(handle, torch.optim.LBFGS(model.parameters()), task=TASK, runtime=str(home), directory=folder)
    assert not folder.exists() and not home.exists()
