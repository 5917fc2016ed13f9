"""Whether a run that was started has begun, and how one that ended early goes on."""

from pathlib import Path

from esper.runtime.spec import SPEC, TrainSpec

LOG = "trainer.log"


def has_begun(folder: Path) -> bool:
    """Whether training wrote or said anything: the start alone leaves the spec and the log."""
    return folder.is_dir() and any(path.name not in (SPEC, LOG) for path in folder.iterdir())


def take_back(spec: TrainSpec) -> None:
    """Give the run id of a start that failed free again; what has begun, or was to go on, stays."""
    folder = Path(spec.directory)
    if not spec.resume and not has_begun(folder):
        (folder / SPEC).unlink(missing_ok=True)


def way_on(spec: TrainSpec) -> str:
    """What to do about a run that ended before its end."""
    folder = Path(spec.directory)
    if any((folder / "checkpoints").glob("step-*/manifest.json")):
        return f"go on from its newest checkpoint: esper train --resume {spec.run_id}"
    if has_begun(folder):
        return "it has no checkpoint yet, so it cannot go on: start it anew under another run id"
    return "it had not begun: start it again"
