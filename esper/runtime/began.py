"""Whether a run that was started has begun, and how one that ended early goes on."""

from pathlib import Path

from esper.runtime.spec import SPEC, TrainSpec, called

# What is in a run's folder once training has said or written anything; the start alone leaves the spec and a log.
_MARKS = ("events.jsonl", "journal.jsonl", "spool", "checkpoints")


def has_begun(folder: Path) -> bool:
    """Whether training in a run's folder said or wrote anything."""
    return any((folder / name).exists() for name in _MARKS)


def take_back(spec: TrainSpec) -> None:
    """Give the run id of a start that failed free again; what has begun, or was to go on, stays."""
    folder = Path(spec.directory)
    if not spec.resume and not has_begun(folder):
        (folder / SPEC).unlink(missing_ok=True)


def way_on(folder: Path) -> str:
    """What to do about the run of a folder that ended before its end."""
    if any((folder / "checkpoints").glob("step-*/manifest.json")):
        return f"go on from its newest checkpoint: esper train --resume {called(folder)}"
    if has_begun(folder):
        return "it has no checkpoint yet, so it cannot go on: start it anew under another run id"
    return "it had not begun: start it again"
