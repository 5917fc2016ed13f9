"""Runs as they lie on disk: find, list, describe."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.errors import Conflict, Corrupt, NotFound, PreconditionFailed
from esper.nissa.codec import stopped_at
from esper.nissa.genealogy import in_words
from esper.runtime.happened import read_happened
from esper.runtime.spec import SPEC, called
from esper.runtime.stored import begun_s, holds_run, latest_session, read_own, read_stored

_STATE, _STRATEGY = ("state", "SEED_STATE_"), ("strategy", "GRAFT_STRATEGY_")


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run's directory and what its files say; a file that is not there is an empty mapping.

    `own_loop`: it was trained by `esper.attach` in a loop of its user's own, has no spec.json, and `spec` is what its
    events say. `damage`: why nothing of it could be read.
    """

    folder: Path
    spec: dict[str, Any]
    result: dict[str, Any]
    lineage: dict[str, Any]
    own_loop: bool = False
    damage: str = ""

    @property
    def run_id(self) -> str:
        return str(self.spec.get("run_id") or self.folder.name)


def find_run(root: Path, name: str) -> StoredRun:
    """One run, by its folder below `root`, its folder elsewhere, or its id where the folder is called otherwise.

    Raises NotFound naming those there are, Conflict where several folders hold runs of this id, and as `read_run`.
    """
    for folder in (root / name, Path(name)):
        if holds_run(folder):
            return read_run(folder)
    runs = list_runs(root)
    found = [run for run in runs if run.run_id == name and not run.damage]
    if len(found) > 1:
        raise Conflict(
            f"{len(found)} runs are called {name!r}; name a folder: {', '.join(r.folder.name for r in found)}"
        )
    if not found:
        known = ", ".join(run.run_id for run in runs[:10]) or "none"
        raise NotFound(
            f"no run {name!r} below {root}; there are: {known}. One that is elsewhere is named by its folder"
        )
    return found[0]


def list_runs(root: Path) -> list[StoredRun]:
    """All runs, newest first; of one that is damaged, why."""
    folders = [path for path in root.iterdir() if holds_run(path)] if root.is_dir() else []
    return [_read_or_damage(folder) for folder in sorted(folders, key=begun_s, reverse=True)]


def _read_or_damage(folder: Path) -> StoredRun:
    try:
        return read_run(folder)
    except Corrupt as error:
        return StoredRun(folder, {}, {}, {}, damage=str(error))


def read_run(folder: Path) -> StoredRun:
    """A run's files; one that is not there is an empty mapping. Raises Corrupt for one that is damaged."""
    spec, result, lineage = (read_stored(folder / name) for name in (SPEC, "result.json", "lineage.json"))
    own_loop = not spec and holds_run(folder)
    return StoredRun(folder, read_own(folder) if own_loop else spec, result, lineage, own_loop)


def refuse_own_loop(run: StoredRun, remedy: str) -> None:
    """Raises PreconditionFailed for a run whose task, model and weights only its user's own script has."""
    if run.own_loop:
        raise PreconditionFailed(
            f"run {run.run_id} was trained in a loop of its own (esper.attach) and its folder, {run.folder}, does not "
            f"say how to make its task; {remedy}"
        )


def stopped_in(run: StoredRun) -> str:
    """Where a run was stopped, in words; empty for one that ended, goes on, or was killed."""
    hello, goodbye = ({}, {}) if run.result else latest_session(run.folder)
    return stopped_at(goodbye["step"], hello.get("total_steps", 0)) if goodbye.get("stopped") else ""


def check_resumable(run: StoredRun, total_steps: int) -> None:
    """Raises PreconditionFailed for a run that has reached its last step: what it would read is gone."""
    if run.result.get("steps", 0) >= total_steps:
        raise PreconditionFailed(
            f"run {run.run_id} ended at its last step, {total_steps}, and its model is in {run.folder}; "
            "start a new run to train on"
        )


def runs_table(runs: list[StoredRun]) -> str:
    """One line per run."""
    if not runs:
        return "no runs yet; make one with `esper demo`"
    lines = [f"{'run':28} {'task':34} {'policy':20} {'test loss':>9} {'parameters':>10} {'fossils':>7}"]
    for run in runs:
        if run.damage:
            lines.append(f"{run.run_id:28} damaged: {run.damage}")
            continue
        policy = run.spec.get("growth", {}).get("policy", "heuristic")
        loss = f"{run.result['test_loss']:.4f}" if run.result else "-"
        fossils = len(run.lineage.get("fossils", [])) if run.lineage else "-"
        parameters = run.result.get("parameters", "-")
        stopped = stopped_in(run)
        line = f"{run.run_id:28} {run.spec['task']:34} {policy:20} {loss:>9} {parameters:>10} {fossils:>7}"
        lines.append(f"{line}  {stopped}" if stopped else line)
    return "\n".join(lines)


def genealogy(fossil: Mapping[str, Any], blueprints: Mapping[str, Any]) -> str:
    """What a fossil of lineage.json descends from, in one line."""
    name = str(fossil.get("title") or fossil.get("blueprint_id", "")[:12] or "its blueprint is not known")
    known = blueprints.get(fossil.get("blueprint_id", ""))
    if known is None:
        return f"{name}: what it descends from is not known"
    parents = " and ".join(blueprints[one]["title"] if one in blueprints else one[:12] for one in known["parents"])
    origin = f", of {parents}" if parents else ""
    source = in_words(known["author"], known["source"])
    return f"{name}: made by {known['author'] or 'nobody named'}{origin}" + (f" ({source})" if source else "")


def result_lines(result: Mapping[str, Any], total_steps: int) -> list[str]:
    """result.json, a line for each figure and each graft. `total_steps`: that the run was to make, 0 if not known."""
    lines = []
    for name, value in result.items():
        if name == "grafts":
            lines += [f"graft       {_graft(graft)}" for graft in value]
        elif name == "steps" and value < total_steps:
            lines.append(f"steps       {value} of {total_steps}")
        elif name != "run_id" and value not in (None, ""):
            lines.append(f"{name:11} {value}")
    return lines


def _graft(graft: Mapping[str, Any]) -> str:
    """A graft of result.json, which is a `Graft` as JSON: what is zero there is absent."""
    seed, folded = graft["seed"], ", folded into its layer" if graft.get("folded") else ""
    words = [str(graft.get(name, "")).rpartition(prefix)[2] for name, prefix in (_STATE, _STRATEGY)]
    return (
        f"{seed['site']}/{seed.get('slot', 0)} inserted at step {graft.get('insertedStep', 0)}, "
        f"{' '.join(words)}, alpha {graft.get('alpha', 0)}{folded}: kernel {graft['artifactId']}"
    )


def describe(run: StoredRun) -> str:
    """What one run is, what came of it, and what happened for which reasons."""
    lines = [f"run         {run.run_id}", f"directory   {run.folder}", f"task        {run.spec['task']}"]
    lines += result_lines(run.result, latest_session(run.folder)[0].get("total_steps", 0))
    if stopped := stopped_in(run):
        lines.append(f"result      none yet: {stopped}; go on: esper train --resume {called(run.folder)}")
    elif not run.result:
        lines.append("result      none yet: it is under way, or it was ended")
    for fossil in run.lineage.get("fossils", []):
        lines.append(f"fossil      {fossil['seed']} at step {fossil['step']}: kernel {fossil['artifact_id']}")
        lines.append(f"genealogy   {genealogy(fossil, run.lineage.get('blueprints', {}))}")
    lines += read_happened(run.folder)
    reports = [name for name in ("report.html", "events.jsonl", "model.py", "model.pt") if (run.folder / name).exists()]
    return "\n".join([*lines, f"files       {', '.join(reports) or 'none'}"])
