"""Build a run's model again from its lineage and weights, and prove it equal to the exported one."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from google.protobuf import json_format
from torch import Tensor, nn

from esper.api.common.v1 import seed_pb2
from esper.artifact.folder import read_folder
from esper.errors import Conflict, Corrupt, NotFound, PreconditionFailed
from esper.host.export import close, export_model, run_source, saved
from esper.host.forward import PREFIX
from esper.host.source import is_exported
from esper.kasmina.cache import folder_of
from esper.kasmina.codec import read_graft
from esper.kasmina.kernel import Kernel
from esper.kasmina.loader import parse
from esper.kasmina.regrow import GraftSpec, regrow
from esper.nissa.files import read_text, replace_bytes, replace_text
from esper.runtime.runs import StoredRun, refuse_own_loop
from esper.runtime.trust import read_trust
from esper.tolaria.replay import find_sites
from esper.tolaria.task import Batch, Task, load_task

KERNELS, TRUST = "kernels", "trust.json"
MODEL, WEIGHTS = "model.py", "model.pt"
FACTS = "form.json"  # of a form for inference: esper.runtime.forms


def keep_kernels(run_folder: Path, home_kernels: Path, trust_file: Path, artifact_ids: Iterable[str]) -> None:
    """Put the kernels of a run's fossils beside it, so that it can be rebuilt without a runtime."""
    for artifact_id in artifact_ids:
        target = folder_of(run_folder / KERNELS, artifact_id)
        if not target.exists():
            shutil.copytree(folder_of(home_kernels, artifact_id), target)
    if trust_file.exists():
        shutil.copy(trust_file, run_folder / TRUST)


def rebuild_run(run: StoredRun) -> str:
    """Prove that lineage and weights give the exported model's outputs. Returns what was compared.

    Bit for bit; within rounding where model.py is a program for evaluation.

    Raises NotFound for a run that left no model, Corrupt or Untrusted for a kernel that is not
    what it was, PreconditionFailed where an output differs or model.py does not take the task's batches.
    """
    task, model, batch = rebuilt(run)
    exported = _exported(run)
    _put(run, exported, weights_of(run))
    exported.eval()
    same = close if getattr(exported, "EVALUATION_ONLY", False) else torch.equal
    compared = 0
    with torch.no_grad():
        for held_out in [batch, *task.held_out("test")]:
            ours, theirs = task.forward(model, held_out), _forward(run, task, exported, held_out)
            if not same(theirs, ours):
                worst = float((ours - theirs).abs().max())
                raise PreconditionFailed(
                    f"run {run.run_id}: the rebuilt model differs from model.py by up to {worst:.3g}; "
                    "lineage.json or model.pt is not what the run wrote"
                )
            compared += len(ours)
    fossils = len(run.lineage.get("fossils", []))
    return f"run {run.run_id}: rebuilt from {fossils} fossils and model.pt; {compared} outputs equal those of model.py"


def _forward(run: StoredRun, task: Task, exported: nn.Module, batch: Batch) -> Tensor:
    try:
        outputs: Tensor = task.forward(exported, batch)
    except ValueError as error:  # a program for evaluation says so of sizes that it is not good for
        raise PreconditionFailed(
            f"run {run.run_id}: model.py does not take a batch of the test slice: {error}"
        ) from error
    except Exception as error:  # model.py may have been changed to anything
        raise _not_as_written(run, error) from error
    return outputs


def export_run(run: StoredRun, to: str) -> str:
    """Write model.py and model.pt from lineage and weights to a folder, the run's own if `to` is empty.

    Raises Conflict for a place that is no folder, or one that holds a form for inference or a model that no
    export wrote, PreconditionFailed and Exhausted where it cannot be written, and what rebuilding the run raises.
    """
    folder = Path(to) if to else run.folder
    if folder.resolve() != run.folder.resolve():
        refuse_no_folder(folder)
        _refuse_foreign_model(folder)
    _, model, batch = rebuilt(run)
    exported = export_model(model, (batch[0],), f"The model of run {run.run_id}.")
    write_model(folder, exported.source, exported.state)
    return f"wrote {folder / MODEL} and {folder / WEIGHTS}: {exported.description()}"


def refuse_no_folder(folder: Path) -> None:
    """Raise Conflict where `folder`, or what it would lie in, is a file."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Conflict(f"{folder} cannot be a folder, because {there} is a file; name another folder with --to")


def _refuse_foreign_model(folder: Path) -> None:
    """Only what an export wrote makes way: a model.py that says so, and the model.pt beside it."""
    if (folder / FACTS).exists():
        raise Conflict(f"{folder} holds a form for inference ({FACTS}); name another folder with --to")
    source = folder / MODEL
    if source.exists():
        foreign = None if is_exported(read_text(source) or "") else source
    else:
        foreign = folder / WEIGHTS if (folder / WEIGHTS).exists() else None
    if foreign is not None:
        raise Conflict(f"{foreign} was not written by an export and is left as it is; name another folder with --to")


def write_model(folder: Path, source: str, state: Mapping[str, Tensor]) -> None:
    """model.pt and model.py, each at once: in a run's folder they may be all that there is of its weights."""
    write_weights(folder, state)
    replace_text(folder / MODEL, source)


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """model.pt. Raises Exhausted and PreconditionFailed, and then what was there is there still."""
    replace_bytes(folder / WEIGHTS, saved(state))


def rebuilt(run: StoredRun) -> tuple[Task, nn.Module, Batch]:
    """Task, the rebuilt model in eval mode, and one batch."""
    refuse_own_loop(run, "write its model in its script: esper.unwrap(model) is the plain module")
    task = load_task(run.spec["task"], run.spec["arguments"], run.spec["import_paths"])
    model, state = task.build_model(), weights_of(run)
    specs = fossils_of(run)
    kernels = {spec.artifact_id: _kernel(run, spec.artifact_id) for spec in specs if not spec.folded}
    regrow(model, find_sites(task, model, (spec.seed.site for spec in specs)), specs, kernels)
    _put(run, _exported(run), state)  # nothing of model.pt is missing
    _put_used(run, model, state)
    return task, model.eval(), task.micro_batches(0)[0]


def fossils_of(run: StoredRun) -> list[GraftSpec]:
    """The grafts of a run's model in the order they were inserted: lineage.json says which, result.json how each joins.

    Raises Corrupt where the two name different ones.
    """
    try:
        specs = [read_graft(json_format.ParseDict(graft, seed_pb2.Graft())) for graft in run.result.get("grafts", [])]
    except (json_format.ParseError, TypeError, AttributeError) as error:  # the last two: it is no mapping
        raise Corrupt(f"{run.folder / 'result.json'}: a graft of run {run.run_id} does not parse: {error}") from error
    joined = {(str(spec.seed), spec.artifact_id) for spec in specs}
    named = {(fossil["seed"], fossil["artifact_id"]) for fossil in run.lineage.get("fossils", [])}
    if joined != named:
        words = ", ".join(sorted(seed for seed, _ in joined ^ named))
        raise Corrupt(f"run {run.run_id}: lineage.json and result.json differ in {words}; one is damaged")
    return specs


def weights_of(run: StoredRun) -> dict[str, Tensor]:
    path = run.folder / WEIGHTS
    if not path.exists() or not (run.folder / MODEL).exists():
        raise NotFound(
            f"run {run.run_id} left no model.py and model.pt: {run.result.get('export') or 'it did not end'}"
        )
    try:
        state: dict[str, Tensor] = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises what its reader meets
        raise Corrupt(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(state, dict):
        raise Corrupt(f"{path} must hold weights by name, got {type(state).__name__}")
    return state


def _exported(run: StoredRun) -> nn.Module:
    """A fresh model of the run's model.py."""
    try:
        return run_source((run.folder / MODEL).read_text(encoding="utf-8"))
    except Exception as error:  # it may have been changed to anything
        raise _not_as_written(run, error) from error


def _not_as_written(run: StoredRun, error: Exception) -> Corrupt:
    return Corrupt(
        f"{run.folder / MODEL} does not run ({type(error).__name__}: {error}), so it is not what run {run.run_id} "
        "wrote; put the file of that run back"
    )


def _put(run: StoredRun, model: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise Corrupt(f"{run.folder / WEIGHTS} does not hold the weights of run {run.run_id}: {error}") from error


def _put_used(run: StoredRun, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Weights into the run's own model, which may have some that its forward does not use; those stay as made.

    model.py may hold more too: constants, and buffers that are in no state dict.
    """
    own = model.state_dict()
    shared = {name: tensor for name, tensor in state.items() if name in own}
    grown = [name for name in own if PREFIX in name and name not in state]
    if grown or not shared:
        raise Corrupt(f"{run.folder / WEIGHTS} has no weights for {', '.join(grown) or 'anything'} of run {run.run_id}")
    _put(run, model, own | shared)


def _kernel(run: StoredRun, artifact_id: str) -> Kernel:
    return parse(read_folder(folder_of(run.folder / KERNELS, artifact_id)), read_trust(run.folder / TRUST))
