"""The files of a run's folder as they were written, or not: what they must hold for a reader to rely on it."""

import json
import os
from pathlib import Path
from typing import Any

from esper.errors import Corrupt
from esper.runtime.spec import SPEC

EVENTS = "events.jsonl"
_BEGUN, _ENDED = '{"kind": "hello"', '{"kind": "goodbye"'  # how their lines begin

_NUMBER = (int, float)
# Keys by file, and of which type. Those of _NEEDED must be there.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    SPEC: {"task": str, "run_id": str, "arguments": dict, "import_paths": list, "growth": dict},
    "result.json": {"test_loss": _NUMBER, "steps": int, "parameters": int, "grafts": list},
    "lineage.json": {"fossils": list, "blueprints": dict},
}
_NEEDED = {"task", "arguments", "import_paths", "test_loss", "steps"}
_FOSSIL: dict[str, type | tuple[type, ...]] = {"seed": str, "artifact_id": str, "step": int}
_BLUEPRINT: dict[str, type | tuple[type, ...]] = {"title": str, "author": str, "source": str, "parents": list}


def holds_run(folder: Path) -> bool:
    """Whether a run was recorded there: by `esper train`, or in a loop of its user's own."""
    return any(os.path.exists(folder / name) for name in (SPEC, EVENTS))  # noqa: PTH110  False for a name that is too long


def begun_s(folder: Path) -> float:
    """When the run began, or was last heard of where no spec says; seconds since the epoch."""
    spec = folder / SPEC
    return (spec if spec.exists() else folder / EVENTS).stat().st_mtime


def read_stored(path: Path) -> dict[str, Any]:
    """spec.json, result.json or lineage.json; empty where there is none. Raises Corrupt for one that is damaged."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Corrupt(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} does not parse: {error}") from error
    found = _checked(values, _FIELDS[path.name], path, "")
    for number, fossil in enumerate(found.get("fossils", [])):
        _checked(fossil, _FOSSIL, path, f"fossils[{number}].", needed=set(_FOSSIL))
    for name, blueprint in found.get("blueprints", {}).items():
        _checked(blueprint, _BLUEPRINT, path, f"blueprints.{name[:12]}.", needed=set(_BLUEPRINT))
    return found


def read_own(folder: Path) -> dict[str, Any]:
    """What stands for the spec of a run of its user's own loop, from what its trainer said on beginning.

    Raises Corrupt for events that say nothing of it.
    """
    said, _ = latest_session(folder)
    if not said:
        raise Corrupt(f"{folder / EVENTS} {_why_unsaid(folder / EVENTS)}")
    task = f"{said.get('task') or 'none'}, in a loop of its own"
    return {"run_id": str(said.get("run_id", "")), "task": task, "growth": {"policy": str(said.get("policy", ""))}}


def _why_unsaid(events: Path) -> str:
    try:
        events.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return f"does not parse: {error}"
    return "does not say how the run began"


def latest_session(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(hello, goodbye) of the run's latest beginning, from its events; empty for what they do not have.

    A line that does not parse, as the last one while it is being written, says nothing. Raises Corrupt for events that
    cannot be read.
    """
    path = folder / EVENTS
    hello: dict[str, Any] = {}
    goodbye: dict[str, Any] = {}
    if not path.exists():
        return hello, goodbye
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(_BEGUN):
                    hello, goodbye = _parsed(line), {}
                elif line.startswith(_ENDED):
                    goodbye = _parsed(line)
    except OSError as error:
        raise Corrupt(f"{path} cannot be read: {error.strerror or error}") from error
    return hello, goodbye


def _parsed(line: str) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return event


def _checked(
    values: Any,
    fields: dict[str, type | tuple[type, ...]],
    path: Path,
    where: str,
    needed: set[str] = _NEEDED,
) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise Corrupt(f"{path}: {where.rstrip('.') or 'it'} must hold keys and values, got {type(values).__name__}")
    for key, wanted in fields.items():
        if key in needed and key not in values:
            raise Corrupt(f"{path} has no {where}{key}")
        if key in values and not isinstance(values[key], wanted):
            name = wanted.__name__ if isinstance(wanted, type) else "a number"
            raise Corrupt(f"{path}: {where}{key} must be {name}, got {values[key]!r:.80}")
    return values
