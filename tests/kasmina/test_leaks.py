"""What a wrapped model costs in memory, and that a seed's life leaves nothing behind."""

import gc
import multiprocessing
import threading
import tracemalloc
from concurrent.futures import ProcessPoolExecutor

import psutil
import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.lifecycle import State
from esper.kasmina.wrap import unwrap, wrap
from tests import builders

CYCLES, SETTLED = 500, 50  # lives; those after which memory is no longer warming up
RAMP_STEPS = 2
MAX_DORMANT_BYTES = 4 << 10  # per site
MAX_GROWTH_BYTES = 8 << 20  # of the process over all cycles: about 18 KB a life


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def life(executor, optimizer, step):
    """Germinated, loaded, inserted, ramped up, judged, culled, dormant again."""
    seed = builders.lead(executor, State.LOADING, optimizer, step=step)
    executor.loaded(seed, builders.kernel_for(executor, seed), step)
    executor.insert(seed, optimizer, step, RAMP_STEPS, "test")
    for at in range(step, step + RAMP_STEPS + 1):
        builders.train(executor.model, optimizer, [builders.rows(seed=at % 7)])
        executor.step_ramps(at)
    executor.advance(seed, State.EVALUATING, step, "test")
    executor.cull(seed, optimizer, step, "test")
    executor.end_embargoes(step + executor.embargo_steps)
    assert executor.table[seed].state is State.DORMANT
    executor.table.drain()


@pytest.mark.slow
def test_five_hundred_lives_leave_nothing_behind():
    """In a process of their own, where nothing that other tests left comes or goes meanwhile."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(five_hundred_lives).result()


def five_hundred_lives():
    executor = builders.executor(embargo_steps=1)
    optimizer = builders.adam(executor.model)
    builders.train(executor.model, optimizer, [builders.rows()])
    process = psutil.Process()
    for cycle in range(SETTLED):
        life(executor, optimizer, 10 * cycle)
    tensors, resident = live_tensors(), process.memory_info().rss
    files, threads, objects = process.num_fds(), threading.active_count(), len(gc.get_objects())
    for cycle in range(SETTLED, CYCLES):
        life(executor, optimizer, 10 * cycle)
    assert live_tensors() == tensors
    more = len(gc.get_objects()) - objects
    assert more < CYCLES - SETTLED  # less than one a life
    assert process.memory_info().rss - resident < MAX_GROWTH_BYTES
    assert (process.num_fds(), threading.active_count()) == (files, threads)
    assert not executor.grafts
    assert sum(map(len, (group["params"] for group in optimizer.param_groups))) == len(optimizer.state)


def dormant_bytes(sites: int) -> float:
    """Per site, of a model wrapped with four seeds a layer."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(sites)))
    x = torch.zeros(2, 8)
    model(x)
    gc.collect()
    tracemalloc.start()
    try:
        handle = wrap(model, [nn.Linear], 4, run=lambda m: m(x))
        gc.collect()
        python = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    layout = handle.executor.table.layout
    tensors = sum(t.nbytes for t in layout.tensors())
    unwrap(model)
    return (python + tensors) / sites


def test_a_dormant_site_takes_at_most_4_kb():
    dormant_bytes(2)  # what is imported or cached once is not a site's
    assert dormant_bytes(60) <= MAX_DORMANT_BYTES
