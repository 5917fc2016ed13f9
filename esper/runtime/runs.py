"""Runs as they lie on disk: find, list, describe."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.errors import Corrupt, NotFound, PreconditionFailed
from esper.nissa.codec import stopped_at
from esper.nissa.genealogy import in_words

_BEGUN, _ENDED = '{"kind": "hello"', '{"kind": "goodbye"'  # how their lines of events.jsonl begin


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run's directory and what its files say; a file that is not there is an empty mapping."""

    folder: Path
    spec: dict[str, Any]
    result: dict[str, Any]
    lineage: dict[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.spec.get("run_id") or self.folder.name)


def find_run(root: Path, run_id: str) -> StoredRun:
    """One run. Raises NotFound naming those there are."""
    folder = root / run_id
    if not (folder / "spec.json").exists():
        known = ", ".join(run.run_id for run in list_runs(root)[:10]) or "none"
        raise NotFound(f"no run {run_id!r} below {root}; there are: {known}")
    return read_run(folder)


def list_runs(root: Path) -> list[StoredRun]:
    """All runs, newest first."""
    specs = sorted(root.glob("*/spec.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [read_run(path.parent) for path in specs]


def read_run(folder: Path) -> StoredRun:
    """A run's files; one that is not there is an empty mapping. Raises Corrupt for one that does not parse."""
    return StoredRun(folder, *(_json(folder / f"{name}.json") for name in ("spec", "result", "lineage")))


def stopped_in(run: StoredRun) -> str:
    """Where a run was stopped, in words; empty for one that ended, goes on, or was killed."""
    events = run.folder / "events.jsonl"
    if run.result or not events.exists():
        return ""
    said: dict[str, dict[str, Any]] = {}
    with events.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(_BEGUN):
                said.clear()
            if line.startswith((_BEGUN, _ENDED)):
                with contextlib.suppress(ValueError):  # a last line that is being written
                    event = json.loads(line)
                    said[event["kind"]] = event
    if not said.get("goodbye", {}).get("stopped"):
        return ""
    return stopped_at(said["goodbye"]["step"], said.get("hello", {}).get("total_steps", 0))


def check_resumable(run: StoredRun, total_steps: int) -> None:
    """Raises PreconditionFailed for a run that has reached its last step: what it would read is gone."""
    if run.result.get("steps", 0) >= total_steps:
        raise PreconditionFailed(
            f"run {run.run_id} ended at its last step, {total_steps}, and its model is in {run.folder}; "
            "start a new run to train on"
        )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise Corrupt(f"{path} does not parse: {error}") from error
    return values


def runs_table(runs: list[StoredRun]) -> str:
    """One line per run."""
    if not runs:
        return "no runs yet; make one with `esper demo`"
    lines = [f"{'run':28} {'task':34} {'policy':20} {'test loss':>9} {'parameters':>10} {'fossils':>7}"]
    for run in runs:
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


def describe(run: StoredRun) -> str:
    """What one run is and what came of it."""
    lines = [f"run         {run.run_id}", f"directory   {run.folder}", f"task        {run.spec['task']}"]
    lines += [f"{name:11} {value}" for name, value in run.result.items() if name not in ("run_id", "export")]
    if stopped := stopped_in(run):
        lines.append(f"result      none yet: {stopped}; go on: esper train --resume {run.run_id}")
    elif not run.result:
        lines.append("result      none yet: it is under way, or it was ended")
    for fossil in run.lineage.get("fossils", []):
        lines.append(f"fossil      {fossil['seed']} at step {fossil['step']}: kernel {fossil['artifact_id']}")
        lines.append(f"genealogy   {genealogy(fossil, run.lineage.get('blueprints', {}))}")
    reports = [name for name in ("report.html", "events.jsonl", "model.py", "model.pt") if (run.folder / name).exists()]
    return "\n".join([*lines, f"files       {', '.join(reports) or 'none'}"])
