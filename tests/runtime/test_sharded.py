"""A model whose parameters are spread over ranks is refused by name, before anything is changed (docs/fsdp2.md)."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from esper.errors import WrapRefused
from esper.kasmina.wrap import unwrap, wrap
from esper.runtime.attach import attach
from tests import builders


@pytest.fixture(scope="module")
def mesh():
    """One rank is enough to shard with."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def inner_sharded(model, mesh):
    fully_shard(model[2], mesh=mesh)


def whole_sharded(model, mesh):
    fully_shard(model, mesh=mesh)


def tensor_parallel(model, mesh):
    parallelize_module(model, mesh, {"2": ColwiseParallel()})


SHARD = [(inner_sharded, "2 is"), (whole_sharded, "the model is"), (tensor_parallel, "2 is")]


@pytest.mark.parametrize(("shard", "named"), SHARD, ids=lambda it: getattr(it, "__name__", ""))
def test_wrapping_a_sharded_model_is_refused(mesh, shard, named):
    model = builders.perceptron()
    shard(model, mesh)
    with pytest.raises(WrapRefused, match=f"^{named} sharded over ranks.*DistributedDataParallel"):
        wrap(model, "0", 2, example=builders.rows())
    assert "forward" not in vars(model[0])


@pytest.mark.parametrize(("shard", "named"), SHARD, ids=lambda it: getattr(it, "__name__", ""))
def test_attaching_a_model_that_was_sharded_since_is_refused(mesh, tmp_path, shard, named):
    model = builders.perceptron()
    handle = wrap(model, "0", 2, example=builders.rows())
    shard(model, mesh)
    with pytest.raises(WrapRefused, match=f"^{named} sharded over ranks"):
        attach(handle, torch.optim.Adam(model.parameters()), directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    unwrap(model)


def test_a_layer_of_that_name_of_somebody_else_is_not_meant():
    class FSDPModule(nn.Linear):
        pass

    wrap(nn.Sequential(FSDPModule(5, 3)), "0", 2, example=builders.rows())
