"""What a user holds: seeds by hand, readings, and the comparison with the model as it was."""

import asyncio
import re

import pytest
import torch
from torch import nn

from esper.api.kasmina.v1 import telemetry_pb2
from esper.errors import IllegalTransition, InvalidRequest, KernelFault, NotFound, PreconditionFailed
from esper.kasmina.lifecycle import SeedId, State
from tests import builders
from tests.kasmina.audit import sound


class Source:
    """A library that answers when told to, with a kernel or an error."""

    def __init__(self, answer=None):
        self.answer = answer
        self.asked = []
        self.open = asyncio.Event()
        self.open.set()

    async def kernel(self, artifact_id, site):
        self.asked.append((artifact_id, site.name))
        await self.open.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer or builders.kernel(site.interface, artifact_id=artifact_id)


def handle_with(source=None, **options):
    handle = builders.handle(**options)
    handle.kernels = source or Source()
    return handle


def state(handle, slot=0):
    return handle.executor.table[SeedId("2", slot)].state


# Sites


def test_a_site_is_had_by_name_and_an_unknown_one_refused_with_the_names():
    handle = builders.handle(targets=nn.Linear)
    assert handle["2"].site.name == "2"
    with pytest.raises(NotFound, match="no site 'x'; sites are 0, 2, 4"):
        handle["x"]


def test_state_layout_is_a_view_of_the_sites_own_rows():
    handle = builders.handle(targets=["0", "2"])
    site = handle["2"]
    assert site.num_seeds == 2
    before = site.state_layout
    builders.lead(handle.executor, State.GRAFTING, handle.optimizer, seed=SeedId("2", 1))
    handle.executor.table.charge(handle.executor.table[SeedId("2", 0)])
    assert before.lifecycle_states.tolist() == [State.DORMANT, State.GRAFTING]
    assert before.alpha_blend.tolist() == [0.0, 0.5]
    assert before.state_steps.tolist() == [0, 10] and before.error_counts.tolist() == [1, 0]
    assert handle["0"].state_layout.lifecycle_states.tolist() == [State.DORMANT] * 2


@pytest.mark.parametrize("index", [-1, 2])
async def test_a_slot_that_does_not_exist_is_refused(index):
    handle = handle_with()
    site = handle["2"]
    for request in (lambda: site.unload_kernel(index), lambda: site.set_seed_alpha(index, 0.5)):
        with pytest.raises(InvalidRequest, match=f"2 has seeds 0 to 1, got {index}"):
            request()
    with pytest.raises(InvalidRequest):
        await site.load_kernel(index, builders.ARTIFACT)


# Loading


async def test_a_kernel_is_loaded_and_the_host_does_not_change():
    handle = handle_with()
    x = builders.rows()
    before = handle.model(x)
    assert await handle["2"].load_kernel(0, builders.ARTIFACT) is True
    assert state(handle) is State.TRAINING and handle.kernels.asked == [(builders.ARTIFACT, "2")]
    assert torch.equal(handle.model(x), before) and sound(handle.executor, handle.optimizer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (KernelFault("it is cursed"), "its kernel cannot run: it is cursed"),
        (RuntimeError(), "its kernel cannot run: RuntimeError"),
        (builders.kernel(builders.interface(channels=9)), r"its kernel cannot run: kernel a+ is for vector\[9\]"),
    ],
)
async def test_a_kernel_that_cannot_run_here_culls_the_seed_which_says_why(answer, said):
    handle = handle_with(Source(answer))
    assert await handle["2"].load_kernel(0, builders.ARTIFACT) is False
    assert state(handle) is State.CULLED
    assert re.match(said, handle.executor.table[SeedId("2", 0)].reason)
    assert sound(handle.executor, handle.optimizer)


async def test_a_load_that_is_cancelled_cancels_the_seed():
    handle = handle_with()
    handle.kernels.open.clear()
    loading = asyncio.ensure_future(handle["2"].load_kernel(0, builders.ARTIFACT))
    await asyncio.sleep(0)
    assert state(handle) is State.LOADING
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert state(handle) is State.CANCELLED


@pytest.mark.parametrize("answer", [None, KernelFault("too late anyway")])
async def test_a_kernel_that_comes_after_its_seed_was_unloaded_is_dropped(answer):
    handle = handle_with(Source(answer))
    handle.kernels.open.clear()
    loading = asyncio.ensure_future(handle["2"].load_kernel(0, builders.ARTIFACT))
    await asyncio.sleep(0)
    handle["2"].unload_kernel(0)
    handle.kernels.open.set()
    assert await loading is False
    assert state(handle) is State.CANCELLED


async def test_a_kernel_that_comes_after_another_was_asked_for_is_dropped():
    handle = handle_with()
    handle.executor.embargo_steps = 0
    handle.kernels.open.clear()
    first = asyncio.ensure_future(handle["2"].load_kernel(0, builders.ARTIFACT))
    await asyncio.sleep(0)
    handle["2"].unload_kernel(0)
    handle.executor.end_embargoes(0)
    second = asyncio.ensure_future(handle["2"].load_kernel(0, "b" * 64))
    await asyncio.sleep(0)
    handle.kernels.open.set()
    assert await first is False and await second is True
    assert list(handle.executor.kernels) == ["b" * 64]


async def test_loading_needs_a_library_and_a_dormant_seed():
    handle = builders.handle()
    with pytest.raises(PreconditionFailed, match=r"no library is at hand.*esper\.attach"):
        await handle["2"].load_kernel(0, builders.ARTIFACT)
    assert state(handle) is State.DORMANT
    handle.kernels = Source()
    await handle["2"].load_kernel(0, builders.ARTIFACT)
    with pytest.raises(IllegalTransition):
        await handle["2"].load_kernel(0, builders.ARTIFACT)


async def test_moves_by_hand_carry_the_runs_step():
    handle = handle_with()
    handle.steps_done = lambda: 5000
    await handle["2"].load_kernel(0, builders.ARTIFACT)
    handle["2"].set_seed_alpha(0, 0.5)
    handle["2"].unload_kernel(0)
    assert {moved.step for moved in handle.executor.table.drain()} == {5000}
    assert handle.executor.table[SeedId("2", 0)].embargo_until_step == 5300


# By hand


async def test_alpha_by_hand_inserts_a_tried_seed_and_stays():
    handle = handle_with()
    x = builders.rows()
    before = handle.model(x)
    await handle["2"].load_kernel(0, builders.ARTIFACT)
    handle["2"].set_seed_alpha(0, 0.25)
    assert state(handle) is State.GRAFTING
    builders.stir(handle.executor.grafts[SeedId("2", 0)])
    assert not torch.allclose(handle.model(x), before)
    handle.executor.step_ramps(1)
    assert handle["2"].state_layout.alpha_blend.tolist() == [0.25, 0.0]
    handle["2"].set_seed_alpha(0, 0.0)
    assert torch.equal(handle.model(x), before)


@pytest.mark.parametrize("alpha", [-0.5, 2.0, float("nan")])
async def test_alpha_out_of_bounds_inserts_nothing(alpha):
    handle = handle_with()
    await handle["2"].load_kernel(0, builders.ARTIFACT)
    with pytest.raises(InvalidRequest, match="alpha must be 0 to 1, got"):
        handle["2"].set_seed_alpha(0, alpha)
    assert state(handle) is State.TRAINING


@pytest.mark.parametrize("where", [State.DORMANT, State.LOADING, State.FOSSILIZED, State.CULLED], ids=lambda s: s.name)
def test_alpha_of_a_seed_that_is_not_on_trial_is_refused(where):
    handle = builders.handle()
    builders.lead(handle.executor, where, handle.optimizer)
    with pytest.raises(PreconditionFailed, match=f"seed 2/0 is {where.name}; alpha can be set while it is on trial"):
        handle["2"].set_seed_alpha(0, 0.5)


def test_moves_in_the_host_need_the_users_optimiser():
    handle = builders.handle()
    builders.lead(handle.executor, State.TRAINING)
    handle.optimizer = None
    with pytest.raises(PreconditionFailed, match=r"must be trained by your optimiser; call esper\.attach"):
        handle["2"].set_seed_alpha(0, 0.5)
    assert state(handle) is State.TRAINING


@pytest.mark.parametrize(
    ("where", "after"),
    [
        (State.LOADING, State.CANCELLED),
        (State.TRAINING, State.CANCELLED),
        (State.GRAFTING, State.CULLED),
        (State.FINE_TUNING, State.CULLED),
        (State.FOSSILIZED, State.CULLED),
    ],
    ids=lambda s: s.name,
)
def test_unloading_removes_a_seed_wherever_it_stands(where, after):
    handle = builders.handle()
    builders.lead(handle.executor, where, handle.optimizer)
    handle["2"].unload_kernel(0)
    assert state(handle) is after and sound(handle.executor, handle.optimizer)
    assert list(handle.model.state_dict()) == list(builders.perceptron().state_dict())


def test_an_empty_slot_cannot_be_unloaded():
    with pytest.raises(IllegalTransition):
        builders.handle()["2"].unload_kernel(0)


# Readings


def test_unmeasured_is_not_healthy():
    handle = builders.handle()
    with pytest.raises(NotFound, match="2 has not been sampled yet"):
        handle["2"].get_health_signal()
    reading = telemetry_pb2.HealthSignal(site="2", step=3)
    handle.health = {"2": reading}
    assert handle["2"].get_health_signal() is reading


def test_layer_stats_count_seeds_by_what_they_are():
    handle = builders.handle(seeds_per_layer=3)
    executor, optimizer = handle.executor, handle.optimizer
    builders.lead(executor, State.FOSSILIZED, optimizer, seed=SeedId("2", 0))
    builders.lead(executor, State.STABILIZATION, optimizer, seed=SeedId("2", 2), artifact_id="b" * 64)
    executor.table.charge(executor.table[SeedId("2", 2)])
    assert handle["2"].get_layer_stats() == {
        "site": "2",
        "layer_kind": "Linear",
        "interface": "vector[6] float32",
        "num_seeds": 3,
        "active_seeds": 1,
        "fossils": 1,
        "errors": 1,
        "added_parameters": sum(p.numel() for graft in executor.grafts.values() for p in graft.parameters()),
        "states": ["FOSSILIZED", "DORMANT", "STABILIZATION"],
        "alphas": [1.0, 0.0, 1.0],
    }


def test_a_folded_fossil_adds_no_parameters():
    handle = builders.handle()
    builders.lead(handle.executor, State.FOSSILIZED, handle.optimizer, title="low_rank")
    stats = handle["2"].get_layer_stats()
    assert (stats["fossils"], stats["added_parameters"]) == (1, 0)


# Comparison


def test_a_dormant_model_is_identical_to_itself():
    comparison = builders.handle().compare_with_original(builders.rows())
    assert comparison.identical and comparison.max_abs_difference == comparison.mean_abs_difference == 0


@pytest.mark.parametrize("where", [State.STABILIZATION, State.FOSSILIZED], ids=lambda s: s.name)
def test_the_comparison_is_with_every_graft_out_of_the_way(where):
    handle = builders.handle()
    x = builders.rows()
    plain = handle.model(x)
    builders.lead(handle.executor, where, handle.optimizer)
    difference = (handle.model(x) - plain).abs().detach()
    seen = handle.compare_with_original(x)
    assert not seen.identical
    assert seen.max_abs_difference == pytest.approx(float(difference.max()))
    assert seen.mean_abs_difference == pytest.approx(float(difference.mean()))
    with handle.without_seeds() as model:
        assert torch.equal(model(x), plain)
    assert not torch.equal(handle.model(x), plain)


def test_seeds_come_back_after_an_error():
    handle = builders.handle()
    builders.lead(handle.executor, State.STABILIZATION, handle.optimizer)
    x = builders.rows()
    grown = handle.model(x)
    with pytest.raises(ZeroDivisionError), handle.without_seeds():
        raise ZeroDivisionError
    assert torch.equal(handle.model(x), grown)


def test_a_sequential_block_is_compared_without_running_its_graft_as_a_layer():
    block = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
    handle = builders.handle(nn.Sequential(block, nn.Linear(6, 3)), "0")
    x = builders.rows()
    plain = handle.model(x)
    builders.lead(handle.executor, State.STABILIZATION, handle.optimizer)
    with handle.without_seeds():
        assert torch.equal(handle.model(x), plain)


def test_comparing_leaves_generators_and_buffers_alone():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    handle = builders.handle(model, "0")
    builders.lead(handle.executor, State.STABILIZATION, handle.optimizer)
    model.train()
    generator, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    dropped = handle.compare_with_original(builders.rows())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(b, old) for b, old in zip(model.buffers(), buffers, strict=True))
    assert dropped.max_abs_difference > 0
    handle.executor.hold_alpha(SeedId("0", 0), 0.0)
    assert handle.compare_with_original(builders.rows()).identical  # the same dropout masks


def test_an_output_without_numbers_cannot_be_compared():
    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 6)

        def forward(self, x):
            return self.fc(x).argmax(1)

    handle = builders.handle(Labels(), "fc")
    with pytest.raises(InvalidRequest, match="no floating-point tensor"):
        handle.compare_with_original(builders.rows())
