"""Growth under everything that people do to a model while it trains: all pairs, and random rows where there is time."""

import random
import time

import pytest
import torch
import torch._dynamo

from esper.blueprint.interface import Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.blueprint.lower import lower
from esper.blueprint.operators import OPERATORS
from esper.errors import InvalidBlueprint
from esper.kasmina.lifecycle import State
from tests import builders
from tests.matrix import deeds
from tests.matrix.covering import allowed, covering, describe
from tests.matrix.exclusions import EXCLUDED, EXCLUSIONS
from tests.matrix.factors import FACTORS
from tests.matrix.life import Life
from tests.matrix.steps import loss_of

# dynamo looks at .grad of what it is handed, and means to hide the warning it causes
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

ROWS = covering(FACTORS, EXCLUDED)
RANDOM_ROWS_SECONDS = 120.0


@pytest.fixture(autouse=True)
def _one_thread_and_a_fresh_compiler():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.compiler.set_stance("default")  # a session that a test dropped while it watched a step holds another
    with torch._dynamo.config.patch(recompile_limit=64):  # beyond it a row would silently run eagerly
        yield
    torch._dynamo.reset()


def live(row, dtype=torch.float32):
    life = Life(row)
    if dtype is not life.dtype:
        life.convert(dtype)
    life.train(2)
    life.lead(State[row["state"]])
    life.holds()
    deeds.do(life)
    life.holds()
    life.train(2)
    life.end()
    assert life.stepping.graphs >= 3 or row["step"] != "compile"  # without a graft, and with one in two modes


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.values()))
def test_growth_is_right(row):
    live(row)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_growth_is_right_in_random_rows():
    drawn, ends = random.Random(0), time.monotonic() + RANDOM_ROWS_SECONDS
    while time.monotonic() < ends:
        row = {factor: drawn.choice(values) for factor, values in FACTORS.items()}
        if not allowed(row, EXCLUDED):
            continue
        dtype = drawn.choice([torch.float32, torch.float64])  # float64 tells a wrong gradient from a rounded one
        try:
            live(row, dtype)
        except Exception as error:
            raise AssertionError(f"live({row}, {dtype}) fails: {type(error).__name__}: {error}") from error
        torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("host", ["linear", "before_norm"])
def test_inductor_computes_every_stage_as_it_is_computed_eagerly(host):
    row = {factor: values[0] for factor, values in FACTORS.items()} | {"host": host}
    life = Life(row)
    call = torch.compile(life.model)
    life.train(2)
    for state in (State.DORMANT, State.GRAFTING, State.FINE_TUNING, State.FOSSILIZED):
        life.walk(state)
        assert life.graft is None or life.graft.fault == ""
        torch.testing.assert_close(life.evaluated(call), life.evaluated(life.model), rtol=1e-4, atol=1e-5)
        life.model.train()
        life.optimizer.zero_grad()
        loss_of(call(life.batch())).backward()
        grads = [p.grad for p in life.model.parameters()]
        wanted = torch.autograd.grad(loss_of(life.model(life.batch())), list(life.model.parameters()))
        for ours, theirs in zip(grads, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        life.optimizer.zero_grad()


# What is left out


@pytest.mark.parametrize("exclusion", EXCLUSIONS, ids=lambda exclusion: describe(exclusion.pair))
def test_what_is_excluded_does_not_work_without_esper_either(exclusion):
    exclusion.show()


def test_no_branch_has_a_batch_norm():
    """A blueprint has no operator that keeps statistics, so that a graft has parameters and nothing else."""
    normed = Graph(
        nodes=(Node("norm", "batch_norm", (INPUT,), ("weight",)),),
        parameters=(Parameter("weight", (CHANNELS,), Initialiser.ONES),),
        output="norm",
    )
    assert "batch_norm" not in OPERATORS
    with pytest.raises(InvalidBlueprint, match="batch_norm"):
        lower(normed, builders.interface(Kind.MAP2D))
    assert not list(builders.graft(builders.interface(Kind.MAP2D), title="normalisation").buffers())
