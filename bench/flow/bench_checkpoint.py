"""Checkpoints by size: what is written and what is kept, what the copy costs a step, how long a restore takes.

The state is that of ten equal layers under Adam, parameters and moments together, of which nine stop learning after
the first checkpoint: 10 % of it changes from one to the next. `full_size_ratio`, `second_size_ratio` and
`incremental_size_ratio`: bytes written for the first, the second and every later one, to the bytes of the state; the
second holds a second copy of what stays, which later ones share. `kept_size_ratio`: all five on disk.
`write_s` and `incremental_write_s`: in the writer, beside training. `copy_ratio`: the copy that is made inside a step,
to one training step. `restore_s`: verified, read and put back, after the files were dropped from the page cache.
`restore_s` of digits: the demo's task under all services, with a graft in its host, is stopped; the time in which its
model is made and wrapped, and the run attached, with its kernels, and put back.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bench.flow.services import Attached, attach_digits, runtime
from bench.harness import BASELINE, CANDIDATE, CONTROL, Call, Effort, compare, one_thread
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.api.tolaria.v1 import trainer_pb2
from esper.tolaria.checkpoint import VERSION, CheckpointStore
from esper.tolaria.snapshot import Snapshot, capture, load, restore
from esper.tolaria.step import Parts, train_step
from esper.tolaria.tensor_files import files_of

NAME = "checkpoint"
LAYERS, FROZEN, BATCH = 10, 9, 64
KEPT = 5
MB = 1e6


@dataclass(frozen=True, slots=True)
class Size:
    """Layers so wide that the state comes to about what the case says."""

    width: int
    effort: Effort
    restore_s: float  # the limit


SIZES = {
    "10 MB": Size(288, Effort(rounds=3, turns=20, block_s=0.0), 2.0),
    "1 GB": Size(2886, Effort(rounds=2, turns=4, block_s=0.0, warm_up_calls=1), 30.0),
}
QUICK_SIZES = {"3 MB": Size(160, Effort(rounds=1, turns=3, block_s=0.0), 2.0)}
DEMO_RESTORE = Target(2.0)
GROWING = {
    "policy": "periodic-random",
    "first_event_step": 20,
    "nursery_steps": 20,
    "measure_every_steps": 10,
    "decision_every_steps": 10,
    "validate_every_steps": 20,
    "embargo_steps": 20,
    "candidates_per_site": 1,
}
OFF = {"policy": "never", "decision_every_steps": 10, "validate_every_steps": 20, "embargo_steps": 10}
RUN, UNGROWN_STEPS = "checkpoint", 50
GROWTH_LIMIT_S = 240.0
WRITTEN_LIMIT_S = 60.0


def rows(options: Options) -> Iterator[Row]:
    for case, size in (QUICK_SIZES if options.quick else SIZES).items():
        with one_thread(), tempfile.TemporaryDirectory(prefix="esper-bench-") as name:
            yield from size_rows(case, size, Path(name))
    yield demo_row(grown=not options.quick)


def size_rows(case: str, size: Size, folder: Path) -> Iterator[Row]:
    parts = make_run(size.width)
    train(parts, size.width)
    store, state_bytes = CheckpointStore(folder / "checkpoints", keep=KEPT), capture(parts, 0).size_bytes
    against = f"{state_bytes / MB:.4g} MB of state"
    sizes, seconds = [], []
    for step in range(1, KEPT + 1):
        before = used_bytes(store)
        seconds.append(write(store, capture(parts, step), folder))
        sizes.append(used_bytes(store) - before)
        for layer in list(parts.model)[:FROZEN]:  # type: ignore[call-overload]
            layer.requires_grad_(False)
        train(parts, size.width)
    named = zip(("full_size_ratio", "second_size_ratio", "incremental_size_ratio"), sizes, strict=False)
    for metric, written in (*named, ("kept_size_ratio", used_bytes(store))):
        yield make_row(NAME, case, metric, written / state_bytes, "ratio", baseline=against)
    yield make_row(NAME, case, "write_s", seconds[0], "s", baseline=against)
    yield make_row(NAME, case, "incremental_write_s", seconds[2], "s", baseline=against)
    restored_s = restore_s(store, make_run(size.width), parts)
    yield make_row(NAME, case, "restore_s", restored_s, "s", baseline=against, target=Target(size.restore_s))
    yield copy_row(case, size)


def make_run(width: int) -> Parts:
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    return Parts(model, torch.optim.Adam(model.parameters(), 1e-4))


def train(parts: Parts, width: int) -> None:
    """One step."""
    x = torch.ones(BATCH, width)
    parts.optimizer.zero_grad()
    F.mse_loss(parts.model(x), x).backward()
    parts.optimizer.step()


def write(store: CheckpointStore, snapshot: Snapshot, folder: Path) -> float:
    """Seconds that the writer takes, from the file that the training process leaves."""
    spooled = folder / "spooled.safetensors"
    snapshot.save(spooled)
    began_s = time.perf_counter()
    store.write(trainer_pb2.CheckpointManifest(version=VERSION, run_id="bench", step=snapshot.step), spooled)
    return time.perf_counter() - began_s


def used_bytes(store: CheckpointStore) -> int:
    """On disk; what several checkpoints share counts once."""
    return sum({s.st_ino: s.st_size for s in (p.stat() for p in store.folder.rglob("*") if p.is_file())}.values())


def restore_s(store: CheckpointStore, fresh: Parts, saved: Parts) -> float:
    """Seconds to put a new model and optimiser to the newest checkpoint, which must be what `saved` was then."""
    for path in store.folder.rglob("*"):
        if path.is_file():
            forget(path)
    began_s = time.perf_counter()
    manifest, tensors = store.latest()
    *others, tensors = files_of(manifest, tensors)
    restore(fresh, load(tensors, others))
    took_s = time.perf_counter() - began_s
    frozen = zip(list(fresh.model)[:FROZEN], list(saved.model)[:FROZEN], strict=True)  # type: ignore[call-overload]
    assert all(torch.equal(a.weight, b.weight) for a, b in frozen)
    return took_s


def forget(path: Path) -> None:
    """Drop a synced file from the page cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def copy_row(case: str, size: Size) -> Row:
    parts = make_run(size.width)

    def step() -> None:
        train(parts, size.width)

    def copy() -> None:
        capture(parts, 0)

    def build() -> dict[str, Call]:
        return {BASELINE: step, CONTROL: step, CANDIDATE: copy}

    return compare(build, size.effort).row(NAME, case, "copy_ratio", against="one training step")


def demo_row(*, grown: bool) -> Row:
    growth = GROWING if grown else OFF
    with one_thread(), runtime() as services:
        run = attach_digits(services, RUN, growth)
        try:
            train_digits(run, grown=grown)
            run.session.checkpoint()
            step, grafts = run.session.steps_done, len(run.session.run.executor.grafts)
            wait_until_written(services.folder / RUN / "checkpoints", step)
        finally:
            run.session.close()
        began_s = time.perf_counter()
        again = attach_digits(services, RUN, growth, resume=True)
        took_s = time.perf_counter() - began_s
        resumed = (again.session.steps_done, len(again.session.run.executor.grafts))
        again.close()
    assert resumed == (step, grafts)
    against = f"at step {step}, {grafts} grafts"
    return make_row(NAME, "digits", "restore_s", took_s, "s", baseline=against, target=DEMO_RESTORE)


def train_digits(run: Attached, *, grown: bool) -> None:
    """Train until there is a graft in the host, if there is to be one."""
    deadline_s = time.monotonic() + GROWTH_LIMIT_S
    session, done = run.session, False
    while not done:
        batches = run.task.micro_batches(session.steps_done)
        session.step(batches[0], train_step(run.parts, run.task, batches))
        if session.due:
            session.decide()
            done = bool(session.run.executor.grafts) if grown else session.steps_done >= UNGROWN_STEPS
        if not done and time.monotonic() > deadline_s:
            print(f"{NAME}: no graft came into the host within {GROWTH_LIMIT_S:g} s", file=sys.stderr)
            done = True


def wait_until_written(folder: Path, step: int) -> None:
    deadline_s = time.monotonic() + WRITTEN_LIMIT_S
    while not (folder / f"step-{step:09d}").exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no checkpoint of step {step} in {folder} within {WRITTEN_LIMIT_S:g} s")
        time.sleep(0.05)


def test_checkpoint(benchmark, tmp_path) -> None:  # type: ignore[no-untyped-def]
    parts = make_run(160)
    train(parts, 160)
    store = CheckpointStore(tmp_path / "checkpoints")
    write(store, capture(parts, 1), tmp_path)
    benchmark(lambda: restore_s(store, parts, parts))
