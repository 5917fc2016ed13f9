"""The parts of the flow benches that can be looked at alone."""

import gc
import os
import threading
import time
from contextlib import ExitStack

import psutil
import pytest
import torch

from bench.flow.bench_dormant import SHORT, arms, forward_and_backward, training_arms
from bench.flow.busy import Elsewhere, ForeignLoad
from bench.flow.hosts import HOSTS
from bench.flow.other_ways import WAYS
from bench.flow.waits import Waits
from bench.harness import BASELINE, CANDIDATE, CONTROL


@pytest.mark.parametrize("case", HOSTS)
def test_dormant_compares_equal_models_of_which_one_is_wrapped(case):
    made = arms(HOSTS[case], forward_and_backward)
    models = {name: call.__closure__ for name, call in made.items()}
    assert set(models) == {BASELINE, CONTROL, CANDIDATE, *WAYS}
    found = {
        name: next(c.cell_contents for c in cells if isinstance(c.cell_contents, torch.nn.Module))
        for name, cells in models.items()
    }
    wrapped = {name for name, model in found.items() if "_esper_handle" in vars(model)}
    assert wrapped == {CANDIDATE}
    for call in made.values():
        call()
    gradients = [[p.grad for p in model.parameters()] for model in found.values()]
    assert all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[2], strict=True))


def test_a_block_under_a_session_has_one_sampled_step_in_it():
    with ExitStack() as stack:
        call = training_arms(HOSTS["Linear"], stack, SHORT)[CANDIDATE]
        session = next(c.cell_contents for c in call.__closure__ if type(c.cell_contents).__name__ == "Session")
        for blocks in (1, 2, 3):
            call()
            assert session.steps_done == SHORT.decision_every_steps * blocks
    # the line has been closed, so that all samples are reduced
    assert session.reports.health["0"].step == 3 * SHORT.decision_every_steps


def test_waits_sees_what_goes_outside_on_its_own_thread_and_only_while_it_watches(tmp_path):
    (tmp_path / "file").write_text("text")
    with Waits() as waits:
        (tmp_path / "file").read_text()
        with waits.watching():
            pass
        assert not waits.seen
        with waits.watching():
            (tmp_path / "file").read_text()
            time.sleep(0)
            os.listdir(tmp_path)  # noqa: PTH208
        assert {what.split()[0] for what in waits.seen} >= {"open", "os.listdir"}
        before = waits.seen.total()
        other = threading.Thread(target=lambda: (tmp_path / "file").read_text())
        other.start()
        with waits.watching():
            while other.is_alive():
                pass
        other.join()
        (tmp_path / "file").read_text()
        assert waits.seen.total() == before


def test_waits_passes_over_ordinary_steps_of_torch():
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    with Waits() as waits:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()  # the first step imports
        with waits.watching():
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            gc.collect()
        assert not waits.seen


def test_a_foreign_load_burns_what_it_is_told_and_rests_otherwise():

    with ForeignLoad() as load:
        load.cores = 0.5 * load.most_cores
        processes = [psutil.Process(process.pid) for process in load._processes]
        assert all(process.nice() == 19 for process in processes)

        def spent_s(seconds):
            before = sum(p.cpu_times().user for p in processes)
            time.sleep(seconds)
            return sum(p.cpu_times().user for p in processes) - before

        with load.running():
            assert spent_s(1.0) > 0
        time.sleep(0.1)
        assert spent_s(0.3) == pytest.approx(0.0, abs=0.05)
    assert not any(process.is_running() for process in processes)


def test_a_foreign_load_follows_the_services():
    load = ForeignLoad()
    load.most_cores = 1
    for _ in range(30):  # the services keep 0.6 of a core busy, the control what it is told
        load.follow(0.6, load.cores)
    assert load.cores == pytest.approx(0.6, abs=0.01)
    load.follow(5.0, 0.0)
    assert load.cores == 1.0
    load.follow(0.0, 5.0)
    assert load.cores == 0.0


def test_elsewhere_does_not_count_this_process():
    elsewhere, began_s, began_cpu_s = Elsewhere(), time.perf_counter(), time.process_time()
    elsewhere.start()
    while time.perf_counter() < began_s + 0.3:
        pass
    found = elsewhere.cores()
    own = (time.process_time() - began_cpu_s) / (time.perf_counter() - began_s)
    assert 0.0 <= found <= os.cpu_count() - own + 0.2  # the kernel counts in hundredths of a second
