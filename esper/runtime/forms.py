"""`esper export RUN --form FORM`: make a form, read it back from its files, judge it, and only then hand it out."""

import contextlib
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import esper
from esper.errors import Conflict, InvalidConfig, PreconditionFailed
from esper.host.forms import FORMS, Form, make_form, refuse_unknown_form
from esper.nissa.files import replace_bytes, replace_text, write_error
from esper.runtime.drift import Drift, Latency, held_out, measure_drift, measure_latency
from esper.runtime.rebuild import FACTS, MODEL, rebuilt, refuse_no_folder
from esper.runtime.runs import StoredRun

# What is found in the folder of a form; importing model.py leaves the last.
WRITTEN = {MODEL, FACTS, "model.pt", "model.ts", "model.pt2", "__pycache__"}
DRIFT_LIMIT = 0.01


def export_form(run: StoredRun, name: str, to: str = "", drift_limit: float = DRIFT_LIMIT) -> str:
    """Write form `name` of a run's model to a folder, `<run>/<name>` if `to` is empty. Returns what was measured.

    Nothing is written where the loss on the validation slices changes by more than `drift_limit`, relative
    to the float32 model's. Raises InvalidConfig for an unknown form or a limit that is none, PreconditionFailed
    for a model that does not take the form or drifts too far, Unavailable without a compiler, Conflict for a
    folder that holds something else, and what rebuilding the run raises.
    """
    refuse_unknown_form(name)
    if not (math.isfinite(drift_limit) and drift_limit >= 0):
        raise InvalidConfig(f"the drift limit must be >= 0 and finite, got {drift_limit}; 0.01 allows 1 %")
    target = (Path(to) if to else run.folder / name).resolve()
    _require_free(target)
    task, model, batch = rebuilt(run)
    batches = held_out(task)
    form, plain, float32_bytes = make_form(name, model, (batch[0],), f"The model of run {run.run_id}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise write_error(target, error) from error
    try:
        replace_text(draft / MODEL, form.source)
        replace_bytes(draft / form.file, form.data)
        ready = _loaded(draft / MODEL, draft / form.file)
        drift = measure_drift(task, plain, ready, batches)
        _require_little(name, drift, drift_limit)
        latency = measure_latency(task, plain, ready, batches[0])
        sizes = len(form.source.encode()) + len(form.data), float32_bytes
        facts = _facts(run, name, form, drift, drift_limit, latency, sizes)
        replace_text(draft / FACTS, json.dumps(facts, indent=1, allow_nan=False))
        try:
            _put_in_place(draft, target)
        except OSError as error:
            raise write_error(target, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _in_words(target, form, facts)


def _loaded(source: Path, weights: Path) -> Callable[..., Any]:
    """The form as its own model.py loads it."""
    space: dict[str, Any] = {"__name__": "exported_model"}
    exec(compile(source.read_text(), str(source), "exec"), space)
    loaded: Callable[..., Any] = space["load"](str(weights))
    return loaded


def _require_little(name: str, drift: Drift, limit: float) -> None:
    if not drift.loss_change <= limit:  # so that NaN is too much
        raise PreconditionFailed(
            f"{name}: the held-out loss goes from {drift.float32_loss:.6g} to {drift.loss:.6g}, a change of "
            f"{drift.loss_change:.3%}, and the limit is {limit:.3%}; nothing was written. Take another form, or allow "
            "more by --drift-limit"
        )


def _require_free(target: Path) -> None:
    """A folder that is absent, empty or an earlier form and nothing else may be written to."""
    if target == Path.cwd():
        raise Conflict("the working directory cannot be put in place as a whole; name a folder in it with --to")
    refuse_no_folder(target)
    if not target.exists():
        return
    names = {path.name for path in target.iterdir()}
    foreign = sorted(names - WRITTEN)
    if foreign or (names and _form_of(target) not in FORMS):
        no_form = f"a {FACTS} that no form has" if FACTS in names else f"{', '.join(sorted(names))} without a {FACTS}"
        what = ", ".join(foreign[:3]) or no_form
        raise Conflict(f"{target} holds something else than a form ({what}); name another folder with --to")


def _form_of(folder: Path) -> object:
    """What a folder's form.json says; None where it says nothing that can be read."""
    with contextlib.suppress(OSError, ValueError):
        facts = json.loads((folder / FACTS).read_text())
        return facts.get("form") if isinstance(facts, dict) else None
    return None


def _put_in_place(draft: Path, target: Path) -> None:
    """The whole folder at once; an earlier form makes way, and comes back if that fails."""
    draft.chmod(0o755)
    handle = os.open(draft, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    if not target.exists():
        draft.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        earlier = target.rename(aside / "earlier")
        try:
            draft.rename(target)
        except BaseException:
            earlier.rename(target)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # it is not empty where the earlier form could not come back
            aside.rmdir()


def _facts(
    run: StoredRun, name: str, form: Form, drift: Drift, limit: float, latency: Latency, sizes: tuple[int, int]
) -> dict[str, Any]:
    """form.json."""
    return {
        "form": name,
        "run_id": run.run_id,
        "changed": form.changed,
        "left": form.left,
        "held_out": asdict(drift) | {"loss_change": drift.loss_change, "limit": limit},
        "size_bytes": sizes[0],
        "float32_size_bytes": sizes[1],
        "latency": asdict(latency) | {"threads": torch.get_num_threads()},
        "versions": {"esper": esper.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"architecture": platform.machine(), "cpu_capability": torch.backends.cpu.get_cpu_capability()},
    }


def _in_words(target: Path, form: Form, facts: Mapping[str, Any]) -> str:
    read, latency = facts["held_out"], facts["latency"]
    score = ""
    if read["score"] is not None:
        score = f"; score {read['score']:.6g}, float32 {read['float32_score']:.6g}"
    lines = [
        f"wrote {target}: {form.changed}",
        *([f"left        {form.left}"] if form.left else []),
        f"held-out    loss {read['loss']:.6g}, float32 {read['float32_loss']:.6g}: a change of "
        f"{read['loss_change']:.3%}, limit {read['limit']:.3%}{score}; {read['examples']} examples",
        f"outputs     apart by {read['largest']:.3g} of the largest at most, by {read['mean']:.3g} of their size "
        "on average",
        f"size        {facts['size_bytes']} bytes, {facts['size_bytes'] / facts['float32_size_bytes']:.2f}x float32",
        f"latency     {latency['ratio']:.2f}x float32 on one held-out batch, {latency['threads']} threads; "
        f"float32 against itself {latency['control']:.2f}x",
    ]
    return "\n".join(lines)
