"""The training process of `esper demo` and `esper train`: `python -m esper.runtime.trainer SPEC.json`."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from google.protobuf.json_format import MessageToDict

from esper.errors import EsperError
from esper.host.export import export_model
from esper.kasmina.codec import write_graft
from esper.kasmina.handle import ModelHandle
from esper.kasmina.nursery.measure import Reading
from esper.kasmina.wrap import wrap
from esper.nissa.files import replace_text
from esper.runtime.attach import attach
from esper.runtime.home import Home
from esper.runtime.rebuild import keep_kernels, write_model, write_weights
from esper.runtime.spec import TrainSpec, read_spec
from esper.runtime.stopping import STOPPED, stop_on_signal
from esper.runtime.warm import die_with_parent
from esper.tolaria.loop import train
from esper.tolaria.session import Session
from esper.tolaria.step import Parts, autocast, build_parts
from esper.tolaria.task import Task, check_task, load_task

RESULT = "result.json"


def main() -> int:
    die_with_parent()
    spec = read_spec(Path(sys.argv[1]))
    try:
        with stop_on_signal() as stop:
            ended = train_run(spec, stop=stop)
    except (EsperError, OSError) as error:  # an OSError is a disk that is full or not ours: it names the file
        print(f"esper: {error}", file=sys.stderr)
        return 1
    return 0 if ended else STOPPED


def train_run(spec: TrainSpec, *, stop: Callable[[], bool] = lambda: False) -> bool:
    """Train one run as its spec says, to its end or until `stop` says so, and return whether it ended.

    Of a run that ended, model, weights and result are in its directory afterwards; one that was stopped can go on.
    """
    torch.set_num_threads(spec.threads)
    task, parts, handle = build(spec)
    session = attach(
        handle,
        parts.optimizer,
        task=task,
        scheduler=parts.scheduler,
        scaler=parts.scaler,
        runtime=Home(Path(spec.home)).contact(),
        run_id=spec.run_id,
        directory=spec.directory,
        total_steps=spec.steps or task.steps,
        seed=spec.seed,
        growth=spec.growth,
        budget=spec.budget,
        deterministic=spec.deterministic,
        resume=spec.resume,
    )
    return run_session(spec, task, parts, session, stop)


def build(spec: TrainSpec) -> tuple[Task, Parts, ModelHandle]:
    """Task, model with optimiser, and the wrapped model's handle."""
    task = load_task(spec.task, spec.arguments, spec.import_paths)
    check_task(task)
    parts = build_parts(task, device=spec.device)
    batch = task.micro_batches(0)[0]
    handle = wrap(
        parts.model,
        task.target_layers,
        task.seeds_per_layer,
        telemetry_enabled=spec.telemetry,
        run=lambda model: task.forward(model, batch),
    )
    return task, parts, handle


def run_session(spec: TrainSpec, task: Task, parts: Parts, session: Session, stop: Callable[[], bool]) -> bool:
    """Train, end the run, write what it leaves, and let go of the line whatever happens. Returns whether it ended."""
    try:
        train(task, parts, session, spec.steps or task.steps, stop=stop)
        if session.ended:
            write_result(spec, task, session)
    except BaseException as error:
        with contextlib.suppress(EsperError):
            interrupted = isinstance(error, KeyboardInterrupt)
            session.reports.goodbye("interrupted" if interrupted else f"{type(error).__name__}: {error}")
        raise
    finally:
        session.close()
    if session.ended:
        session.run.spool.close()
    return session.ended


def write_result(spec: TrainSpec, task: Task, session: Session) -> None:
    """model.py, model.pt and result.json. A model that cannot be traced leaves its weights and the reason."""
    folder, model = Path(spec.directory), session.run.parts.model
    reading = read_test(task, model)
    result = {
        "run_id": spec.run_id,
        "test_loss": reading.loss,
        "test_score": reading.score,
        "steps": session.steps_done,
        "parameters": session.run.parameter_count,
        "best_step": session.returned_step,
        "train_flops": session.run.train_flops,
        "nursery_flops": session.run.nursery_flops,
        "stalled_steps": session.progress.stalled_steps,
        "grafts": [MessageToDict(write_graft(graft, spec.run_id)) for graft in session.run.executor.specs()],
        "export": "",
    }
    try:
        exported = export_model(model, (task.micro_batches(0)[0][0],), f"The model of run {spec.run_id}.")
        write_model(folder, exported.source, exported.state)
        if exported.evaluation_only:
            session.run.post_note("info", f"model.py is {exported.description()}")
    except EsperError as error:
        result["export"] = str(error)
        write_weights(folder, model.state_dict())
        session.run.post_note("warning", str(error))
    home, seeds = Home(Path(spec.home)), session.run.executor.specs()
    keep_kernels(folder, home.kernels, home.trust_file, {seed.artifact_id for seed in seeds if not seed.folded})
    replace_text(folder / RESULT, json.dumps(result, indent=1))


def read_test(task: Task, model: torch.nn.Module) -> Reading:
    """Losses and scores on the test slice: touched once, here."""
    model.eval()
    losses, scores = [], []
    with torch.no_grad():
        for batch in task.held_out("test"):
            with autocast(task, model):
                outputs = task.forward(model, batch)
            losses.append(task.loss(outputs, batch).reshape(-1))
            if task.score is not None:
                scores.append(task.score(outputs, batch).reshape(-1))
    return Reading(torch.cat(losses), torch.cat(scores) if scores else None)


if __name__ == "__main__":
    sys.exit(main())
